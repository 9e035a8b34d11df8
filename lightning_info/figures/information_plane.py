"""The information plane as a figure, in the form of Saxe et al. (2018), figure 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, isfinite, nan
from textwrap import fill
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lightning_info.figures.margins import lines_height, set_margins, widest
from lightning_info.figures.notebook_figure import NotebookFigure

Array = NDArray[np.float64]

_COLOURS = "viridis"
_GREY = "0.75"
_MARKERS = "os^DvPX*<>ph"
SMALL = 8
"""Size of small text, points: to be read where TensorBoard shows the figure 300 pixels wide."""


@dataclass(frozen=True)
class PlaneCurve:
    """The path of one layer through the plane.

    Attributes:
        layer: Dotted name.
        points: ``(optimiser step, I(X;T), I(T;Y))``; NaN where there is no value.
        saturated: So near its ceiling that the path means nothing.
        halves: Half of the 95 % intervals of the last point; NaN where they are not known.
    """

    layer: str
    points: Sequence[tuple[int, float, float]]
    saturated: bool = False
    halves: tuple[float, float] = (nan, nan)

    def times(self, factor: float) -> PlaneCurve:
        """The same path in another unit."""
        points = [(step, x * factor, y * factor) for step, x, y in self.points]
        return PlaneCurve(self.layer, points, self.saturated, (self.halves[0] * factor, self.halves[1] * factor))


def information_plane(
    curves: Sequence[PlaneCurve],
    *,
    title: str,
    ceiling_x: float,
    ceiling_y: float,
    epochs: Mapping[int, float],
    unit: str = "bits",
    symbol: str = "T",
    across: str = "",
    caption: str = "",
) -> Figure:
    """I(T;Y) against I(X;T): colour = epoch, a marker for each layer, layers of one epoch joined, last points outlined.

    Where no layer has an I(T;Y), I(X;T) is drawn against the epoch. A plane without any value says so. A layer whose
    last points have no value has no outlined one; the legend says since which step.

    Args:
        curves: The layers, in the order of depth.
        title: What was measured how: estimator and range.
        ceiling_x: The highest possible I(X;T), log N; infinite for none.
        ceiling_y: The highest possible I(T;Y), H(Y); infinite for none.
        epochs: Epochs passed, by optimiser step.
        unit: Unit of all values.
        symbol: Name of the representation.
        across: What is to the right; by default I(X;T).
        caption: What else one must know to read the values.
    """
    steps = sorted({step for curve in curves for step, *pair in curve.points if any(map(isfinite, pair))})
    steps = steps or sorted({step for curve in curves for step, *_ in curve.points})  # of no step is there a value
    values = np.full((2, len(curves), len(steps)), np.nan)
    for row, curve in enumerate(curves):
        for step, *pair in curve.points:
            if step in steps:
                values[:, row, steps.index(step)] = pair
    values[~np.isfinite(values)] = np.nan
    shown = [epochs[step] for step in steps]
    time, ticks = _epoch_scale(shown, list(epochs.values()) if len(steps) > 1 else shown)
    colours = matplotlib.colormaps[_COLOURS](time)
    i_x, i_y = f"{across or f'I(X;{symbol})'} [{unit}]", f"I({symbol};Y) [{unit}]"
    log_n = "log$_2$ N" if unit == "bits" else "log N"

    title, caption = fill(title, 60), fill(caption, 72)
    figure = NotebookFigure(figsize=(5.2, 4.4))
    figure.suptitle(title, fontsize=10)
    axes = figure.add_subplot()
    axes.set_title(caption, fontsize=SMALL, color="0.3", y=1, pad=8)
    axes.margins(0.07, 0.1)
    right = 0.15
    if not np.isfinite(values).any():
        paths = values
        axes.set(xlabel=i_x, ylabel=i_y, xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no layer has a value at any step", ha="center", transform=axes.transAxes)
    elif np.isfinite(values[1]).any():
        paths, alpha = values, max(0.2, min(0.5, 20 / len(steps)))
        axes.add_collection(LineCollection(list(paths.T), colors=colours, linewidths=0.5, alpha=alpha, zorder=1))
        axes.set(xlabel=i_x, ylabel=i_y)
        _ceiling(axes, "x", ceiling_x, log_n, values[0])
        _ceiling(axes, "y", ceiling_y, "H(Y)", values[1])
        if len(ticks) > 1:
            bar = figure.colorbar(ScalarMappable(cmap=_COLOURS), ax=axes, label="epoch", ticks=list(ticks), pad=0.03)
            bar.set_ticklabels(list(ticks.values()))
            right += 0.25 + widest(ticks.values(), 10)
    else:
        paths = np.stack([np.broadcast_to(time, values[0].shape), values[0]])
        axes.add_collection(LineCollection(list(np.moveaxis(paths, 0, 2)), colors=_GREY, linewidths=0.5, zorder=1))
        axes.set(xlabel="epoch", ylabel=i_x)
        axes.set_xticks(list(ticks), list(ticks.values()))
        _ceiling(axes, "y", ceiling_x, log_n, values[0])

    handles = _layers(axes, curves, paths, colours, steps)
    notes = ["outlined: last point"] if len(ticks) > 1 else [f"epoch {epoch}" for epoch in ticks.values()]
    if any(curve.saturated for curve in curves):
        notes.append(f"grey: {'within 1 bit of' if unit == 'bits' else 'at'} {log_n}, not informative")
    legend = _legend(figure, handles, "; ".join(notes))
    top = 0.15 + lines_height(title, 10) + lines_height(caption, SMALL)
    figure.set_figheight(4 + legend)
    set_margins(figure, left=0.75, right=right, bottom=0.55 + legend, top=top)
    return figure


def _layers(
    axes: Axes, curves: Sequence[PlaneCurve], paths: Array, colours: Array, steps: Sequence[int]
) -> list[Line2D]:
    """Draw the points of all layers, ``paths (2, layers, steps)``; entries of the legend."""
    handles = []
    names = _shortened([curve.layer for curve in curves])
    for curve, name, marker, path in zip(curves, names, cycle(_MARKERS), paths.swapaxes(0, 1), strict=False):
        seen = np.isfinite(path).all(0)
        x, y = path[:, seen]
        c = np.full((len(x), 4), to_rgba(_GREY)) if curve.saturated else colours[seen]
        axes.scatter(x, y, s=22, c=c, marker=marker, edgecolors="white", linewidths=0.3, zorder=2)
        lost = [step for step, *_ in curve.points if len(x) and step > steps[np.flatnonzero(seen)[-1]]]
        end = slice(0, 0) if lost else slice(-1, None)
        if len(x[end]):
            across, up = (half if isfinite(half) else None for half in curve.halves)
            axes.errorbar(x[end], y[end], up, across, fmt="none", ecolor="0.3", elinewidth=0.8, capsize=2, zorder=2)
        axes.scatter(x[end], y[end], s=60, c=c[end], marker=marker, edgecolors="black", linewidths=1.2, zorder=3)
        label = name if len(x) else f"{name} (no value)"
        label = f"{name} (lost since step {lost[0]})" if lost else label
        colour = _GREY if curve.saturated else "0.3"
        handles.append(Line2D([], [], linestyle="none", marker=marker, color=colour, label=label))
    return handles


def _ceiling(axes: Axes, axis: Literal["x", "y"], value: float, name: str, values: Array) -> None:
    """Mark the ceiling, and show at least the upper quarter below it, so that noise does not fill the plane.

    Without one the largest value stands for it, or 0.1, so that few points have no axis of the width of their rounding.
    """
    highest = value if isfinite(value) else values[np.isfinite(values)].max(initial=0.1)
    for end in (0.75 * highest, highest):
        axes.update_datalim([(end, end)], updatex=axis == "x", updatey=axis == "y")
    if not isfinite(value):
        return
    line, transform, place, offset, rotation = {  # the offset keeps markers on the line off its name
        "x": (axes.axvline, axes.get_xaxis_transform(), (value, 0.0), (7, 3), 90),
        "y": (axes.axhline, axes.get_yaxis_transform(), (0.0, value), (3, 7), 0),
    }[axis]
    line(value, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
    axes.annotate(
        f"{name} = {value:.4g}",
        place,
        offset,
        xycoords=transform,
        textcoords="offset points",
        rotation=rotation,
        fontsize=SMALL,
        color="0.3",
    )


def _legend(figure: Figure, handles: Sequence[Line2D], note: str) -> float:
    """Below the axes; its height in inches."""
    if not handles:
        return 0.0
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, 72 // (longest + 5))  # in letters: a marker takes 5, the figure 72
    rows = ceil(len(handles) / columns)
    columns = ceil(len(handles) / rows)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        title=note,
        fontsize=SMALL,
        title_fontsize=SMALL,
        frameon=False,
    )
    return lines_height(note + rows * "\n", SMALL) + 0.05


def _epoch_scale(epochs: Sequence[float], measured: Sequence[float]) -> tuple[Array, dict[float, str]]:
    """Places of epochs between 0 and 1, and labelled ticks: one scale for all planes of a run.

    Half of the scale goes by the logarithm, which spreads the first steps, half by the count of points, which spreads
    the ends of epochs; either alone makes the others one colour.
    """
    if not epochs:
        return np.empty(0), {}
    knots = np.unique(measured)
    places = np.zeros(len(knots))
    if len(knots) > 1:
        log = np.log1p(knots / knots[knots > 0][0])
        places = (np.linspace(0, 1, len(knots)) + (log - log[0]) / (log[-1] - log[0])) / 2
    decades = 10.0 ** np.arange(-9, 10)
    ticks: dict[float, str] = {}
    for tick in (*knots[[0, -1]], *decades, *5 * decades, *2 * decades):
        place = float(np.interp(tick, knots, places))
        if knots[0] <= tick <= knots[-1] and all(abs(place - other) > 0.08 for other in ticks):
            ticks[place] = f"{tick:.3g}" if tick < 1000 else f"{tick:.0f}"
    return np.interp(epochs, knots, places), dict(sorted(ticks.items()))


def _shortened(names: Sequence[str], width: int = 24) -> list[str]:
    """The ends of names, as short as keeps them apart, but no shorter than the width."""
    for length in range(width, max(map(len, names), default=0)):
        short = [name if len(name) <= length else f"…{name[1 - length :]}" for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)
