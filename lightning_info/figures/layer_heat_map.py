"""The heat map of a quantity by layer over training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lightning_info.reporting.table import Curve


def layer_heat_map(curves: Mapping[str, Curve], title: str, unit: str) -> Figure:
    """Heat map of one non-negative quantity per layer over training: layers downwards, measured steps to the right.

    Args:
        curves: ``layer -> [(step, value), ...]`` in the order of depth; zero and missing values stay grey.
        title: What the colours show.
        unit: Label of the colour bar.
    """
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    values = np.array([[dict(curve).get(step, np.nan) for step in steps] for curve in curves.values()])
    figure = Figure(figsize=(5, 1.5 + 0.2 * min(len(curves), 60)), layout="constrained")
    axes = figure.add_subplot()
    shown = values[np.isfinite(values) & (values > 0)]
    norm = LogNorm(max(shown.min(), shown.max() / 1e6), shown.max()) if len(shown) else None
    mesh = axes.pcolormesh(np.ma.masked_invalid(np.where(values > 0, values, np.nan)), norm=norm, cmap="viridis")
    axes.set_facecolor("0.85")
    axes.invert_yaxis()
    labels = list(curves)
    every = max(1, len(labels) // 60)
    axes.set_yticks(np.arange(len(labels))[::every] + 0.5, labels[::every], fontsize=8)
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 8)).round().astype(int))
    axes.set_xticks(ticks + 0.5, [str(steps[i]) for i in ticks])
    axes.set_xlabel("optimiser steps (measured points, evenly spaced)")
    axes.set_title(title, fontsize=10)
    if norm is not None:
        figure.colorbar(mesh, label=unit)
    return figure
