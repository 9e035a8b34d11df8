"""What a ``training_step`` goes backward from, seen from the likelihood call in it: which positions it trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import handle_torch_function, has_torch_function

AGREES = 1e-3
"""Relative difference of two gradients that rounding may make."""


def backward(loss: Any, *args: Any, **kwargs: Any) -> None:
    """Stands for ``manual_backward`` on a replica: shows the loss to whoever watches, and does nothing."""
    if isinstance(loss, Tensor) and has_torch_function((loss,)):
        handle_torch_function(backward, (loss,), loss)


def edge_of(value: Tensor) -> GradientEdge | None:
    """The place of a value in the graph, which stays the same when the value is written to; None without a graph."""
    return get_gradient_edge(value) if value.requires_grad else None


@dataclass
class TrainedLoss:
    """The loss that is trained, and the outputs that its likelihood calls read.

    Attributes:
        losses: Scalars with a graph; their sum is trained. None are known where they have no graph.
        edges: Places of the outputs in the graph, as the calls get them.
    """

    losses: list[Tensor]
    edges: list[GradientEdge]

    def factor(self, outputs: Tensor, gradient: Tensor) -> float | None:
        """Return c where the gradient of the loss in the outputs is c times the one given; None if it is another.

        Both are compared where the calls read the outputs: nothing below is run backward.

        Args:
            outputs: ``(N, ...)``, made of what the calls read.
            gradient: One in the outputs, of the same shape.
        """
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
        mine = torch.autograd.grad(self.losses, self.edges, **options)
        given = torch.autograd.grad(outputs, self.edges, gradient.to(outputs), **options)
        pairs = [(a.double(), b.double()) for a, b in zip(mine, given, strict=True) if a is not None and b is not None]
        product = sum((a * b).sum().item() for a, b in pairs)
        square = sum(b.square().sum().item() for _, b in pairs)
        whole = sum(a.double().square().sum().item() for a in mine if a is not None)
        c = product / square if square else 0.0
        return c if whole - c * product <= AGREES**2 * whole else None


@dataclass
class ReturnedLoss:
    """The loss that is trained, and the values of likelihood calls in it.

    Attributes:
        losses: Scalars with a graph: the returned loss, or every one that went backward; their sum is trained.
        values: What the likelihood calls gave, without a graph.
        edges: Their places in the graph.
        is_each: They have a value for every position (``reduction="none"``).
    """

    losses: list[Tensor]
    values: list[Tensor]
    edges: list[GradientEdge | None]
    is_each: bool

    @cached_property
    def gradients(self) -> list[Tensor | None]:
        """``∂ loss / ∂ value``, like each value; None if the loss has no graph, or does not depend on it."""
        known = [edge for edge in self.edges if edge is not None]
        if not self.losses or not known:
            return [None] * len(self.edges)
        found = iter(torch.autograd.grad(self.losses, known, retain_graph=True, allow_unused=True))
        return [None if edge is None else next(found) for edge in self.edges]

    @property
    def gradient(self) -> Tensor | None:
        """Of the one value that there is; of several that are alike the sum of their sizes.

        Where a call gave a value for every position this is the weight of each, exactly 0 where a mask leaves it out,
        however the mask was applied.
        """
        found = [gradient for gradient in self.gradients if gradient is not None]
        if len(self.values) == 1 or not found:
            return found[0] if found else None
        alike = all(gradient.shape == found[0].shape for gradient in found)
        return torch.stack([gradient.abs() for gradient in found]).sum(0) if alike else None

    @property
    def beyond(self) -> float:
        """What the loss holds beyond :attr:`share`; 0 where that is rounding, and where the loss is not known."""
        if not self.losses:
            return 0.0
        rest = self.total - self.share
        rounding = 10 * torch.finfo(self.values[0].dtype).eps * max(abs(self.total), abs(self.share))
        return 0.0 if abs(rest) <= rounding else rest

    @cached_property
    def total(self) -> float:
        """The loss, NaN if it is not known."""
        return float(sum(loss.detach().double().item() for loss in self.losses)) if self.losses else float("nan")

    @cached_property
    def share(self) -> float:
        """What the likelihood calls give to the loss, each position with its weight."""
        total = 0.0
        for value, gradient in zip(self.values, self.gradients, strict=True):
            if gradient is not None:
                part = gradient.detach().double() * value.double()
                total += part[gradient != 0].sum().item()
        return total
