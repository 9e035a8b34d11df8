"""The information plane to move through: a slider over training, or its play button."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_info.figures.interactive.style import (
    GREY,
    MARKERS,
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

Array = NDArray[np.float64]
MOST_STOPS = 60
"""Of the slider."""
_FRAME = 120
"""Milliseconds between two stops when it plays."""


@dataclass(frozen=True)
class PlanePath:
    """The path of one layer through the plane.

    Attributes:
        name: Of the layer, and of the runs if there are several groups.
        group: Of the runs; the layers of a group are joined at each stop.
        x: Information about the input at the stops, ``(n,)``, NaN where there is none.
        y: Information about the label, or a nuisance.
        x_half: Half the width of the 95 % band, NaN where it is not known.
        y_half: Likewise.
        baseline: What ``y`` is for shuffled labels, NaN where it is not known.
        is_grey: It says nothing.
    """

    name: str
    group: str
    x: Array
    y: Array
    x_half: Array
    y_half: Array
    baseline: Array
    is_grey: bool = False


def information_plane(
    paths: Sequence[PlanePath],
    stops: Sequence[str],
    *,
    x_title: str,
    y_title: str,
    ceiling_x: tuple[float, str] = (math.inf, ""),
    ceiling_y: tuple[float, str] = (math.inf, ""),
) -> Figure:
    """Each layer's whole path, faint, and where it is at a stop: with its band, and its baseline below it.

    Args:
        paths: The layers in the order of depth.
        stops: Labels of the stops, ``n`` of them.
        x_title: Of the axis, with the unit.
        y_title: Likewise.
        ceiling_x: The highest possible value, and its name; infinite for none.
        ceiling_y: Likewise.
    """
    paths = [path for path in paths if np.isfinite(path.x * path.y).any()]
    if not paths or not stops:
        return empty("no layer has a value at any step")
    shades = [GREY if path.is_grey else shade for path, shade in zip(paths, colours(len(paths)), strict=True)]
    trails = [_trail(path, shade, i) for i, (path, shade) in enumerate(zip(paths, shades, strict=True))]
    last = len(stops) - 1
    moving = _moving(paths, shades, last)
    places = list(range(len(trails), len(trails) + len(moving)))
    frames = [
        {"name": str(i), "data": _moving(paths, shades, i), "traces": places, "group": "stops"}
        for i in range(len(stops))
    ]
    ranges = [_range(paths, ["x"], ceiling_x[0]), _range(paths, ["y", "baseline"], ceiling_y[0])]
    lines, notes = _ceilings(ceiling_x, ceiling_y, ranges)
    return {
        "data": [*trails, *moving],
        "frames": frames,
        "layout": layout(
            540,
            xaxis=axis(escaped(x_title), range=ranges[0]),
            yaxis=axis(escaped(y_title), range=ranges[1]),
            shapes=lines,
            annotations=notes,
            margin={"l": 70, "r": 20, "t": 24, "b": 120},
            sliders=[_slider(stops, last)],
            updatemenus=[_buttons()],
        ),
    }


def _trail(path: PlanePath, shade: str, number: int) -> dict[str, Any]:
    return {
        "x": numbers(path.x),
        "y": numbers(path.y),
        "mode": "lines+markers",
        "line": {"color": faint(shade, 0.35), "width": 1.2},
        "marker": {"color": faint(shade, 0.35), "size": 4, "symbol": MARKERS[number % len(MARKERS)]},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": str(number),
    }


def _moving(paths: Sequence[PlanePath], shades: Sequence[str], stop: int) -> list[dict[str, Any]]:
    """What changes from stop to stop: the joint of each group, the layers, their baselines."""
    found: list[dict[str, Any]] = []
    for group in dict.fromkeys(path.group for path in paths):
        members = [path for path in paths if path.group == group]
        line = {"x": numbers(p.x[stop] for p in members), "y": numbers(p.y[stop] for p in members)}
        joint = {"mode": "lines", "line": {"color": "#999", "width": 1, "dash": "dot"}, "hoverinfo": "skip"}
        found.append({**line, **joint, "connectgaps": True, "showlegend": False})
    for number, (path, shade) in enumerate(zip(paths, shades, strict=True)):
        bars: dict[str, Any] = {}
        for way, half in (("x", path.x_half[stop]), ("y", path.y_half[stop])):
            known = math.isfinite(half)
            bars[f"error_{way}"] = {"type": "data", "array": [float(half) if known else 0.0], "visible": known}
            bars[f"error_{way}"] |= {"color": shade, "thickness": 1.2, "width": 3}
        grey = " (says nothing)" if path.is_grey else ""
        found.append(
            {
                "x": numbers([path.x[stop]]),
                "y": numbers([path.y[stop]]),
                **bars,
                "mode": "markers",
                "marker": {
                    "color": shade,
                    "size": 11,
                    "symbol": MARKERS[number % len(MARKERS)],
                    "line": {"color": "#222", "width": 1},
                },
                "name": f"{short(path.name)}{grey}",
                "legendgroup": str(number),
                "hovertemplate": "input %{x:.4g}, label %{y:.4g}<extra>%{fullData.name}</extra>",
            }
        )
    with_chance = [i for i, path in enumerate(paths) if np.isfinite(path.baseline).any()]
    if with_chance:
        found.append(
            {
                "x": numbers(paths[i].x[stop] for i in with_chance),
                "y": numbers(paths[i].baseline[stop] for i in with_chance),
                "mode": "markers",
                "marker": {
                    "symbol": "line-ew",
                    "size": 14,
                    "line": {"width": 2, "color": [shades[i] for i in with_chance]},
                },
                "name": "shuffled labels",
                "hovertemplate": "with shuffled labels %{y:.4g}<extra></extra>",
            }
        )
    return found


def _range(paths: Sequence[PlanePath], names: Sequence[str], ceiling: float) -> list[float]:
    values = np.concatenate([getattr(path, name) for path in paths for name in names])
    values = values[np.isfinite(values)]
    high = max(float(values.max(initial=0.1)), ceiling if math.isfinite(ceiling) else 0.1)
    low = float(values.min(initial=high))
    space = 0.08 * (high - low) or 0.1
    return [max(low - 2 * space, min(low, 0.0) - space), high + space]


def _ceilings(
    x: tuple[float, str], y: tuple[float, str], ranges: Sequence[Sequence[float]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    lines, notes = [], []
    stroke = {"color": "#777", "width": 1, "dash": "dash"}
    text = {"showarrow": False, "font": {"size": 10, "color": "#555"}}
    if math.isfinite(x[0]):
        lines.append({"type": "line", "x0": x[0], "x1": x[0], "y0": 0, "y1": 1, "yref": "paper", "line": stroke})
        place = {"x": x[0], "y": 0.02, "yref": "paper", "xanchor": "right", "yanchor": "bottom", "textangle": -90}
        notes.append({**text, **place, "text": escaped(x[1])})
    if math.isfinite(y[0]):
        lines.append({"type": "line", "y0": y[0], "y1": y[0], "x0": 0, "x1": 1, "xref": "paper", "line": stroke})
        place = {"y": y[0], "x": 0.01, "xref": "paper", "xanchor": "left", "yanchor": "bottom"}
        notes.append({**text, **place, "text": escaped(y[1])})
    return lines, notes


def _slider(stops: Sequence[str], active: int) -> dict[str, Any]:
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    steps = [
        {"label": escaped(label), "method": "animate", "args": [[str(i)], at_once]} for i, label in enumerate(stops)
    ]
    return {
        "active": active,
        "steps": steps,
        "x": 0.25,
        "len": 0.75,
        "y": -0.14,
        "pad": {"t": 10},
        "currentvalue": {"prefix": "at ", "xanchor": "right", "font": {"size": 12}},
        "font": {"size": 10},
        "ticklen": 3,
        "transition": {"duration": 0},
    }


def _buttons() -> dict[str, Any]:
    run = {"frame": {"duration": _FRAME, "redraw": False}, "transition": {"duration": 0}, "fromcurrent": False}
    stop = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    buttons = [("▶ play", ["stops", {**run, "mode": "immediate"}]), ("❚❚ stop", [[None], stop])]
    return {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0,
        "y": -0.16,
        "xanchor": "left",
        "yanchor": "top",
        "pad": {"t": 24, "l": 0},
        "font": {"size": 11},
        "buttons": [{"label": label, "method": "animate", "args": args} for label, args in buttons],
    }
