"""Squared norms of per-sample gradients: what the rules of several layer types share.

A rule takes the layer's input ``x`` (the conjugate of a complex one) and the gradient ``g`` at its output (or a product
of them), sample axis first, and returns ``(N,)``: the squared norm of the gradient that each sample alone sends to the
parameter. No gradient of all samples is ever kept: where a Gram matrix over positions is cheaper it is used, otherwise
samples are done in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_info.gradients.memory import LIMITS
from lightning_info.gradients.real import as_real

LONGEST = 1 << 16
"""Numbers of one sum; a longer one in single precision would lose digits."""


def squared_norm(gradient: Tensor) -> Tensor:
    """``(N, ...) -> (N,)``, of complex numbers that of their moduli."""
    gradient = as_real(gradient)
    if gradient.dim() == 1:
        return gradient.square()
    flat = gradient if gradient.dim() == 2 else gradient.flatten(1)
    if flat.shape[1] <= LONGEST:
        norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return norm.square()
    parts = torch.split(flat, LONGEST, 1)
    return torch.stack([torch.linalg.vector_norm(part, dim=1).square() for part in parts]).sum(0)


def last_axes(g: Tensor, axes: int) -> Tensor:
    """Weight or bias over the last ``axes`` axes: the axes between them and the sample axis are summed."""
    return squared_norm(sum_positions(g, axes))


def sum_positions(g: Tensor, axes: int) -> Tensor:
    """Sum over the axes between the sample axis and the last so many."""
    between = tuple(range(1, g.dim() - axes))
    if all(g.shape[axis] == 1 for axis in between):
        return g.reshape(len(g), *g.shape[g.dim() - axes :])
    return g.sum(between)


def channels(g: Tensor) -> Tensor:
    """Weight or bias per channel: ``g (N, C, *)``, the axes behind C are summed."""
    return squared_norm(sum_channels(g))


def sum_channels(g: Tensor) -> Tensor:
    """``(N, C, *) -> (N, C)``."""
    return g.flatten(2).sum(2) if g.dim() > 2 else g


def chunks(x: Tensor, g: Tensor, elements_per_sample: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some samples of both at a time: so many elements a sample stay within :attr:`~.memory.Limits.temporary`."""
    size = max(1, LIMITS.temporary // max(1, elements_per_sample))
    return zip(torch.split(x, size), torch.split(g, size), strict=True)
