"""Scalars to every logger of the trainer and to ``trainer.callback_metrics``."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import torch

from lightning_info.replica.isolation import exits_are_errors


def report_scalars(trainer: Any, values: Mapping[str, float], step: int, kept: Container[str] = ()) -> list[Exception]:
    """Write values at a step; directly, as ``LightningModule.log`` would repeat a sparse value at later steps.

    Args:
        trainer: The trainer.
        values: Values by tag.
        step: Optimiser steps taken.
        kept: Monitored tags: values that are not finite go to the loggers only, and ``callback_metrics`` keeps what it
            has, as ``EarlyStopping`` ends a run on NaN.

    Returns:
        Exceptions raised by loggers; the others still got the values.
    """
    trainer.callback_metrics.update(
        {tag: torch.tensor(v) for tag, v in values.items() if math.isfinite(v) or tag not in kept}
    )
    errors: list[Exception] = []
    for logger in trainer.loggers:
        try:
            with exits_are_errors(f"the logger {type(logger).__name__}"):
                logger.log_metrics(dict(values), step=step)
        except Exception as error:
            errors.append(error)
    return errors
