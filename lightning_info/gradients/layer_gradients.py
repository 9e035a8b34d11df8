"""One parameter's gradients by sample and cotangent, the columns of a matrix of rows made some at a time.

The rows of N samples and C cotangents are ``J_nᵀ u_nc``, in the order (n, c), restricted to the parameter: ``(N C,
elements)``. They come from an operator's input ``x (N, ...)`` and the gradients ``g (N, C, ...)`` at its output, in the
form of :func:`~.operators.by_sample`; for a large layer they are never all at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients.convolution import Geometry, _fit, _patches
from lightning_info.gradients.operators import Operator
from lightning_info.gradients.real import as_real, sizes


class Factors(NamedTuple):
    """A row is ``sum_l g[n, c, l] x[n, l]ᵀ``: the same x for all cotangents.

    Attributes:
        positions: L.
        inside: I.
        out: O.
        tensors: Makes ``x (N, L, I)`` and ``g (N, C, L, O)``.
    """

    positions: int
    inside: int
    out: int
    tensors: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class Rows:
    """Rows ``(R, slices * width)`` of one parameter, real numbers, a range of slices at a time.

    Attributes:
        slices: Along the parameter's axis 0, as a rule.
        width: Elements of a slice.
        make: ``(first, end) -> (R, (end - first) * width)``.
        factors: Of which each row is a product, if it is one.
        is_transposed: The parameter is a matrix and the slices lie along its axis 1.
        at: Which slices of axis 0 they are, where the others are zero in all rows.
    """

    slices: int
    width: int
    make: Callable[[int, int], Tensor]
    factors: Factors | None = None
    is_transposed: bool = False
    at: Tensor | None = None

    def __add__(self, other: Rows) -> Rows:
        """Of a parameter that two operators use: the gradients add up."""
        return Rows(self.slices, self.width, lambda first, end: self.make(first, end) + other.make(first, end))

    def arrange(self, elements: Tensor, shape: torch.Size) -> Tensor:
        """Put one number per column in the places of the parameter's elements, of which ``shape`` is the real form."""
        if self.at is not None:
            return elements.new_zeros(shape).index_copy_(0, self.at, elements.view(-1, *shape[1:]))
        if self.is_transposed:
            return elements.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        return elements.view(shape)


def of_tensor(gradient: Tensor) -> Rows:
    """Gradients that are at hand, ``(N, C, *shape)``."""
    flat = as_real(gradient).reshape(len(gradient) * gradient.shape[1], sizes([gradient[0, 0]])[0])
    return Rows(flat.shape[1], 1, lambda first, end: flat[:, first:end])


def of_operator(operator: Operator, slot: str, x: Tensor, g: Tensor, whole_table: bool = False) -> Rows:
    """Gradients of an operator's weight or bias.

    Args:
        operator: The call.
        slot: ``"weight"`` or ``"bias"``.
        x: Its input ``(N, ...)``.
        g: Gradients at its output ``(N, C, ...)``.
        whole_table: Rows of an embedding table for words that no sample has, too.
    """
    layer: Any = operator.layer
    if slot == "bias":
        return of_tensor(_sum_positions(operator, g))
    if isinstance(layer, nn.Embedding):
        return _table(layer, x, g, None if not whole_table else len(layer.weight))
    if isinstance(layer, nn.Linear):
        transposed = operator.key is not None and "transposed" in operator.key
        rows = _matrix(x.reshape(len(x), -1, x.shape[-1]), g.reshape(*g.shape[:2], -1, g.shape[-1]), transposed)
        return _in_real(rows, g)
    if hasattr(layer, "kernel_size"):
        if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            # the gradient at the output meets the kernel where the input does in a convolution
            return _convolution(layer, g.flatten(0, 1), x.repeat_interleave(g.shape[1], 0).unsqueeze(1))
        return _convolution(layer, x, g)
    scale = _normalised(layer, x)
    return of_tensor(torch.stack([_sum_positions(operator, (c * scale).unsqueeze(1)) for c in g.unbind(1)], 1)[:, :, 0])


