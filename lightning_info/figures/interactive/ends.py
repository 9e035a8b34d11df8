"""Where runs ended, group by group, with the errors of their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_info.figures.interactive.style import (
    Figure,
    axis,
    colours,
    empty,
    escaped,
    faint,
    layout,
    numbers,
    short,
)


@dataclass(frozen=True)
class EndPoint:
    """A quantity at the end of a group of runs.

    Attributes:
        group: The runs.
        layer: Of which layer; empty for none.
        mean: Over the runs.
        half: Half the width of its 95 % band, NaN where it is not known.
        single: The value of each run.
        names: Of the runs.
    """

    group: str
    layer: str
    mean: float
    half: float
    single: Sequence[float]
    names: Sequence[str]


def ends(points: Sequence[EndPoint], title: str) -> Figure:
    """A row for each layer, in it the groups beside each other: the mean with its band, and the runs as dots.

    Args:
        points: What to draw.
        title: Of the axis of values, with the unit.
    """
    if not points:
        return empty("no run has a value")
    groups = list(dict.fromkeys(point.group for point in points))
    layers = list(dict.fromkeys(point.layer for point in points))
    data: list[dict[str, Any]] = []
    for number, (group, colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
        own = [point for point in points if point.group == group]
        offset = (number - (len(groups) - 1) / 2) * 0.7 / len(groups)
        rows = [layers.index(point.layer) + offset for point in own]
        dots = [
            (v, row, name) for p, row in zip(own, rows, strict=True) for v, name in zip(p.single, p.names, strict=True)
        ]
        data.append(
            {
                "x": numbers(v for v, _, _ in dots),
                "y": [row for _, row, _ in dots],
                "text": [short(name) for _, _, name in dots],
                "mode": "markers",
                "marker": {"color": faint(colour, 0.4), "size": 6},
                "hovertemplate": "%{x:.5g}<extra>%{text}</extra>",
                "showlegend": False,
            }
        )
        bars = {"type": "data", "array": [p.half if math.isfinite(p.half) else 0 for p in own], "color": colour}
        data.append(
            {
                "x": numbers(p.mean for p in own),
                "y": rows,
                "error_x": {**bars, "thickness": 2, "width": 5},
                "mode": "markers",
                "marker": {"color": colour, "size": 10, "symbol": "diamond", "line": {"color": "#222", "width": 1}},
                "name": short(group),
                "hovertemplate": "mean %{x:.5g}<extra>%{fullData.name}</extra>",
            }
        )
    height = 110 + max(24 * len(groups) * len(layers), 60)
    ticks: dict[str, Any] = {"tickvals": list(range(len(layers))), "ticktext": [short(layer) for layer in layers]}
    if layers == [""]:
        ticks = {"tickvals": [], "ticks": ""}
    return {
        "data": data,
        "layout": layout(
            height,
            xaxis=axis(escaped(title), exponentformat="power"),
            yaxis=axis("", **ticks, range=[len(layers) - 0.5, -0.5], showgrid=False),
            showlegend=len(groups) > 1,
        ),
    }
