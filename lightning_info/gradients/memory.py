"""Memory: how much per-sample gradients may take, and how allocators say that there is none left."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import nn

from lightning_info.gradients.contract import trainable

BUDGET = 1 << 28
"""Bytes that the per-sample gradients of one chunk of samples may take (256 MiB)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller chunk may help."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


def gradients_at_once(module: nn.Module) -> int:
    """How many gradients of all trained weights, twice, stay within :data:`BUDGET`."""
    size = sum(p.numel() * p.element_size() for p in trainable(module).values())
    return max(1, BUDGET // max(1, 2 * size))
