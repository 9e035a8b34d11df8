"""The heat map of a quantity by layer over training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lightning_info.figures.margins import set_margins, widest
from lightning_info.figures.notebook_figure import NotebookFigure
from lightning_info.reporting.table import Curve

PICTURE, BAR = 3.0, 4.0
"""Width of the map and largest height of the colour bar, inches."""


def layer_heat_map(curves: Mapping[str, Curve], title: str, unit: str) -> Figure:
    """Heat map of one non-negative quantity per layer over training: layers downwards, measured steps to the right.

    Args:
        curves: ``layer -> [(step, value), ...]`` in the order of depth; zero and missing values stay grey.
        title: What the colours show.
        unit: Label of the colour bar.
    """
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    values = np.array([[dict(curve).get(step, np.nan) for step in steps] for curve in curves.values()])
    labels = list(curves)
    left, right, bottom, top = 0.2 + widest(labels, 8), 1.2, 0.6, 0.4
    figure = NotebookFigure(figsize=(left + PICTURE + right, max(3.4, 1.5 + 0.2 * min(len(curves), 60))))
    axes = figure.add_subplot()
    shown = values[np.isfinite(values) & (values > 0)]
    norm = LogNorm(max(shown.min(), shown.max() / 1e6), shown.max()) if len(shown) else None
    mesh = axes.pcolormesh(np.ma.masked_invalid(np.where(values > 0, values, np.nan)), norm=norm, cmap="viridis")
    axes.set_facecolor("0.85")
    axes.invert_yaxis()
    every = max(1, len(labels) // 60)
    axes.set_yticks(np.arange(len(labels))[::every] + 0.5, labels[::every], fontsize=8)
    most = int(PICTURE / (0.1 + widest(map(str, steps), 8)))
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most, 8)).round().astype(int))
    axes.set_xticks(ticks + 0.5, [str(steps[i]) for i in ticks], fontsize=8)
    axes.set_xlabel("optimiser steps (measured points, evenly spaced)", fontsize=8)
    axes.set_title(title, fontsize=10, y=1)
    set_margins(figure, left, right, bottom, top)
    if norm is not None:
        width, height = figure.get_size_inches()
        high = min(BAR, height - bottom - top)
        place = ((left + PICTURE + 0.25) / width, (height - top - high) / height, 0.15 / width, high / height)
        figure.colorbar(mesh, cax=figure.add_axes(place)).set_label(unit, fontsize=8)
    return figure
