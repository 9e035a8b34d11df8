r"""The loop of an LSTM over time, with a backward pass of its own: fewer and larger operations than unrolled autograd.

Of a step with gates :math:`i, f, g, o`, :math:`c_t = f c_{t-1} + i g` and :math:`h_t = o \tanh c_t`. Backward,
:math:`dc \mathrel{+}= dh\, o (1 - \tanh^2 c_t)`, and the gradients before the gates' activation functions are factors
known from the forward pass times dc, or times dh at o. These gradients are the same for the input's share of the gates
and for the state's, :math:`W h_{t-1} + b`, which is why all steps of the latter are shown as one linear layer
(:func:`state_share`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function


def state_share(before: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Stand for ``F.linear(before, weight, bias)`` at all steps at once, which nobody reads: only its gradient matters.

    Args:
        before: ``(N, T, H)``, the states that the steps begin with.
        weight: ``(4 H, H)``.
        bias: ``(4 H,)``.
    """
    if has_torch_function((before, weight, bias)):
        shown: Tensor = handle_torch_function(state_share, (before, weight, bias), before, weight, bias)
        return shown
    apply: Any = _StateShare.apply  # without types before torch 2.15
    share: Tensor = apply(before, weight, bias)
    return share


def run(gates: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """All steps of one direction of one layer.

    Args:
        gates: ``(N, T, 4 H)``, the input's share.
        weight: ``(4 H, H)``, of the state.
        bias: ``(4 H,)``, the same.
        h: ``(N, H)``, the first state.
        c: The same.

    Returns:
        Outputs ``(N, T, H)`` and the last c, ``(N, H)``.
    """
    kept = _Steps(gates.detach(), weight.detach(), None if bias is None else bias.detach(), h.detach(), c.detach())
    share = state_share(kept.h[:, :-1], weight, bias)
    apply: Any = _Loop.apply
    found: tuple[Tensor, Tensor] = apply(kept, gates, share, h, c)
    return found


class _Steps:
    """Values of all steps: h and c ``(N, T + 1, H)``, gates ``(N, T, 4, H)``, the hyperbolic tangent of c."""

    @torch.no_grad()
    def __init__(self, gates: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, c: Tensor) -> None:
        n, length, width = *gates.shape[:2], h.shape[1]
        self.weight = weight
        self.gates = (gates.clone() if bias is None else gates + bias).view(n, length, 4, width)
        self.h, self.c = (gates.new_empty(n, length + 1, width) for _ in range(2))
        self.h[:, 0], self.c[:, 0] = h, c
        self.tanh_c = gates.new_empty(n, length, width)
        for t in range(length):
            step = self.gates[:, t]
            step.view(n, 4 * width).addmm_(self.h[:, t], weight.T)
            step[:, :2].sigmoid_()
            step[:, 2].tanh_()
            step[:, 3].sigmoid_()
            enter, forget, cell, out = step.unbind(1)
            torch.mul(forget, self.c[:, t], out=self.c[:, t + 1]).addcmul_(enter, cell)
            torch.tanh(self.c[:, t + 1], out=self.tanh_c[:, t])
            torch.mul(out, self.tanh_c[:, t], out=self.h[:, t + 1])

    def backward(self, outputs: Tensor, last_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients at the gates ``(N, T, 4 H)`` and at the first state, h and c, from those at the outputs."""
        n, length, _, width = self.gates.shape
        enter, forget, cell, out = self.gates.unbind(2)
        rise = 1 - self.gates
        rise[:, :, 2] = torch.addcmul(self.gates.new_ones(()), cell, cell, value=-1).mul_(enter)
        rise[:, :, 0].mul_(enter).mul_(cell)
        rise[:, :, 1].mul_(forget).mul_(self.c[:, :-1])
        rise[:, :, 3].mul_(out).mul_(self.tanh_c)
        to_c = torch.addcmul(self.gates.new_ones(()), self.tanh_c, self.tanh_c, value=-1).mul_(out)
        dh, dc = outputs[:, -1], last_c.clone()
        for t in reversed(range(length)):
            dc.addcmul_(dh, to_c[:, t])
            rise[:, t, :3].mul_(dc.unsqueeze(1))
            rise[:, t, 3].mul_(dh)
            dc.mul_(forget[:, t])
            gradient = rise[:, t].reshape(n, 4 * width)
            dh = torch.addmm(outputs[:, t - 1], gradient, self.weight) if t else gradient @ self.weight
        return rise.view(n, length, 4 * width), dh, dc


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: _Steps, gates: Tensor, share: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        ctx.steps = steps
        return steps.h[:, 1:].clone(), steps.c[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor, last_c: Tensor) -> tuple[Tensor | None, ...]:
        gates, h, c = ctx.steps.backward(outputs, last_c)
        return None, gates, gates, h, c


class _StateShare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(before)
        return before.new_empty(*before.shape[:2], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gates: Tensor) -> tuple[Tensor | None, ...]:
        (before,) = ctx.saved_tensors
        return None, torch.einsum("ntg,nth->gh", gates, before), gates.sum((0, 1)) if ctx.needs_input_grad[2] else None
