"""A quantity by module over training as a heat map, with its values on hover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_info.figures.interactive.style import SEQUENCE, Figure, axis, empty, escaped, layout, numbers, short
from lightning_info.reporting.table import Curve

MOST_MAPS = 4
_MARGIN = {"l": 70, "r": 20, "t": 34, "b": 50}
_DEEPEST = 1e6
"""Ratio of the largest to the smallest value that has a colour of its own."""


def layer_heat_map(maps: Mapping[str, Mapping[str, Curve]], unit: str) -> Figure:
    """A map for each group of runs, under each other and in the same colours, which go by the logarithm.

    Args:
        maps: ``group -> module -> [(step, value), ...]``, modules in the order of depth; at most :data:`MOST_MAPS` are
            drawn.
        unit: Of the values.
    """
    shown = {name: curves for name, curves in list(maps.items())[:MOST_MAPS] if curves}
    every = [v for curves in shown.values() for curve in curves.values() for _, v in curve if np.isfinite(v) and v > 0]
    if not every:
        return empty("no module has a value above zero at any step")
    high = float(np.log10(max(every)))
    low = max(float(np.log10(min(every))), high - float(np.log10(_DEEPEST)))
    data: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    titles: list[dict[str, Any]] = []
    rows = [max(4, len(curves)) for curves in shown.values()]
    height = 110 * len(shown) + 18 * sum(rows)
    top, gap = 1.0, 64 / height
    for number, ((name, curves), count) in enumerate(zip(shown.items(), rows, strict=True), start=1):
        share = (1 - gap * (len(shown) - 1)) * count / sum(rows)
        end = "" if number == 1 else str(number)
        data.append(_map(curves, end, low, high, unit, number == 1))
        space = {
            "domain": [max(0.0, top - share), top],
            "autorange": "reversed",
            "type": "category",
            "gridcolor": "#fff",
        }
        axes[f"yaxis{end}"] = axis("", **space, anchor=f"x{end}")
        last = number == len(shown)
        axes[f"xaxis{end}"] = axis(
            "optimiser steps (measured points, evenly spaced)" if last else "",
            type="category",
            anchor=f"y{end}",
            nticks=12,
        )
        if len(shown) > 1:
            place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
            titles.append({"text": short(name), "showarrow": False, **place})
        top -= share + gap
    return {"data": data, "layout": layout(height, **axes, annotations=titles, showlegend=False, margin=_MARGIN)}


def _map(curves: Mapping[str, Curve], end: str, low: float, high: float, unit: str, scale: bool) -> dict[str, Any]:
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    values = [[dict(curve).get(step, np.nan) for step in steps] for curve in curves.values()]
    logarithms = [[np.log10(v) if np.isfinite(v) and v > 0 else np.nan for v in row] for row in values]
    ticks = _ticks(low, high)
    found: dict[str, Any] = {
        "type": "heatmap",
        "x": [str(step) for step in steps],
        "y": [short(name) for name in curves],
        "z": [numbers(row) for row in logarithms],
        "customdata": [numbers(row) for row in values],
        "zmin": low,
        "zmax": high,
        "colorscale": SEQUENCE,
        "xaxis": f"x{end}",
        "yaxis": f"y{end}",
        "hoverongaps": False,
        "showscale": scale,
        "hovertemplate": f"%{{y}} at step %{{x}}: %{{customdata:.4g}} {escaped(unit)}<extra></extra>",
    }
    if scale:
        found["colorbar"] = {
            "title": {"text": escaped(unit), "side": "right", "font": {"size": 11}},
            "tickvals": ticks,
            "ticktext": [f"{10**tick:.3g}" for tick in ticks],
            "thickness": 14,
        }
    return found


def _ticks(low: float, high: float) -> Sequence[float]:
    """Places of round numbers on a logarithmic scale."""
    steps = (1.0,) if high - low > 2 else (1.0, 2.0, 5.0)
    found = [float(np.log10(s)) + d for d in range(int(np.floor(low)), int(np.ceil(high)) + 1) for s in steps]
    return [tick for tick in found if low <= tick <= high] or [low, high]
