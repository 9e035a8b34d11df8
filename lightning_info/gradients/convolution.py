"""Squared norms of per-sample weight gradients of convolutions, each call in its cheapest exact form.

The gradient of a sample is ``W[o, (i, k)] = sum_l g[o, l] x[i, k + l]``, with positions l and offsets k in the kernel.

- ``matrix``: its product with the unfolded input;
- ``direct``: by torch's own kernel, one sample after the other, which unfolds nothing;
- ``gram``: ``sum_{l, m} <g_l, g_m> <x_l, x_m>`` over pairs of positions and unfolded patches;
- ``shifted``: the same, the patches' products being sums of shifted products of pixels;
- ``depthwise``: one input channel a group: a convolution of the input with g as the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad as weight_gradients

from lightning_info.gradients import norms

PATCH, SHIFT, WRITE, CALL = 75, 22, 30, 2_500_000
"""Measured on a CPU in multiply-adds: an element unfolded, one shifted and added, one of the result, and a call."""


class Geometry(NamedTuple):
    """How a kernel meets the input, in any number of dimensions."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def conv_weight(x: Tensor, g: Tensor, geometry: Geometry, padding: tuple[int, ...] | str) -> Tensor:
    """Convolution with zero padding: ``x (N, Ci, *S)``, ``g (N, Co, *So)`` -> ``(N,)``."""
    x = _fit(x, g, geometry, padding)
    return FORMS[cheapest(x, g, geometry)](x, g, geometry)


def cheapest(x: Tensor, g: Tensor, geometry: Geometry) -> str:
    """The form with the fewest multiply-adds a sample, memory traffic included."""
    groups, kernel = geometry.groups, math.prod(geometry.kernel_size)
    inside, out = x.shape[1] // groups, g.shape[1] // groups
    length, pixels, patch = g[0, 0].numel(), x[0, 0].numel(), inside * kernel
    if inside == 1 and kernel > 1 and len(geometry.kernel_size) in _CONVOLUTIONS:
        return "depthwise"
    unfold = PATCH * patch * length * (kernel > 1)
    costs: dict[str, float] = {
        "matrix": length * patch * out + unfold + WRITE * patch * out,
        "gram": length * length * (patch + out) + unfold,
        "shifted": pixels * pixels * inside + length * length * (out + SHIFT * kernel),
    }
    if x.device.type == "cpu" and len(geometry.kernel_size) in _CONVOLUTIONS:
        costs["direct"] = length * patch * out + WRITE * patch * out + CALL / groups
    return min(costs, key=lambda form: costs[form])


