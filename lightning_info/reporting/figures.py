"""The loggers that take figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_info.reporting.sinks import Sink, serve


def report_figure(trainer: Any, tag: str, figure: Figure, step: int) -> list[Exception]:
    """Hand a figure to every logger that takes figures (TensorBoard, W&B, MLflow, Comet); the others are skipped.

    Args:
        trainer: The trainer.
        tag: Name of the figure.
        figure: The figure.
        step: Optimiser steps taken.

    Returns:
        Exceptions raised by loggers; the others still got the figure.
    """
    return serve(trainer, _SINKS, tag, figure, step)


def _to_tensorboard(logger: Any, tag: str, figure: Figure, step: int) -> None:
    # its add_figure imports pyplot
    logger.experiment.add_image(tag, _pixels(figure)[:, :, :3], global_step=step, dataformats="HWC")


def _to_wandb(logger: Any, tag: str, figure: Figure, step: int) -> None:
    logger.log_image(key=tag, images=[_pixels(figure)], step=step)


def _to_mlflow(logger: Any, tag: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(run_id=logger.run_id, figure=figure, artifact_file=f"{tag}/step={step:06d}.png")


def _to_comet(logger: Any, tag: str, figure: Figure, step: int) -> None:
    logger.experiment.log_figure(figure_name=tag, figure=figure, step=step)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return red, green, blue and opacity, ``(height, width, 4)``."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


_SINKS: Sequence[Sink] = (
    (("experiment.add_image",), _to_tensorboard),
    (("log_image",), _to_wandb),
    (("run_id", "experiment.log_figure"), _to_mlflow),
    (("experiment.log_figure",), _to_comet),
)
