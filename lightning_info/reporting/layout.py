"""Charts of several curves in TensorBoard's "Custom scalars" tab, beside those that the user lays out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from lightning_info.reporting.shared_layout import SharedLayout
from lightning_info.reporting.sinks import Sink, serve

Chart = tuple[Literal["Margin", "Multiline"], Sequence[str]]
"""``("Margin", (value, low, high))`` draws a band, ``("Multiline", tags)`` several curves; tags are literal names."""

CATEGORY = "lightning_info"


def write_layout(trainer: Any, charts: Mapping[str, Chart], gone: Collection[str] = ()) -> list[Exception]:
    """Hand the charts of all callbacks to every logger whose experiment takes a layout (TensorBoard).

    TensorBoard keeps one layout per run. What the user wrote before stays in it, and until the writer is closed, at the
    end of fit, our charts stay in what the user writes later; see :class:`.SharedLayout`.

    Args:
        trainer: The trainer.
        charts: Charts by title.
        gone: Titles of charts that were written before and are no longer shown.

    Returns:
        Exceptions raised by loggers; the others still got the layout.
    """
    layout = {title: [kind, [_matching(kind, tag) for tag in tags]] for title, (kind, tags) in charts.items()}
    return serve(trainer, _SINKS, {CATEGORY: layout}, gone) if charts else []


def _matching(kind: str, tag: str) -> str:
    # TensorBoard takes the tags of "Multiline" for regular expressions that match from the start, those of "Margin"
    # for names: unescaped, "net.0" also draws "net.01" and "net_0".
    return f"{re.escape(tag)}$" if kind == "Multiline" else tag


def _to_tensorboard(logger: Any, layout: Mapping[str, Any], gone: Collection[str]) -> None:
    directory = getattr(logger, "log_dir", None)
    if isinstance(directory, str):
        SharedLayout.of(logger.experiment, directory, CATEGORY).add(layout, gone)
    else:  # a stand-in without event files
        logger.experiment.add_custom_scalars(layout)


_SINKS: Sequence[Sink] = ((("experiment.add_custom_scalars",), _to_tensorboard),)
