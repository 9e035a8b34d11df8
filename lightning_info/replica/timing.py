"""Seconds of a call, and of a plain training pass on a snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from lightning_info.gradients.contract import trainable
from lightning_info.replica.snapshot import ModelSnapshot

LONG = 0.2
"""Seconds of a call that is timed once."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """What a call takes, once."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def trial(run: Callable[[], object], device: torch.device) -> float:
    """What a call takes: the lower of two times, as the first is a cold start; of long ones that matters little."""
    first = seconds(run, device)
    return first if first > LONG else min(first, seconds(run, device))


def training_pass(snapshot: ModelSnapshot, batch: Any) -> float:
    """Seconds of a plain forward and backward pass over some samples."""
    parameters = list(trainable(snapshot.module).values())

    def run() -> None:
        outputs = snapshot.outputs(snapshot.module, batch)
        if outputs.requires_grad:
            torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)

    return trial(run, snapshot.device)
