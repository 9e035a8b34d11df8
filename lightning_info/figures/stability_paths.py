"""The paths of a run and its twin as a figure, in the form of Achille, Paolini & Soatto (2020), figure 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from torch import Tensor

from lightning_info.figures.margins import lines_height, set_margins
from lightning_info.figures.notebook_figure import NotebookFigure

LEVELS = 11
"""Contours of the loss, evenly spaced in area."""
FLAT = 4.0
"""Paths so many times longer than wide are drawn once more with their width stretched."""
ROUNDING = 1e-6
"""Unless the width is of rounding errors."""
RUN, TWIN, LOSS, FISHER = "#0072b2", "#d55e00", "0.55", "#cc79a7"
"""Of Okabe and Ito, told apart by colour-blind people too."""
WIDTH, HEIGHT, SMALL = 5.4, 3.6, 8
"""Width of the figure and height of a picture, inches; size of small text, points."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Paths:
    """Two paths in a plane.

    Attributes:
        steps: Optimiser steps, ``n`` of them, rising.
        run: Coordinates of the one, ``(n, 2)`` float64.
        twin: Of the other.
        share: Share of the weights that they were computed from.
        stderr: Largest standard error of a coordinate that is due to this share, ``(2,)``; 0 with all weights.
        away: Largest distance of a point of the first path from the plane.
    """

    steps: list[int]
    run: Tensor
    twin: Tensor
    share: float
    stderr: Tensor
    away: float


class Ellipse(NamedTuple):
    """Where ``cᵀ C⁻¹ c = 1``, around ``w_T``.

    Attributes:
        axes: Its half-axes, as columns ``(2, 2)`` float64; the longer one first.
        factor: By which it has to be drawn larger to be seen whole.
    """

    axes: Tensor
    factor: float


@dataclass(frozen=True)
class LossLandscape:
    """All that the figure shows, in coordinates of the plane.

    Attributes:
        paths: Of the run and of the twin.
        ellipses: By the name of the Fisher information that they come from.
        x: Columns of the grid, float64.
        y: Rows of the grid, float64.
        loss: Mean loss of a sample, nats, ``(rows, columns)`` float64; NaN where it is not finite. None if there are
            no targets to take a loss at.
        samples: How many the loss is of.
        second: See :class:`~.WeightPlane`.
    """

    paths: Paths
    ellipses: Mapping[str, Ellipse]
    x: Tensor
    y: Tensor
    loss: Tensor | None
    samples: int
    second: str


def stability_paths(picture: LossLandscape, *, title: str, caption: str = "") -> Figure:
    """Both paths in the plane of ``w_0, w_T, w'_T``, contours of the loss, ellipses of the inverse projected F.

    At one scale for both axes; below it, where the paths are hardly apart, across stretched, and the ellipses at their
    size: not beside it, as TensorBoard shows a figure 300 pixels wide.

    Args:
        picture: What to draw.
        title: What was replaced, and when it was measured.
        caption: What else one must know, printed below.
    """
    paths = picture.paths
    points = np.concatenate([paths.run.numpy(), paths.twin.numpy()])
    spans = np.ptp(points, axis=0)
    is_flat = ROUNDING < spans[1] / spans[0] < 1 / FLAT
    share = f"; paths from {100 * paths.share:.2g} % of the weights" if paths.share < 1 else ""
    title = fill(title + share, 60)
    notes = fill("; ".join([*_notes(picture), *([caption] if caption else [])]), 78)
    rows = 2 + len(picture.ellipses)  # of the legend
    top, bottom, between = 0.3 + lines_height(title, 10), 0.6 + lines_height(notes + rows * "\n", SMALL), 0.9
    figure = NotebookFigure(figsize=(WIDTH, top + HEIGHT + is_flat * (between + HEIGHT) + bottom))
    plane = figure.add_subplot(2 if is_flat else 1, 1, 1)
    _contours(plane, picture)
    _ellipses(plane, picture, [shape.factor for shape in picture.ellipses.values()])
    _paths(plane, paths)
    plane.set(xlim=picture.x[[0, -1]].tolist(), ylim=picture.y[[0, -1]].tolist(), aspect="equal")
    plane.set_title("one scale", fontsize=9, y=1)
    across = "towards w'$_T$" if picture.second == "twin" else "in a random direction"
    plane.set(xlabel="from w$_0$ towards w$_T$", ylabel=f"across, {across}")
    handles, labels = plane.get_legend_handles_labels()
    if is_flat:
        near = figure.add_subplot(2, 1, 2)
        _ellipses(near, picture, [1.0] * len(picture.ellipses))
        _paths(near, paths)
        low, high = points.min(0) - 0.1 * spans, points.max(0) + 0.1 * spans
        near.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=plane.get_xlabel(), ylabel=plane.get_ylabel())
        near.set_box_aspect(1)
        near.set_title(f"across stretched {_short(spans[0] / spans[1])} times; ellipses at their size", fontsize=9, y=1)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        handles=handles,
        labels=labels,
        loc="lower center",
        title=notes,
        fontsize=SMALL,
        title_fontsize=SMALL,
        frameon=False,
    )
    set_margins(figure, left=0.85, right=0.2, bottom=bottom, top=top, down=between)
    return figure


