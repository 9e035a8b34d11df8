"""A layer type of the tests' own, all in one file: ``y = w x + b``, element by element, over the last axis.

There are two functions for it, one in Python that hands its calls to torch's overrides and one custom operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from lightning_info.gradients import norms
from lightning_info.gradients.layer_gradients import Rows, of_tensor
from lightning_info.gradients.layers.base import Layer, Operator, register, stand_in


def scaled(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    given = (input, weight, bias)
    if has_torch_function(given):
        return handle_torch_function(scaled, given, *given)
    return input * weight if bias is None else input * weight + bias


@torch.library.custom_op("lightning_info_tests::scaled", mutates_args=())
def _operator(input: Tensor, weight: Tensor) -> Tensor:
    return input * weight


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return g * weight, (g * x).flatten(0, -2).sum(0)


_operator.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def scaled_by_operator(input: Tensor, weight: Tensor) -> Tensor:
    return _operator(input, weight)


class Scaled(nn.Module):
    def __init__(self, width, function=scaled, bias=True):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(width))
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x):
        return self.function(x, self.weight) if self.bias is None else self.function(x, self.weight, self.bias)


def _read(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operator:
    return Operator(stand_in(Scaled), input, weight, bias, axes=1, key=(Scaled,))


def _weight_gradients(module: Any, x: Tensor, g: Tensor) -> Rows:
    return of_tensor((g * x.unsqueeze(1)).sum(2))


register(
    Layer(
        name="scaled",
        modules=(Scaled,),
        calls={scaled: _read, torch.ops.lightning_info_tests.scaled.default: _read},
        squared_norms={
            "weight": lambda module, x, g: norms.last_axes(g * x, 1),
            "bias": lambda module, x, g: norms.last_axes(g, 1),
        },
        gradients={"weight": _weight_gradients, "bias": lambda module, x, g: of_tensor(g.sum(2))},
    )
)
