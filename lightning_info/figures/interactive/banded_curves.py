"""Curves with their 95 % bands over training, and the run's own loss and accuracy below on the same axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_info.figures.interactive.style import (
    DASHES,
    Figure,
    axis,
    band,
    colours,
    empty,
    escaped,
    faint,
    layout,
    numbers,
    short,
)

_HEIGHT, _BELOW = 380, 120
"""Of the curves and of each panel below, pixels."""
_GREYS = ("#444444", "#888888", "#bbbbbb")
"""Of what is below, where layers have the colours."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        group: Runs that it is of.
        layer: Layer that it is of; empty for none.
        steps: ``n`` of them, rising.
        values: ``(n,)``, NaN where there is none.
        low: Lower end of the band, NaN where it is not known.
        high: Upper end.
        epochs: Epochs passed; None where they are not known.
    """

    group: str
    layer: str
    steps: Sequence[int]
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    epochs: Sequence[float] | None = None


@dataclass(frozen=True)
class Below:
    """A panel below the curves.

    Attributes:
        title: Of its axis.
        lines: Its curves.
    """

    title: str
    lines: Sequence[Line] = field(default_factory=list)


def banded_curves(lines: Sequence[Line], title: str, below: Sequence[Below] = ()) -> Figure:
    """Layers in colours and groups of runs in strokes; with one layer, or none, groups in colours.

    Args:
        lines: The curves.
        title: Of the axis of values, with the unit.
        below: Further panels under the same axis of steps.
    """
    if not any(np.isfinite(line.values).any() for line in lines):
        return empty("no value at any step")
    groups, layers = _distinct(line.group for line in lines), _distinct(line.layer for line in lines)
    by_layer = len(layers) > 1
    of = dict(zip(layers if by_layer else groups, colours(len(layers) if by_layer else len(groups)), strict=True))
    data: list[dict[str, Any]] = []
    for line in lines:
        colour = of[line.layer if by_layer else line.group]
        dash = DASHES[groups.index(line.group) % len(DASHES)] if by_layer else "solid"
        parts = (line.layer, line.group if len(groups) > 1 or not by_layer else "")
        data += _traces(line, " · ".join(filter(None, parts)), colour, dash, "y")
    for number, panel in enumerate(below, start=2):
        names = _distinct(line.layer for line in panel.lines)
        for line in panel.lines:
            place, tag = groups.index(line.group) if line.group in groups else 0, names.index(line.layer)
            if by_layer:  # groups have strokes here too
                own, dash = _GREYS[tag % len(_GREYS)], DASHES[place % len(DASHES)]
            else:
                own, dash = colours(len(groups))[place], DASHES[tag % len(DASHES)]
            name = " · ".join(filter(None, (line.layer, line.group if len(groups) > 1 else "")))
            data += _traces(line, name, own, dash, f"y{number}", legend=False)
    return {"data": data, "layout": _layout(title, below, data)}


def _traces(line: Line, name: str, colour: str, dash: str, y: str, legend: bool = True) -> list[dict[str, Any]]:
    steps = [float(step) for step in line.steps]
    both = {"steps": steps, "epochs": None if line.epochs is None else list(line.epochs)}
    shared = {"legendgroup": escaped(f"{y} {name}"), "yaxis": y, "name": short(name)}
    half = (line.high - line.low) / 2
    told = [f" ± {h:.2g}" if np.isfinite(h) else "" for h in half]
    found: list[dict[str, Any]] = []
    if np.isfinite(half).sum() > 1:
        x, outline = band(steps, line.low.tolist(), line.high.tolist())
        kept = np.isfinite(line.low) & np.isfinite(line.high)
        epochs = None if line.epochs is None else [e for e, k in zip(line.epochs, kept, strict=True) if k]
        meta = {"steps": x, "epochs": None if epochs is None else epochs + epochs[::-1], "band": True}
        area = {"x": x, "y": outline, "fill": "toself", "fillcolor": faint(colour), "line": {"width": 0}}
        found.append({**shared, **area, "mode": "lines", "hoverinfo": "skip", "showlegend": False, "meta": meta})
    finite = int(np.isfinite(line.values).sum())
    drawn = {
        "x": steps,
        "y": numbers(line.values),
        "mode": "lines+markers" if finite <= 60 else "lines",
        "line": {"color": colour, "dash": dash, "width": 1.8},
        "marker": {"size": 4, "color": colour},
        "customdata": told,
        "hovertemplate": "%{y:.5g}%{customdata} at %{x}<extra>%{fullData.name}</extra>",
        "showlegend": legend,
        "meta": both,
    }
    if finite == 1 and np.isfinite(half).any():
        drawn["error_y"] = {"type": "data", "array": numbers(half), "color": colour}
    return [*found, {**shared, **drawn}]


def _layout(title: str, below: Sequence[Below], data: Sequence[dict[str, Any]]) -> dict[str, Any]:
    height = _HEIGHT + _BELOW * len(below)
    axes: dict[str, Any] = {}
    share, gap = _BELOW / height, 0.025
    bottom = share * len(below)
    axes["yaxis"] = axis(escaped(title), domain=[bottom + (gap if below else 0), 1], exponentformat="power")
    for number, panel in enumerate(below, start=2):
        top = bottom - share * (number - 2)
        axes[f"yaxis{number}"] = axis(escaped(panel.title), domain=[top - share + gap, top - gap], nticks=4)
    last = f"y{len(below) + 1}" if below else "y"
    shown = sum(1 for trace in data if trace.get("showlegend"))
    has_epochs = all(trace["meta"]["epochs"] for trace in data)
    return layout(
        height,
        **axes,
        xaxis=axis("optimiser steps", anchor=last),
        showlegend=shown > 1,
        meta={"controls": ["log", *(["epochs"] if has_epochs else [])]},
    )


def _distinct(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
