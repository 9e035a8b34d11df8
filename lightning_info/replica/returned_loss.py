"""What a ``training_step`` goes backward from, seen from the likelihood call in it: which positions it trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import handle_torch_function, has_torch_function


def backward(loss: Any, *args: Any, **kwargs: Any) -> None:
    """Stands for ``manual_backward`` on a replica: shows the loss to whoever watches, and does nothing."""
    if isinstance(loss, Tensor) and has_torch_function((loss,)):
        handle_torch_function(backward, (loss,), loss)


def edge_of(value: Tensor) -> GradientEdge | None:
    """The place of a value in the graph, which stays the same when the value is written to; None without a graph."""
    return get_gradient_edge(value) if value.requires_grad else None


@dataclass
class ReturnedLoss:
    """The loss that is trained, and the likelihood call's value in it.

    Attributes:
        losses: Scalars with a graph: the returned loss, or every one that went backward; their sum is trained.
        value: What the likelihood call gave, without a graph.
        edge: Its place in the graph.
        is_each: It has a value for every position (``reduction="none"``).
    """

    losses: list[Tensor]
    value: Tensor
    edge: GradientEdge | None
    is_each: bool

    @cached_property
    def gradient(self) -> Tensor | None:
        """``∂ loss / ∂ value``, like the value; None if the loss has no graph, or does not depend on it.

        Where the call gave a value for every position this is the weight of each, exactly 0 where a mask leaves it out,
        however the mask was applied.
        """
        if not self.losses or self.edge is None:
            return None
        (gradient,) = torch.autograd.grad(self.losses, [self.edge], retain_graph=True, allow_unused=True)
        return gradient

    @property
    def beyond(self) -> float:
        """What the loss holds beyond :attr:`share`; 0 where that is rounding, and where the loss is not known."""
        if not self.losses:
            return 0.0
        rest = self.total - self.share
        rounding = 10 * torch.finfo(self.value.dtype).eps * max(abs(self.total), abs(self.share))
        return 0.0 if abs(rest) <= rounding else rest

    @cached_property
    def total(self) -> float:
        """The loss, NaN if it is not known."""
        return float(sum(loss.detach().double().item() for loss in self.losses)) if self.losses else float("nan")

    @cached_property
    def share(self) -> float:
        """What the likelihood gives to the loss, each position with its weight."""
        if self.gradient is None:
            return 0.0
        part = self.gradient.detach().double() * self.value.double()
        return float(part[self.gradient != 0].sum().item())
