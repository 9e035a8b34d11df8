"""Histograms, and the loggers that take them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_info.reporting.sinks import Sink, serve

MAX_VALUES = 10_000


def report_histogram(trainer: Any, tag: str, values: Tensor, step: int) -> list[Exception]:
    """Hand values to every logger that makes histograms of them (TensorBoard, W&B); the others are passed over.

    Args:
        trainer: The trainer.
        tag: Name of the histogram.
        values: Of any shape and real type. Only ``MAX_VALUES`` of them are taken, evenly, and non-finite ones are
            left out; where none is left there is no histogram.
        step: Optimiser steps taken.

    Returns:
        What loggers raised; the others still got the values.
    """
    taken = _thinned(values.detach().flatten()).cpu().double().numpy()
    taken = taken[np.isfinite(taken)]
    return serve(trainer, _SINKS, tag, taken, step) if len(taken) else []


def _thinned(values: Tensor) -> Tensor:
    """One value out of each of ``MAX_VALUES`` equal stretches."""
    stretch = len(values) / MAX_VALUES
    if stretch <= 1:
        return values
    i = torch.arange(MAX_VALUES, dtype=torch.float64)
    golden = i * 0.6180339887498949 % 1  # the place in a stretch; a fixed one falls into step with the units of a layer
    index = ((i + golden) * stretch).long().clamp_(max=len(values) - 1)
    return values[index.to(values.device)]


def _to_tensorboard(logger: Any, tag: str, values: NDArray[np.float64], step: int) -> None:
    logger.experiment.add_histogram(tag, values, global_step=step)


def _to_wandb(logger: Any, tag: str, values: NDArray[np.float64], step: int) -> None:
    wandb = sys.modules.get("wandb")  # whoever made a logger of W&B has imported it
    if wandb is not None:
        logger.log_metrics({tag: wandb.Histogram(values)}, step=step)


_SINKS: Sequence[Sink] = (
    (("experiment.add_histogram",), _to_tensorboard),
    (("log_image",), _to_wandb),
)
