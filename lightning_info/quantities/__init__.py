"""Quantities, measured without a Trainer: one folder each, and :class:`Quantity` for one of your own.

``docs/quantities.md`` shows how to write one. Nothing else is imported here, as that would take long.
"""

from lightning_info.quantities.quantity import NotMeasurable, Point, Quantity, Record
from lightning_info.replica.activations import Layer
from lightning_info.replica.layer_selection import find_layers
from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot, Unavailable
from lightning_info.reporting.description import Description

__all__ = [
    "Description",
    "ForwardStatistic",
    "Layer",
    "ModelSnapshot",
    "NotMeasurable",
    "Point",
    "Quantity",
    "Record",
    "Unavailable",
    "find_layers",
]
