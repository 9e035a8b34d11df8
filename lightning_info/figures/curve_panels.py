"""Curves of many quantities, a panel each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from lightning_info.figures.interactive.style import colours
from lightning_info.figures.margins import set_margins
from lightning_info.figures.notebook_figure import NotebookFigure
from lightning_info.reporting.table import Curve

MOST_PANELS = 24


def curve_panels(curves: Mapping[str, Curve], errors: Mapping[str, Mapping[int, float]]) -> Figure:
    """A panel for each quantity; tags with a last part in common but for the layer share one.

    Args:
        curves: ``tag -> [(step, value), ...]``; ``family/quantity`` or ``family/quantity/layer``. More than
            :data:`MOST_PANELS` quantities are left out.
        errors: ``tag -> {step: standard error}``, NaN where none is known; drawn as a band of 1.96 of them, at a
            single point as a bar.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for tag, curve in curves.items():
        family, _, rest = tag.partition("/")
        quantity, _, layer = rest.partition("/")
        is_family_of_layers = not layer and family.endswith("_layers")
        panel = family if is_family_of_layers else f"{family}/{quantity}"
        panels.setdefault(panel, {})[quantity if is_family_of_layers else layer] = [
            (step, value) for step, value in curve if math.isfinite(value)
        ]
    shown = list(panels.items())[:MOST_PANELS]
    columns = min(3, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = NotebookFigure(figsize=(4.2 * columns, 3.0 * rows))
    places = np.atleast_1d(np.array(figure.subplots(rows, columns, squeeze=False))).flatten()
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    for axes, (panel, lines) in zip(places, shown, strict=False):
        for (layer, curve), colour in zip(lines.items(), colours(len(lines)), strict=True):
            tag = f"{panel}/{layer}" if layer else panel
            steps, values = [step for step, _ in curve], np.array([value for _, value in curve])
            bar = 1.96 * np.array([errors.get(tag, {}).get(step, math.nan) for step in steps])
            if len(steps) == 1:
                found = None if np.isnan(bar).any() else bar
                axes.errorbar(steps, values, found, fmt="o", color=colour, capsize=3, label=layer)
                continue
            axes.plot(steps, values, color=colour, marker=".", label=layer)
            axes.fill_between(steps, values - bar, values + bar, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(panel, fontsize=10, y=1)
        axes.set_xlabel("optimiser steps")
        if len(lines) > 1:
            axes.legend(fontsize=8)
    set_margins(figure, left=0.85, right=0.2, bottom=0.55, top=0.3, across=0.95, down=0.85)
    return figure
