"""The rate-distortion curve of the weights as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lightning_info.figures.margins import lines_height, set_margins
from lightning_info.figures.notebook_figure import NotebookFigure
from lightning_info.functional.rate_distortion import RatePoint, parting

DIFFERS = "#d55e00"
"""Of Okabe and Ito."""
WIDTH, HEIGHT, SMALL, LETTERS = 5.4, 3.2, 8, 82
"""Width of the figure and height of a picture, inches; size of small text, points, and letters on a line of it."""


def rate_distortion(curves: Mapping[float, Sequence[RatePoint]], beta: float, caption: str = "") -> Figure:
    """The rise of the loss under weight noise by level β, and the loss against the nats that the weights hold.

    Measured (points with one standard error) and predicted to second order (dashed), a colour for each epoch. Points
    are hollow where the two differ; a cross marks the lowest level at which they do. Of the KL the second picture shows
    what depends on the noise; the legend has the rest, of the displacement of the weights. One picture is below the
    other, as TensorBoard shows a figure 300 pixels wide.

    Args:
        curves: ``epoch -> levels`` in rising order; at least one.
        beta: The level that is logged, drawn larger.
        caption: Printed below.
    """
    names = [f"epoch {epoch:.3g}{_further(points, beta)}" for epoch, points in curves.items()]
    caption = fill(caption, LETTERS)
    shown = [lines_height("\n" * (rows - 1), SMALL) + 0.1 for rows in (2, (len(names) + 1) // 2)]
    below = lines_height(caption, SMALL) + 0.05
    top, bottom, between = 0.4, 0.6 + shown[1] + below, 0.75 + shown[0]
    figure = NotebookFigure(figsize=(WIDTH, top + 2 * HEIGHT + between + bottom))
    rise, plane = figure.subplots(2, 1)
    for axes in (rise, plane):
        axes.set_title("", y=1)  # else a place is looked for
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(curves)))
    for colour, name, points in zip(colours, names, curves.values(), strict=True):
        _draw(rise, points, [p.beta for p in points], points[0].quiet, beta, colour)
        nats = [point.information - point.displacement for point in points]
        _draw(plane, points, nats, 0.0, beta, colour, label=name)
    least = min(abs(p.predicted - p.quiet) for points in curves.values() for p in points)
    rise.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(max(least, 1e-12))))  # a tick of its own
    rise.set_xscale("log")
    rise.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    rise.set_xlabel("level β")
    rise.set_ylabel("rise of the loss [nats/sample]")
    plane.set_xscale("log")
    if all(p.loss > 0 for points in curves.values() for p in points if math.isfinite(p.loss)):
        plane.set_yscale("log")
    plane.set_xlabel("information in the weights without displacement [nats]")
    plane.set_ylabel("expected loss [nats/sample]")
    marks = [
        Line2D([], [], color="0.3", linestyle="--", label="quadratic prediction"),
        Line2D(
            [], [], color="0.3", marker="o", markerfacecolor="white", linestyle="", label="measured, differs from it"
        ),
        Line2D([], [], color=DIFFERS, marker="x", linestyle="", label="lowest level that differs"),
        Line2D([], [], color="0.3", marker="o", markersize=8, linestyle="", label=f"β = {beta:g}"),
    ]
    height = figure.get_figheight()
    for axes, handles, lowest in ((rise, marks, bottom + HEIGHT + between - 0.5), (plane, None, bottom - 0.5)):
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, lowest / height), "bbox_transform": figure.transFigure}
        axes.legend(handles=handles, ncols=2, fontsize=SMALL, frameon=False, borderaxespad=0, **place)
    figure.suptitle("Rate-distortion of the weights", fontsize=11)
    figure.supxlabel(caption, fontsize=SMALL)
    set_margins(figure, left=0.85, right=0.15, bottom=bottom, top=top, down=between)
    return figure


def _further(points: Sequence[RatePoint], beta: float) -> str:
    displaced = next(point for point in points if point.beta == beta).displacement
    return "" if math.isnan(displaced) else f", {displaced:.4g} nats displaced"


def _draw(
    axes: Axes,
    points: Sequence[RatePoint],
    x: Sequence[float],
    origin: float,
    beta: float,
    colour: Any,
    label: str | None = None,
) -> None:
    axes.plot(x, [point.loss - origin for point in points], color=colour, linewidth=1.3, label=label)
    axes.plot(x, [point.predicted - origin for point in points], color=colour, linewidth=1, linestyle="--")
    for is_main, parts in product((False, True), repeat=2):
        chosen = [i for i, p in enumerate(points) if (p.beta == beta, p.parts) == (is_main, parts)]
        if chosen:
            axes.errorbar(
                [x[i] for i in chosen],
                [points[i].loss - origin for i in chosen],
                [np.nan_to_num(points[i].stderr) for i in chosen],
                color=colour,
                fmt="o",
                markersize=8 if is_main else 4.5,
                markerfacecolor="white" if parts else colour,
            )
    lowest = parting(points)
    for at, point in zip(x, points, strict=True):
        if point.beta == lowest:
            axes.plot(at, point.loss - origin, "x", color=DIFFERS, markersize=6, zorder=4)
