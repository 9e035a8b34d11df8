"""The paths of a run and its twin as a figure, in the form of Achille, Paolini & Soatto (2020), figure 2."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_info.probing.plane_picture import Ellipse, PlanePicture
from lightning_info.probing.weight_paths import Paths

LEVELS = 9
"""Contours of the loss."""
STRETCH = 4.0
"""The axes have one scale unless the picture is so many times wider than high, or the reverse."""
RUN, TWIN, LOSS, ELLIPSES = "tab:green", "tab:red", "tab:blue", ("-", "--")

Array = NDArray[np.float64]


def stability_paths(picture: PlanePicture, *, title: str, caption: str = "") -> Figure:
    """Both paths in the plane of ``w_0, w_T, w'_T``, contours of the loss, ellipses of the inverse projected F.

    Args:
        picture: What to draw.
        title: What was replaced, and when it was measured.
        caption: Printed below what the picture itself has to say.
    """
    x, y = picture.x.numpy(), picture.y.numpy()
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.add_subplot()
    _contours(axes, picture)
    for name, shape, style in zip(picture.ellipses, picture.ellipses.values(), ELLIPSES, strict=False):
        _ellipse(axes, name, shape, picture.paths.run[-1].numpy(), style)
    _paths(axes, picture.paths)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    stretch = (x[-1] - x[0]) / (y[-1] - y[0])
    if 1 / STRETCH <= stretch <= STRETCH:
        axes.set_aspect("equal")
        scale = "one scale for both axes"
    else:
        scale = f"vertical axis stretched {stretch:.2g} times" if stretch > 1 else f"squeezed {1 / stretch:.2g} times"
    across = "towards w′$_T$" if picture.second == "twin" else "a random direction"
    axes.set(xlabel="distance from w$_0$ towards w$_T$", ylabel=f"distance across, {across}")
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    notes = [*_notes(picture), scale, *([caption] if caption else [])]
    axes.set_title("; ".join(notes), fontsize=7, color="0.3", wrap=True)
    return figure


def _paths(axes: Axes, paths: Paths) -> None:
    for points, colour, name, end in ((paths.twin, TWIN, "twin w′", "s"), (paths.run, RUN, "run w", "o")):
        x, y = points.numpy().T
        axes.plot(x, y, color=colour, linewidth=1.4, marker=".", markersize=4, label=name)
        axes.plot(x[-1:], y[-1:], color=colour, marker=end, markersize=7, markeredgecolor="black", linestyle="")
    axes.plot(*paths.run[:1].numpy().T, color="black", marker="o", markersize=5)
