"""Linear layers: ``F.linear``, and products with a matrix that is a parameter.

For one sample, ``y_l = W x_l + b`` at the positions l, and its gradient at W is ``sum_l g_l x_lᵀ``. Squared norms take
the cheaper of two exact forms, this sum itself or ``sum_{l, m} <g_l, g_m> <x_l, x_m>``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients.layer_gradients import Factors, Rows, of_tensor
from lightning_info.gradients.layers.base import Layer, Operator, register, stand_in
from lightning_info.gradients.norms import chunks, last_axes, squared_norm
from lightning_info.gradients.real import as_real


class _Matrix(nn.Module):
    """``y = x W``: a linear layer whose weight is the other way round, which changes no norm."""


def _read_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operator:
    return Operator(stand_in(nn.Linear), input, weight, bias, 1, (nn.Linear,))


def _read_matmul(input: Tensor, other: Tensor) -> Operator | None:
    return Operator(stand_in(_Matrix), input, other, None, 1, (_Matrix,)) if other.dim() == 2 else None


def _read_mm(input: Tensor, mat2: Tensor) -> Operator | None:
    return _read_matmul(input, mat2)


def _read_addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Operator | None:
    if input.dim() != 1 or len(input) != mat2.shape[1]:
        return None
    return Operator(stand_in(_Matrix), mat1, mat2, input, 1, (_Matrix,))


def squared_norm_of_products(x: Tensor, g: Tensor) -> Tensor:
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


def _weight_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
    """``x (N, *, I)``, ``g (N, *, O)``."""
    return squared_norm_of_products(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1]))


def _bias_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
    return last_axes(g, 1)


def _both_norms(module: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Of one position the norm of ``g`` is in both."""
    if g.numel() > len(g) * g.shape[-1]:
        return _weight_norm(module, x, g), _bias_norm(module, x, g)
    bias = squared_norm(g)
    return squared_norm(x) * bias, bias


def _weight_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    """Slices are the outputs."""
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(*g.shape[:2], -1, g.shape[-1])
    n, c, length, out = g.shape

    def make(first: int, end: int) -> Tensor:
        columns = g[..., first:end].transpose(2, 3).reshape(n, -1, length)
        return torch.bmm(columns, x).view(n * c, -1)

    if not g.is_complex():
        return Rows(out, x.shape[2], make, Factors(length, x.shape[2], out, lambda: (x, g)))
    return Rows(out, 2 * x.shape[2], lambda first, end: as_real(make(first, end)).flatten(1))


def _transposed_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    return replace(_weight_gradients(module, x, g), is_transposed=True)


def _bias_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    return of_tensor(g.sum(2))


LINEAR = register(
    Layer(
        name="linear",
        modules=(nn.Linear,),
        calls={F.linear: _read_linear},
        squared_norms={"weight": _weight_norm, "bias": _bias_norm},
        both_norms=_both_norms,
        gradients={"weight": _weight_gradients, "bias": _bias_gradients},
        takes_complex=True,
        takes_matrix=True,
    )
)
MATRIX = register(
    replace(
        LINEAR,
        modules=(_Matrix,),
        calls={
            **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _read_matmul),
            **dict.fromkeys((torch.mm, Tensor.mm), _read_mm),
            torch.addmm: _read_addmm,
        },
        gradients={"weight": _transposed_gradients, "bias": _bias_gradients},
    )
)
