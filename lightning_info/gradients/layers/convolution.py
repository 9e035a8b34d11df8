"""Convolutions and transposed convolutions, in one to three dimensions.

The gradient of a sample is ``W[o, (i, k)] = sum_l g[o, l] x[i, k + l]``, with positions l and offsets k in the kernel.
Squared norms of it come from the cheapest of five exact forms:

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
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as weight_gradients

from lightning_info.gradients import norms
from lightning_info.gradients.layer_gradients import Factors, Rows, of_channels
from lightning_info.gradients.layers.base import Layer, Operator, register, stand_in

PATCH, SHIFT, WRITE, CALL = 75, 22, 30, 2_500_000
"""Measured on a CPU in multiply-adds: an element unfolded, one shifted and added, one of the result, and a call."""


def _read(*args: Any, **kwargs: Any) -> Operator:
    places = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    return _operator((nn.Conv1d, nn.Conv2d, nn.Conv3d), **dict(zip(places, args, strict=False)), **kwargs)


def _read_transposed(*args: Any, **kwargs: Any) -> Operator:
    places = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    given = {**dict(zip(places, args, strict=False)), **kwargs}
    given.pop("output_padding", None)  # which no rule needs
    return _operator((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), **given)


def _operator(
    kinds: tuple[type[nn.Module], ...],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Operator:
    kernel_size = tuple(weight.shape[2:])
    kind = kinds[len(kernel_size) - 1]
    settings = {
        "kernel_size": kernel_size,
        "stride": _each(stride, len(kernel_size)),
        "padding": padding if isinstance(padding, str) else _each(padding, len(kernel_size)),
        "dilation": _each(dilation, len(kernel_size)),
        "groups": groups,
    }
    return Operator(
        stand_in(kind, **settings),
        input,
        weight,
        bias,
        axes=None,
        key=(kind, *settings.values()),
        is_unbatched=input.dim() != len(kernel_size) + 2,
        unfolded=math.prod(kernel_size),
    )


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


class Geometry(NamedTuple):
    """How a kernel meets the input, in any number of dimensions."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, module: Any, x: Tensor) -> tuple[Geometry, tuple[int, ...] | str]:
        """Of a layer, with its padding.

        Args:
            module: The layer.
            x: Its input; it may have rows of a sample as axis 2, behind the channels: positions of a kernel of length
                one.
        """
        rows = x.dim() - 2 - len(module.kernel_size)
        kernel_size, stride, dilation = (
            (1,) * rows + setting for setting in (module.kernel_size, module.stride, module.dilation)
        )
        padding = module.padding if isinstance(module.padding, str) else (0,) * rows + module.padding
        return cls(kernel_size, stride, dilation, module.groups), padding


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


def _weight_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
    return conv_weight(x, g, *Geometry.of(module, x))


def _transposed_weight_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
    """The gradient at the output meets the kernel where the input does in a convolution."""
    return _weight_norm(module, g, x)


def _bias_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
    return norms.channels(g)


def _weight_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    """Slices are output channels, or groups of them where the convolution has groups."""
    n, c, channels = g.shape[:3]
    geometry, padding = Geometry.of(module, x)
    groups, out = geometry.groups, channels // geometry.groups
    width = x.shape[1] // groups * math.prod(geometry.kernel_size)
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


def _transposed_weight_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    """Input and gradient change places; the gradients of all cotangents are inputs of their own."""
    return _weight_gradients(module, g.flatten(0, 1), x.repeat_interleave(g.shape[1], 0).unsqueeze(1))


def _bias_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    return of_channels(g)


register(
    Layer(
        name="convolution",
        modules=(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        calls=dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _read),
        squared_norms={"weight": _weight_norm, "bias": _bias_norm},
        gradients={"weight": _weight_gradients, "bias": _bias_gradients},
    )
)
register(
    Layer(
        name="transposed convolution",
        modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        calls=dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _read_transposed),
        squared_norms={"weight": _transposed_weight_norm, "bias": _bias_norm},
        gradients={"weight": _transposed_weight_gradients, "bias": _bias_gradients},
    )
)
