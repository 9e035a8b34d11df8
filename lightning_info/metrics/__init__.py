"""Quantities as torchmetrics ``Metric``s, accumulated over batches and processes."""

from lightning_info.metrics.fisher import FisherTrace

__all__ = ["FisherTrace"]
