"""The callbacks' quantities without a Trainer: of a module as it is, or over the checkpoints of a run."""

from lightning_info.offline.measure import measure
from lightning_info.offline.result import MeasureResult

__all__ = ["MeasureResult", "measure"]
