"""The global random number generators of the CPU, of one device, of numpy and of Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch


class RandomState(NamedTuple):
    """States of all global generators."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: torch.Tensor | None

    def comparable(self) -> tuple[Any, ...]:
        """Return the states in a form that ``==`` can compare."""
        tensors = [None if state is None else state.cpu().numpy().tobytes() for state in (self.cpu, self.device)]
        return self.python, self.numpy[1].tobytes(), self.numpy[2:], *tensors


def random_state(device: torch.device) -> RandomState:
    """Return the current states.

    Args:
        device: The accelerator, if any, whose generator counts too.
    """
    accelerator = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return RandomState(random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator)  # noqa: NPY002


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Restore what :func:`random_state` returned."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)  # noqa: NPY002
    torch.set_rng_state(state.cpu)
    if state.device is not None:
        torch.get_device_module(device).set_rng_state(state.device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restore all generators at the end."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


def seed_all(seed: int) -> None:
    """Start every global generator from one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