def _in_real(rows: Rows, g: Tensor) -> Rows:
    """Complex columns as two real ones each."""
    if not g.is_complex():
        return rows
    make = rows.make
    return replace(
        rows, width=2 * rows.width, make=lambda first, end: as_real(make(first, end)).flatten(1), factors=None
    )


def _sum_positions(operator: Operator, g: Tensor) -> Tensor:
    if operator.axes is not None:
        return g.sum(2)
    return g.flatten(3).sum(3) if g.dim() > 3 else g


def _normalised(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, nn.BatchNorm2d):
        return F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, eps=layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return F.rms_norm(x, layer.normalized_shape, eps=layer.eps)


def _matrix(x: Tensor, g: Tensor, transposed: bool) -> Rows:
    n, c, length, out = g.shape

    def make(first: int, end: int) -> Tensor:
        columns = g[..., first:end].transpose(2, 3).reshape(n, -1, length)
        return torch.bmm(columns, x).view(n * c, -1)

    factors = Factors(length, x.shape[2], out, lambda: (x, g))
    return Rows(out, x.shape[2], make, factors, transposed)


def _convolution(layer: Any, x: Tensor, g: Tensor) -> Rows:
    """Slices are output channels, or groups of them where the convolution has groups.

    ``x`` may have rows of a sample as axis 2, behind the channels: positions of a kernel of length one.
    """
    n, c, channels = g.shape[:3]
    rows = x.dim() - 2 - len(layer.kernel_size)
    kernel_size, stride, dilation = (
        (1,) * rows + setting for setting in (layer.kernel_size, layer.stride, layer.dilation)
    )
    padding = layer.padding if isinstance(layer.padding, str) else (0,) * rows + layer.padding
    geometry = Geometry(kernel_size, stride, dilation, layer.groups)
    groups, out, kernel = layer.groups, channels // layer.groups, math.prod(kernel_size)
    width = x.shape[1] // groups * kernel
    flat = g.flatten(3)
    length = flat.shape[3]

    @cache
    def patches() -> Tensor:
        fitted = _fit(x, g[:, 0], geometry, padding)
        return _patches(fitted, g[:, 0], geometry).view(n, groups, width, length)

    if groups == 1:

        def make(first: int, end: int) -> Tensor:
            some = flat[:, :, first:end].reshape(n, -1, length)
            return torch.bmm(some, patches()[:, 0].mT).view(n * c, -1)

        factors = Factors(length, width, out, lambda: (patches()[:, 0].mT, flat.mT))
        return Rows(channels, width, make, factors)

    def make_groups(first: int, end: int) -> Tensor:
        some = flat.view(n, c, groups, out, length)[:, :, first:end].transpose(1, 2).reshape(-1, c * out, length)
        made = torch.bmm(some, patches()[:, first:end].reshape(-1, width, length).mT)
        return made.view(n, end - first, c, out * width).transpose(1, 2).reshape(n * c, -1)

    return Rows(groups, out * width, make_groups)


def _table(layer: Any, index: Tensor, g: Tensor, words: int | None) -> Rows:
    """Slices are the words that occur, or all of them."""
    n, c, width = len(index), g.shape[1], g.shape[-1]
    index, g = index.reshape(n, -1), g.reshape(n, c, -1, width).transpose(1, 2)
    counts = torch.ones_like(index, dtype=torch.bool) if layer.padding_idx is None else index != layer.padding_idx
    at = torch.unique(index) if words is None else torch.arange(words, device=index.device)
    place = torch.searchsorted(at, index)

    def make(first: int, end: int) -> Tensor:
        sample, position = torch.nonzero(counts & (place >= first) & (place < end), as_tuple=True)
        target = sample * (end - first) + place[sample, position] - first
        summed = g.new_zeros(n * (end - first), c, width).index_add_(0, target, g[sample, position])
        return summed.view(n, end - first, c, width).transpose(1, 2).reshape(n * c, -1)

    return Rows(len(at), width, make, at=at)
