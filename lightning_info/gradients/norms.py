"""Squared norms of per-sample weight gradients, one pure function per kind of operator.

Each takes the operator's input ``x`` (the conjugate of a complex one) and the gradient ``g`` at its output (or a
product of them), sample axis first, and returns ``(N,)``: the squared norm of the gradient that each sample alone sends
to the weight. No gradient of all samples is ever kept: where a Gram matrix over positions is cheaper it is used,
otherwise samples are done in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_info.gradients.real import as_real

CHUNK = 1 << 22
"""Largest number of elements of one temporary (16 MiB in float32)."""


def squared_norm(gradient: Tensor) -> Tensor:
    """``(N, ...) -> (N,)``, of complex numbers that of their moduli."""
    gradient = as_real(gradient)
    if gradient.dim() == 1:
        return gradient.square()
    # one long float32 sum would lose digits
    parts = [torch.linalg.vector_norm(part, dim=1).square() for part in torch.split(gradient.flatten(1), 1 << 16, 1)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def outer(x: Tensor, g: Tensor) -> Tensor:
    """Squared norm of ``sum_l g_l x_lᵀ``, the gradient of a matrix that acts at every position l.

    Args:
        x: ``(N, L, I)``.
        g: ``(N, L, O)``.

    Returns:
        ``(N,)``.
    """
    _, length, i = x.shape
    o = g.shape[2]
    if length == 1:
        return squared_norm(x) * squared_norm(g)
    if length * (i + o) <= i * o:
        pairs = chunks(x, g, 2 * length * length)
        products = (torch.bmm(a, a.mH) * torch.bmm(b, b.mH) for a, b in pairs)
        return torch.cat([product.real.flatten(1).sum(1) for product in products]).clamp_min(0)
    return torch.cat([squared_norm(torch.bmm(b.mT, a)) for a, b in chunks(x, g, i * o)])


def linear_weight(x: Tensor, g: Tensor) -> Tensor:
    """``x (N, *, I)``, ``g (N, *, O)``."""
    return outer(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1]))


def last_axes(g: Tensor, axes: int) -> Tensor:
    """Weight or bias over the last ``axes`` axes: the axes between them and the sample axis are summed."""
    between = tuple(range(1, g.dim() - axes))
    return squared_norm(g.sum(between) if between else g)


def channels(g: Tensor) -> Tensor:
    """Weight or bias per channel: ``g (N, C, *)``, the axes behind C are summed."""
    return squared_norm(g.flatten(2).sum(2) if g.dim() > 2 else g)


def embedding_weight(index: Tensor, g: Tensor, padding_idx: int | None) -> Tensor:
    """Table look-up: ``index (N, *)``, ``g (N, *, D)``; rows used twice by one sample are summed before squaring."""
    n, width = len(index), g.shape[-1]
    index, g = index.reshape(n, -1), g.reshape(n, -1, width)
    if padding_idx is not None:
        g = g * (index != padding_idx).unsqueeze(-1)
    rows = index.max() + 1
    key = (index + rows * torch.arange(n, device=index.device).unsqueeze(1)).flatten()
    unique, place = torch.unique(key, return_inverse=True)
    summed = g.new_zeros(len(unique), width).index_add_(0, place, g.reshape(-1, width))
    return g.new_zeros(n).index_add_(0, unique // rows, summed.square().sum(1))


def tied_embedding_weight(index: Tensor, h: Tensor, x: Tensor, g: Tensor, padding_idx: int | None) -> Tensor:
    """Inner product of two gradients of one matrix: as a look-up table and as a linear layer's weight.

    Args:
        index: ``(N, T)``, the look-ups ...
        h: ``(N, T, D)``, and the gradients at them.
        x: ``(N, L, D)``, the linear layer's inputs ...
        g: ``(N, L, V)``, and the gradients at its outputs.
        padding_idx: Row that look-ups do not train.
    """
    if padding_idx is not None:
        h = h * (index != padding_idx).unsqueeze(-1)
    length, looked_up = x.shape[1], index.shape[1]
    products = []
    for (a, b), (i, t) in zip(
        chunks(x, g, 2 * length * looked_up), chunks(index, h, 2 * length * looked_up), strict=True
    ):
        at_index = b.gather(2, i.unsqueeze(1).expand(-1, length, -1))
        products.append((at_index * torch.bmm(a, t.mT)).flatten(1).sum(1))
    return torch.cat(products)


def chunks(x: Tensor, g: Tensor, elements_per_sample: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some samples of both at a time, so that temporaries of so many elements a sample stay within :data:`CHUNK`."""
    size = max(1, CHUNK // max(1, elements_per_sample))
    return zip(torch.split(x, size), torch.split(g, size), strict=True)
