"""Figures for print, one file each: the curves of groups of runs, and what the runs drew themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.figures.interactive.style import DASHES, colours
from lightning_info.figures.layer_heat_map import layer_heat_map
from lightning_info.run_logs.groups import RunGroup, banded
from lightning_info.run_logs.run_texts import ceilings
from lightning_info.views.curves import layer_of
from lightning_info.views.panel import Contents
from lightning_info.views.words import words

_STROKES = dict(zip(DASHES, ("-", "--", ":", "-.", (0, (8, 3)), (0, (8, 3, 2, 3))), strict=True))


def printed(groups: Sequence[RunGroup], folder: Path, suffix: str = ".svg") -> list[Path]:
    """Write a figure for each quantity, and the heat map and the plane of each run.

    Args:
        groups: Runs.
        folder: Where to; it is made.
        suffix: ``.svg``, ``.pdf`` or ``.png``.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = [run for group in groups for run in group.runs]
    contents = Contents.of(runs)
    drawn: dict[str, Callable[[], Figure]] = {}
    for quantity, tags in contents.quantities.items():
        drawn[quantity] = lambda quantity=quantity, tags=tags: _curves(quantity, tags, groups)  # type: ignore[misc]
        if contents.tags[tags[0]].family.endswith("_layers"):
            for group in groups:
                drawn[f"{quantity}_map_{group.name}"] = lambda tags=tags, group=group: _map(tags, group)  # type: ignore[misc]
    for group in groups:
        for start in dict.fromkeys(f"{t.prefix}{t.family}" for t in contents.tags.values() if t.kind == "I_XT"):
            drawn[f"{start}_plane_{group.name}"] = lambda start=start, group=group: _plane(start, group)  # type: ignore[misc]
    files = []
    for name, draw in drawn.items():
        file = folder / f"{_safe(name)}{suffix}"
        draw().savefig(file, dpi=150)
        files.append(file)
    return files


def _curves(quantity: str, tags: Sequence[str], groups: Sequence[RunGroup]) -> Figure:
    told = words((run for group in groups for run in group.runs), tags[0])
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    by_layer = len(tags) > 1
    shades = colours(len(tags) if by_layer else len(groups))
    for i, tag in enumerate(tags):
        for j, group in enumerate(groups):
            curve = banded(group, tag)
            if curve is None:
                continue
            shade, stroke = (shades[i], _STROKES[DASHES[j % len(DASHES)]]) if by_layer else (shades[j], "-")
            name = " · ".join(filter(None, [layer_of(tag) if by_layer else "", group.name if len(groups) > 1 else ""]))
            axes.plot(curve.steps, curve.values, color=shade, linestyle=stroke, label=name or None, linewidth=1.3)
            known = np.isfinite(curve.low) & np.isfinite(curve.high)
            axes.fill_between(curve.steps, curve.low, curve.high, where=known, color=shade, alpha=0.18, linewidth=0)
    axes.set(xlabel="optimiser steps", ylabel=f"{quantity} [{told.unit}]" if told.unit else quantity)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False)
    return figure


def _map(tags: Sequence[str], group: RunGroup) -> Figure:
    curves = {layer_of(tag): banded(group, tag) for tag in tags}
    there = {layer: list(zip(c.steps, c.values.tolist(), strict=True)) for layer, c in curves.items() if c}
    return layer_heat_map(there, group.name, words(group.runs, tags[0]).unit)


def _plane(start: str, group: RunGroup) -> Figure:
    layers = list(
        dict.fromkeys(layer_of(t) for run in group.runs for t in run.curves if t.startswith(f"{start}/I_XT/"))
    )
    top = ceilings(group.runs[0], start.rpartition("/")[2])
    paths: list[PlaneCurve] = []
    steps: set[int] = set()
    for layer in layers:
        x, y = (banded(group, f"{start}/{kind}/{layer}") for kind in ("I_XT", "I_TY"))
        if x is None:
            continue
        up = np.full(len(x.steps), np.nan) if y is None else np.interp(x.steps, y.steps, y.values)
        steps.update(x.steps)
        is_grey = bool((x.values[np.isfinite(x.values)] > top.x - top.bit).all())
        paths.append(PlaneCurve(layer, list(zip(x.steps, x.values.tolist(), up.tolist(), strict=True)), is_grey))
    order = sorted(steps)
    epochs = dict(zip(order, group.runs[0].epochs(order) or map(float, order), strict=True))
    return information_plane(
        paths,
        title=f"{start}: {group.name}",
        ceiling_x=top.x,
        ceiling_y=top.y if top.is_entropy else math.inf,
        epochs=epochs,
        unit="bits" if top.bit == 1 else "nats",
    )


def _safe(name: str) -> str:
    """A name of a file of a name of runs and tags."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("._") or "figure"