def _paths(axes: Axes, paths: Paths) -> None:
    for points, colour, name, end, size in (
        (paths.twin, TWIN, "w', one sample replaced", "s", 1.3),
        (paths.run, RUN, "w, the run", "o", 1.0),  # on top of the twin's, which shows where they are one
    ):
        x, y = points.numpy().T
        axes.plot(x, y, color=colour, linewidth=1.4 * size, marker=".", markersize=4 * size, label=name)
        axes.plot(x[-1], y[-1], color=colour, marker=end, markersize=6 * size, markeredgecolor="black", linestyle="")
    axes.plot(*paths.run[:1].numpy().T, color="black", marker="o", markersize=5)


def _ellipses(axes: Axes, picture: LossLandscape, factors: list[float]) -> None:
    centre, angle = picture.paths.run[-1].numpy(), np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    for (name, shape), factor, style in zip(picture.ellipses.items(), factors, ("-", "--"), strict=False):
        outline = centre + factor * circle @ shape.axes.numpy().T
        size = "" if factor == 1 else f", drawn {factor:g} times its size"
        label = f"β(N P {name} P$^T$)$^{{-1}}${size}"
        face = (*to_rgb(FISHER), 0.1) if style == "-" else "none"
        axes.add_patch(Polygon(outline, edgecolor=FISHER, facecolor=face, linewidth=1.4, linestyle=style, label=label))


def _contours(axes: Axes, picture: LossLandscape) -> None:
    if picture.loss is None:
        return
    loss = np.ma.masked_invalid(picture.loss.numpy())
    if loss.count() == 0:
        return
    quantiles = np.quantile(loss.compressed(), np.linspace(0, 1, LEVELS + 2))
    rounded = (np.unique([float(f"{level:.{digits}g}") for level in quantiles]) for digits in range(2, 9))
    levels = next((found for found in rounded if len(found) == len(quantiles)), np.unique(quantiles))
    lines = axes.contour(picture.x.numpy(), picture.y.numpy(), loss, levels, colors=LOSS, linewidths=0.8, alpha=0.7)
    axes.clabel(lines, fontsize=7, fmt="%.8g")


def _notes(picture: LossLandscape) -> list[str]:
    paths, notes = picture.paths, []
    if picture.loss is not None:
        notes.append(f"contours: loss of {picture.samples} samples [nats]")
    if picture.ellipses:
        notes.append("ellipses: where a change of w is ½ nat of unique information")
    notes.append(f"the run is up to {paths.away:.2g} away from the plane")
    if paths.share < 1:
        along, across = paths.stderr.tolist()
        notes.append(f"standard errors of the paths up to {along:.1g} along and {across:.1g} across")
    return notes


def _short(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