def _fit(x: Tensor, g: Tensor, geometry: Geometry, padding: tuple[int, ...] | str) -> Tensor:
    """Pad the input, and cut off what the kernel does not reach."""
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)]
    if padding == "valid":
        padding = (0,) * len(reach)
    sides = [(r // 2, r - r // 2) for r in reach] if isinstance(padding, str) else [(p, p) for p in padding]
    if any(map(any, sides)):
        x = F.pad(x, [p for side in reversed(sides) for p in side])
    for axis, (r, s) in enumerate(zip(reach, geometry.stride, strict=True), start=2):
        x = x.narrow(axis, 0, (g.shape[axis] - 1) * s + r + 1)
    return x


def _matrix(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    per_sample = g[0, 0].numel() * x.shape[1] * math.prod(geometry.kernel_size)
    parts = []
    for a, b in norms.chunks(x, g, per_sample + g.shape[1] * x.shape[1] // geometry.groups):
        rows = b.reshape(len(b) * geometry.groups, -1, b[0, 0].numel())
        parts.append(norms.squared_norm(torch.bmm(rows, _patches(a, b, geometry).mT).view(len(b), -1)))
    return torch.cat(parts)


def _direct(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    gradient = _WEIGHT_GRADIENTS[len(geometry.kernel_size)]
    shape = (g.shape[1], x.shape[1] // geometry.groups, *geometry.kernel_size)
    stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
    zero = (0,) * len(stride)
    return torch.cat(
        [
            norms.squared_norm(gradient(a, shape, b, stride, zero, dilation, groups).view(1, -1))
            for a, b in zip(torch.split(x, 1), torch.split(g, 1), strict=True)
        ]
    )


def _gram(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    length = g[0, 0].numel()
    patches = length * x.shape[1] * math.prod(geometry.kernel_size)
    parts = []
    for a, b in norms.chunks(x, g, 2 * geometry.groups * length * length + patches):
        columns, rows = _patches(a, b, geometry), b.reshape(len(b) * geometry.groups, -1, length)
        products = torch.bmm(columns.mT, columns).mul_(torch.bmm(rows.mT, rows))
        parts.append(products.view(len(b), -1).sum(1))
    return torch.cat(parts).clamp_min(0)


def _shifted(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    length, pixels, out = g[0, 0].numel(), x[0, 0].numel(), g.shape[2:]
    parts = []
    for a, b in norms.chunks(x, g, geometry.groups * (pixels * pixels + 2 * length * length)):
        many = len(b) * geometry.groups
        columns, rows = a.reshape(many, -1, pixels), b.reshape(many, -1, length)
        pairs = torch.bmm(columns.mT, columns).view(many, *x.shape[2:], *x.shape[2:])
        weights = torch.bmm(rows.mT, rows).view(many, *out, *out)
        summed = torch.zeros_like(weights)
        for offset in itertools.product(*map(range, geometry.kernel_size)):
            once = _reached(offset, out, geometry)
            at = (slice(None), *once, *once)
            summed += pairs[at]
        parts.append(summed.mul_(weights).view(len(b), -1).sum(1))
    return torch.cat(parts).clamp_min(0)


def _depthwise(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    many = len(x) * geometry.groups
    image, kernels = x.reshape(1, many, *x.shape[2:]), g.reshape(len(x) * g.shape[1], 1, *g.shape[2:])
    convolve = _CONVOLUTIONS[len(geometry.kernel_size)]
    # stride and dilation change places: the kernel's step in the input is the distance of two offsets, and vice versa
    gradient = convolve(image, kernels, None, geometry.dilation, 0, geometry.stride, many)
    return norms.squared_norm(gradient.view(len(x), -1))


def _patches(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
    """What meets the kernel at each position, ``(N * groups, Ci / groups * kernel, positions)``."""
    kernel_size, out = geometry.kernel_size, g.shape[2:]
    if math.prod(kernel_size) == 1:
        at = (slice(None), slice(None), *_reached((0,) * len(out), out, geometry))
        patches = x[at]
    elif len(kernel_size) == 2:
        patches = F.unfold(x, kernel_size, geometry.dilation, 0, geometry.stride)
    else:
        patches = x
        for axis, (k, s, d) in enumerate(zip(kernel_size, geometry.stride, geometry.dilation, strict=True), start=2):
            patches = patches.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        dims = len(kernel_size)
        patches = patches.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return patches.reshape(len(x) * geometry.groups, -1, math.prod(out))


def _reached(offset: tuple[int, ...], out: torch.Size, geometry: Geometry) -> tuple[Any, ...]:
    """The pixels that one offset of the kernel meets, over all positions."""
    steps = zip(offset, out, geometry.stride, geometry.dilation, strict=True)
    return tuple(slice(o * d, o * d + (length - 1) * s + 1, s) for o, length, s, d in steps)


FORMS: dict[str, Callable[[Tensor, Tensor, Geometry], Tensor]] = {
    "matrix": _matrix,
    "direct": _direct,
    "gram": _gram,
    "shifted": _shifted,
    "depthwise": _depthwise,
}
_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_WEIGHT_GRADIENTS: dict[int, Any] = {
    1: weight_gradients.conv1d_weight,
    2: weight_gradients.conv2d_weight,
    3: weight_gradients.conv3d_weight,
}
