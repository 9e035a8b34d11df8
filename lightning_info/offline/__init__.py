"""The callbacks' quantities without a Trainer: for a module as it is, or over the checkpoints of a run."""

from lightning_info.callbacks.result import MeasureResult
from lightning_info.offline.measure import measure

__all__ = ["MeasureResult", "measure"]
