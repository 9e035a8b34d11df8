"""Figures, and the loggers that take them. No pyplot state: nothing stays open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lightning_info.reporting.sinks import Sink, serve

Curve = Sequence[tuple[int, float]]


def report_figure(trainer: Any, tag: str, figure: Figure, step: int) -> list[Exception]:
    """Hand a figure to every logger that takes figures (TensorBoard, W&B, MLflow); the others are passed over.

    Args:
        trainer: The trainer.
        tag: Name of the figure.
        figure: The figure.
        step: Optimiser steps taken.

    Returns:
        What loggers raised; the others still got the figure.
    """
    return serve(trainer, _SINKS, tag, figure, step)


def _to_tensorboard(logger: Any, tag: str, figure: Figure, step: int) -> None:
    logger.experiment.add_figure(tag, figure, global_step=step)


def _to_wandb(logger: Any, tag: str, figure: Figure, step: int) -> None:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    logger.log_image(key=tag, images=[np.asarray(canvas.buffer_rgba())], step=step)


def _to_mlflow(logger: Any, tag: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(run_id=logger.run_id, figure=figure, artifact_file=f"{tag}/step={step:06d}.png")


_SINKS: Sequence[Sink] = (
    (("experiment.add_figure",), _to_tensorboard),
    (("log_image",), _to_wandb),
    (("run_id", "experiment.log_figure"), _to_mlflow),  # Comet has a log_figure too, and no run_id
)


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
