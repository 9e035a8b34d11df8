"""Embedding: look-ups in a table, ``y_t = W[i_t]``.

The gradient of one sample at W has ``sum of g_t over t with i_t = r`` as its row r, and zero in all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients.layer_gradients import Rows
from lightning_info.gradients.layers.base import InputAndGradient, Layer, Operator, register, stand_in
from lightning_info.gradients.layers.linear import LINEAR
from lightning_info.gradients.norms import chunks


def _read_embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operator:
    refused = ""
    if max_norm is not None or scale_grad_by_freq:
        refused = "an embedding with max_norm or scale_grad_by_freq has no per-sample gradient of its own"
    if padding_idx is not None:
        padding_idx %= len(weight)
    module = stand_in(nn.Embedding, padding_idx=padding_idx)
    return Operator(module, input, weight, None, 0, (nn.Embedding, padding_idx), refused)


def _weight_norm(module: Any, index: Tensor, g: Tensor) -> Tensor:
    """``index (N, *)``, ``g (N, *, D)``; gradients at a row that one sample uses twice are summed before squaring."""
    n, width = len(index), g.shape[-1]
    index, g = index.reshape(n, -1), g.reshape(n, -1, width)
    if module.padding_idx is not None:
        g = g * (index != module.padding_idx).unsqueeze(-1)
    rows = index.max() + 1
    key = (index + rows * torch.arange(n, device=index.device).unsqueeze(1)).flatten()
    unique, place = torch.unique(key, return_inverse=True)
    summed = g.new_zeros(len(unique), width).index_add_(0, place, g.reshape(-1, width))
    return g.new_zeros(n).index_add_(0, unique // rows, summed.square().sum(1))


def _weight_gradients(module: Any, index: Tensor, g: Tensor) -> Rows:
    """Slices are the rows of the table that occur in the samples."""
    n, c, width = len(index), g.shape[1], g.shape[-1]
    index, g = index.reshape(n, -1), g.reshape(n, c, -1, width).transpose(1, 2)
    counts = torch.ones_like(index, dtype=torch.bool) if module.padding_idx is None else index != module.padding_idx
    at = torch.unique(index)
    place = torch.searchsorted(at, index)

    def make(first: int, end: int) -> Tensor:
        sample, position = torch.nonzero(counts & (place >= first) & (place < end), as_tuple=True)
        target = sample * (end - first) + place[sample, position] - first
        summed = g.new_zeros(n * (end - first), c, width).index_add_(0, target, g[sample, position])
        return summed.view(n, end - first, c, width).transpose(1, 2).reshape(n * c, -1)

    return Rows(len(at), width, make, at=at)


def _with_linear(module: Any, own: InputAndGradient, linear: Any, other: InputAndGradient) -> Tensor:
    """Inner product of two gradients of one matrix: as a look-up table and as a linear layer's weight.

    Args:
        module: The table's stand-in.
        own: The look-ups ``(N, T)``, and the gradients ``(N, T, D)`` at them.
        linear: The linear layer's stand-in.
        other: Its inputs ``(N, L, D)``, and the gradients ``(N, L, V)`` at its outputs.
    """
    (index, h), (x, g) = own, other
    if module.padding_idx is not None:
        h = h * (index != module.padding_idx).unsqueeze(-1)
    length, looked_up = x.shape[1], index.shape[1]
    products = []
    for (a, b), (i, t) in zip(
        chunks(x, g, 2 * length * looked_up), chunks(index, h, 2 * length * looked_up), strict=True
    ):
        at_index = b.gather(2, i.unsqueeze(1).expand(-1, length, -1))
        products.append((at_index * torch.bmm(a, t.mT)).flatten(1).sum(1))
    return torch.cat(products)


def _under_vmap(
    apply: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The batching rule for a table per sample would train the row of the padding."""
    output = F.embedding(input, weight, None, *args, **kwargs)
    if padding_idx is None:
        return output
    return torch.where((input == padding_idx % len(weight)).unsqueeze(-1), output.detach(), output)


register(
    Layer(
        name="embedding",
        modules=(nn.Embedding,),
        calls={F.embedding: _read_embedding},
        squared_norms={"weight": _weight_norm},
        gradients={"weight": _weight_gradients},
        cross_terms={LINEAR: _with_linear},
        extra_axes=1,
        under_vmap={F.embedding: _under_vmap},
    )
)
