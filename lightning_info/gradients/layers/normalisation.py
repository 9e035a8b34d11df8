"""Normalisation layers: batch, group, layer and RMS norm.

Each is ``y = w z + b`` with the normalised input z, which does not depend on the parameters. The gradient of one sample
at w is the sum of ``g z`` over the positions, and at b that of g.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients import norms
from lightning_info.gradients.layer_gradients import Rows, of_channels, of_tensor
from lightning_info.gradients.layers.base import Layer, Operator, register, stand_in

Normalise = Callable[[Any, Tensor], Tensor]
"""``(stand-in, x) -> z``, of the shape of x."""

Sums = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(stand-in, x, g)`` -> sums of ``g z`` and of g over the positions, ``(N, C)``, in one go."""

MANY_POSITIONS = 16
"""From so many on one go over a channel is cheaper than several over all of them."""


def _read_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Operator:
    module = stand_in(nn.BatchNorm2d, running_mean=running_mean, running_var=running_var, eps=eps)
    key = (nn.BatchNorm2d, id(running_mean), id(running_var), eps)
    refused = "BatchNorm with batch statistics has no per-sample gradient" if training or running_mean is None else ""
    return Operator(module, input, weight, bias, None, key, refused)


def _read_group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Operator:
    return Operator(stand_in(nn.GroupNorm, num_groups=num_groups, eps=eps), input, weight, bias, None, None)


def _read_layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Operator:
    shape = tuple(normalized_shape)
    module = stand_in(nn.LayerNorm, normalized_shape=shape, eps=eps)
    return Operator(module, input, weight, bias, len(shape), (nn.LayerNorm, shape, eps))


def _read_rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Operator:
    shape = tuple(normalized_shape)
    module = stand_in(nn.RMSNorm, normalized_shape=shape, eps=eps)
    return Operator(module, input, weight, None, len(shape), (nn.RMSNorm, shape, eps))


def _batch_normalised(module: Any, x: Tensor) -> Tensor:
    """With running statistics; batch statistics have no per-sample gradient and are refused."""
    return F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def _batch_normalised_sums(module: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own gradients of weight and bias, of a layer in which every sample has channels of its own."""
    n, channels = x.shape[:2]
    statistics = module.running_mean.repeat(n), module.running_var.repeat(n)
    apart = g.reshape(1, n * channels, -1), x.reshape(1, n * channels, -1), None, *statistics, None, None
    backward: Any = torch.ops.aten.native_batch_norm_backward
    _, weight, bias = backward(*apart, False, module.eps, [False, True, True])
    return weight.view(n, channels), bias.view(n, channels)


def _group_normalised(module: Any, x: Tensor) -> Tensor:
    return F.group_norm(x, module.num_groups, eps=module.eps)


def _layer_normalised(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, eps=module.eps)


def _rms_normalised(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, module.normalized_shape, eps=module.eps)


def _channel_rules(normalise: Normalise, sums: Sums | None = None) -> dict[str, Any]:
    """Parameters per channel: ``x`` and ``g`` are ``(N, C, *positions)``."""

    def weight_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
        return norms.channels(g * normalise(module, x))

    def bias_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
        return norms.channels(g)

    def both_norms(module: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        if sums is None or x[0, 0].numel() < MANY_POSITIONS:
            return weight_norm(module, x, g), bias_norm(module, x, g)
        weight, bias = sums(module, x, g)
        return norms.squared_norm(weight), norms.squared_norm(bias)

    def weight_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
        z = normalise(module, x)
        return of_tensor(torch.stack([norms.sum_channels(one * z) for one in g.unbind(1)], 1))

    def bias_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
        return of_channels(g)

    return {
        "squared_norms": {"weight": weight_norm, "bias": bias_norm},
        "both_norms": both_norms,
        "gradients": {"weight": weight_gradients, "bias": bias_gradients},
    }


def _last_axes_rules(normalise: Normalise) -> dict[str, Any]:
    """Parameters of ``normalized_shape``: ``x`` and ``g`` are ``(N, *positions, *normalized_shape)``."""

    def weight_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
        return norms.last_axes(g * normalise(module, x), len(module.normalized_shape))

    def bias_norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
        return norms.last_axes(g, len(module.normalized_shape))

    def weight_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
        z = normalise(module, x)
        return of_tensor(torch.stack([(one * z).sum(1) for one in g.unbind(1)], 1))

    def bias_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
        return of_tensor(g.sum(2))

    return {
        "squared_norms": {"weight": weight_norm, "bias": bias_norm},
        "gradients": {"weight": weight_gradients, "bias": bias_gradients},
    }


register(
    Layer(
        name="batch_norm",
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        calls={F.batch_norm: _read_batch_norm},
        **_channel_rules(_batch_normalised, _batch_normalised_sums),
    )
)
register(
    Layer(
        name="group_norm",
        modules=(nn.GroupNorm,),
        calls={F.group_norm: _read_group_norm},
        **_channel_rules(_group_normalised),
    )
)
register(
    Layer(
        name="layer_norm",
        modules=(nn.LayerNorm,),
        calls={F.layer_norm: _read_layer_norm},
        **_last_axes_rules(_layer_normalised),
    )
)
register(
    Layer(
        name="rms_norm",
        modules=(nn.RMSNorm,),
        calls={F.rms_norm: _read_rms_norm},
        **_last_axes_rules(_rms_normalised),
    )
)
