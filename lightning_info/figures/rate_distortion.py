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


def rate_distortion(curves: Mapping[float, Sequence[RatePoint]], beta: float, caption: str = "") -> Figure:
    """The rise of the loss under weight noise by level β, and the loss against the nats that the weights hold.

    Measured (points with one standard error) and predicted to second order (dashed), a colour for each epoch. Points
    are hollow where the two differ; a cross marks the lowest level at which they do. Of the KL the second picture shows
    what depends on the noise; the legend has the rest, of the displacement of the weights.

    Args:
        curves: ``epoch -> levels`` in rising order; at least one.
        beta: The level that is logged, drawn larger.
        caption: Printed below.
    """
    figure = NotebookFigure(figsize=(10, 4.4))
    rise, plane = figure.subplots(1, 2)
    for axes in (rise, plane):
        axes.set_title("", y=1)  # else a place is looked for
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(curves)))
    for colour, (epoch, points) in zip(colours, curves.items(), strict=True):
        main = next(point for point in points if point.beta == beta)
        further = "" if math.isnan(main.displacement) else f", {main.displacement:.4g} nats displaced"
        _draw(rise, points, [p.beta for p in points], points[0].quiet, beta, colour)
        nats = [point.information - point.displacement for point in points]
        _draw(plane, points, nats, 0.0, beta, colour, label=f"epoch {epoch:.3g}{further}")
    rises = [abs(p.predicted - p.quiet) for points in curves.values() for p in points]
    rise.set_yscale("symlog", linthresh=max(min(rises), 1e-12))
    rise.set_xscale("log")
    rise.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    rise.set_xlabel("level β")
    rise.set_ylabel("rise of the expected loss [nats per sample]")
    plane.set_xscale("log")
    if all(p.loss > 0 for points in curves.values() for p in points if math.isfinite(p.loss)):
        plane.set_yscale("log")
    plane.set_xlabel("information in the weights, without displacement [nats]")
    plane.set_ylabel("expected loss [nats per sample]")
    marks = [
        Line2D([], [], color="0.3", linestyle="--", label="quadratic prediction"),
        Line2D(
            [], [], color="0.3", marker="o", markerfacecolor="white", linestyle="", label="measured, differs from it"
        ),
        Line2D([], [], color=DIFFERS, marker="x", linestyle="", label="lowest level that differs"),
        Line2D([], [], color="0.3", marker="o", markersize=8, linestyle="", label=f"β = {beta:g}"),
    ]
    rise.legend(handles=marks, fontsize=7, loc="upper left")
    plane.legend(fontsize=7, loc="upper right")
    figure.suptitle("Rate-distortion of the weights", fontsize=11)
    caption = fill(caption, 180)
    figure.supxlabel(caption, fontsize=7)
    set_margins(figure, left=0.9, right=0.15, bottom=0.6 + lines_height(caption, 7), top=0.4, across=0.9)
    return figure


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
