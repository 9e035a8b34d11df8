"""Quantities as torchmetrics ``Metric``s, accumulated over batches and processes."""

from lightning_info.metrics.fisher import FisherTrace
from lightning_info.metrics.information_plane import InformationPlane

__all__ = ["FisherTrace", "InformationPlane"]
