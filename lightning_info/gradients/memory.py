"""Memory: how much per-sample gradients may take, and how allocators say that there is none left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import nn

from lightning_info.gradients.contract import trainable


@dataclass
class Limits:
    """How much the engines may take at once, read where it is used: change :data:`LIMITS` for a larger device.

    Attributes:
        copies: Bytes of the per-sample gradients of one chunk of samples (256 MiB).
        gram: Bytes of a chunk of samples on the way to a Gram matrix, as estimated from the operators' inputs (2 GiB);
            the matrix comes on top.
        columns: Bytes of the columns that a Gram product makes at once (128 MiB).
        temporary: Elements of one temporary of a squared norm (16 MiB in float32).
    """

    copies: int = 1 << 28
    gram: int = 1 << 31
    columns: int = 1 << 27
    temporary: int = 1 << 22


LIMITS = Limits()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller chunk may help."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)


def gradients_at_once(module: nn.Module) -> int:
    """How many gradients of all trained weights, twice, stay within :attr:`Limits.copies`."""
    size = sum(p.numel() * p.element_size() for p in trainable(module).values())
    return max(1, LIMITS.copies // max(1, 2 * size))
