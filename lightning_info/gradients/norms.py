"""Squared norms of per-sample weight gradients, one pure function per kind of operator.

Each takes the operator's input ``x`` and the gradient ``g`` at its output (or a product of them), sample axis first,
and returns ``(N,)``: the squared norm of the gradient that each sample alone sends to the weight. No gradient of all
samples is ever kept: where a Gram matrix over positions is cheaper it is used, otherwise samples are done in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 22
"""Largest number of elements of one temporary (16 MiB in float32)."""


def squared_norm(gradient: Tensor) -> Tensor:
    """``(N, ...) -> (N,)``."""
    return gradient.flatten(1).square().sum(1) if gradient.dim() > 1 else gradient.square()


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
        pairs = _chunks(x, g, 2 * length * length)
        return torch.cat([(torch.bmm(a, a.mT) * torch.bmm(b, b.mT)).flatten(1).sum(1) for a, b in pairs]).clamp_min(0)
    return torch.cat([squared_norm(torch.bmm(b.mT, a)) for a, b in _chunks(x, g, i * o)])


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


def conv_weight(
    x: Tensor,
    g: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolution with zero padding in any number of dimensions: ``x (N, Ci, *S)``, ``g (N, Co, *So)``."""
    positions, patch = g[0, 0].numel(), x.shape[1] // groups * math.prod(kernel_size)
    norms = []
    for a, b in _chunks(x, g, 2 * groups * patch * positions):
        columns = _unfold(a, b.shape[2:], kernel_size, stride, padding, dilation, groups)
        rows = b.reshape(len(b) * groups, -1, positions)
        norms.append(outer(columns, rows.mT).view(len(b), groups).sum(1))
    return torch.cat(norms)


def _unfold(
    x: Tensor,
    out: torch.Size,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Patches that meet the kernel at each output position, ``(N * groups, positions, Ci / groups * kernel)``."""
    dims = len(kernel_size)
    if padding == "valid":
        sides = [(0, 0)] * dims
    elif isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        sides = [(r // 2, r - r // 2) for r in reach]
    else:
        sides = [(p, p) for p in padding]
    x = F.pad(x, [p for side in reversed(sides) for p in side])
    for axis, (k, s, d) in enumerate(zip(kernel_size, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d].narrow(axis, 0, out[axis - 2])
    n, channels_in = x.shape[:2]
    x = x.reshape(n, groups, channels_in // groups, *x.shape[2:])
    x = x.permute(0, 1, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    return x.reshape(n * groups, math.prod(out), -1)


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


def _chunks(x: Tensor, g: Tensor, elements_per_sample: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK // max(1, elements_per_sample))
    return zip(torch.split(x, size), torch.split(g, size), strict=True)
