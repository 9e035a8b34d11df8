"""Quantities as torchmetrics metrics, accumulated over batches and processes."""

from lightning_info.metrics.fisher import FisherTrace
from lightning_info.metrics.information_plane import InformationPlane
from lightning_info.metrics.usable_information import UsableInformation

__all__ = ["FisherTrace", "InformationPlane", "UsableInformation"]
