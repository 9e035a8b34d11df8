"""Histograms, and the loggers that take them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_info.reporting.sinks import Sink, serve

MAX_VALUES = 10_000
BINS = 64
"""Number of bins in TensorBoard, of equal width over all values. It draws 30 of them; W&B makes 64 itself."""


def report_histogram(trainer: Any, tag: str, values: Tensor, step: int) -> list[Exception]:
    """Hand values to every logger that makes histograms of them (TensorBoard, W&B); the others are skipped.

    Args:
        trainer: The trainer.
        tag: Name of the histogram.
        values: Values of any shape and real type. Only ``MAX_VALUES`` of them are used, evenly spread, and non-finite
            ones are left out; if none are left there is no histogram. A share p of the values is then known to within
            about ``sqrt(p (1 - p) / MAX_VALUES)``.
        step: Optimiser steps taken.

    Returns:
        Exceptions raised by loggers; the others still got the values.
    """
    taken = _thinned(values.detach().flatten()).cpu().double().numpy()
    taken = taken[np.isfinite(taken)]
    return serve(trainer, _SINKS, tag, taken, step) if len(taken) else []


def _thinned(values: Tensor) -> Tensor:
    """Return one value from each of ``MAX_VALUES`` equal stretches."""
    return values if len(values) <= MAX_VALUES else values.index_select(0, _places(len(values)).to(values.device))


@lru_cache(maxsize=64)
def _places(count: int) -> Tensor:
    """Return the indices of the values that are used, out of so many."""
    i = torch.arange(MAX_VALUES, dtype=torch.float64)
    golden = i * 0.6180339887498949 % 1  # the place in a stretch; a fixed one would align with the units of a layer
    return ((i + golden) * (count / MAX_VALUES)).long().clamp_(max=count - 1)


def _to_tensorboard(logger: Any, tag: str, values: NDArray[np.float64], step: int) -> None:
    # its own bins, hundreds of them around zero, take more time than all the rest and are drawn as 30 anyway
    logger.experiment.add_histogram(tag, values, global_step=step, bins=_edges(values.min(), values.max()))


def _edges(low: float, high: float) -> NDArray[np.float64]:
    """Return the edges of the bins, ``(BINS + 1,)``, the first just below the smallest value, as bins exclude it.

    The width of halves is finite for all finite values.
    """
    edges = np.minimum(2 * np.linspace(low / 2, high / 2, BINS + 1), high)
    edges[0], edges[-1] = math.nextafter(low, -math.inf), high
    return edges


def _to_wandb(logger: Any, tag: str, values: NDArray[np.float64], step: int) -> None:
    wandb = sys.modules.get("wandb")  # a W&B logger has imported it
    if wandb is not None:
        logger.log_metrics({tag: wandb.Histogram(values)}, step=step)


_SINKS: Sequence[Sink] = (
    (("experiment.add_histogram",), _to_tensorboard),
    (("log_image",), _to_wandb),
)
