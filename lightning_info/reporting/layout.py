"""The one custom-scalar layout: charts of several curves in TensorBoard's "Custom scalars" tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Chart = tuple[Literal["Margin", "Multiline"], Sequence[str]]
"""``("Margin", (value, low, high))`` draws a band, ``("Multiline", tags)`` several curves."""


def write_layout(trainer: Any, charts: Mapping[str, Chart]) -> list[Exception]:
    """Hand the charts of all callbacks to every logger whose experiment takes a layout (TensorBoard).

    TensorBoard keeps one layout per run, so that a second call would replace the first.

    Returns:
        What loggers raised; the others still got the layout.
    """
    errors: list[Exception] = []
    layout = {"lightning_info": {title: [kind, list(tags)] for title, (kind, tags) in charts.items()}}
    for logger in trainer.loggers if trainer.is_global_zero else ():
        try:
            add_layout = getattr(getattr(logger, "experiment", None), "add_custom_scalars", None)
            if add_layout is not None:
                add_layout(layout)
        except Exception as error:
            errors.append(error)
    return errors
