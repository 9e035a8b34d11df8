"""Quantities, measured without a Trainer: one folder each, and :class:`Quantity` for one of your own.

``docs/quantities.md`` shows how to write one. A name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from lightning_info.lazy import lazily

if TYPE_CHECKING:
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

_HOMES = {
    "Description": ".reporting.description",
    "ForwardStatistic": ".replica.snapshot",
    "Layer": ".replica.activations",
    "ModelSnapshot": ".replica.snapshot",
    "NotMeasurable": "quantity",
    "Point": "quantity",
    "Quantity": "quantity",
    "Record": "quantity",
    "Unavailable": ".replica.snapshot",
    "find_layers": ".replica.layer_selection",
}

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, _HOMES)
