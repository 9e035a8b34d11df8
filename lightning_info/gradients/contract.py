"""What every per-sample gradient engine takes, gives and raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

LARGE_FROZEN = 1 << 22
"""More weights than these that are not trained (16 MiB) are neither copied nor converted."""
Predict = Callable[[nn.Module, Any], Tensor]
"""``(module, batch) -> outputs (N, ...)``, differentiable in the module's parameters."""

OutputGradients = Callable[[Tensor], dict[str, Tensor]]
"""Numbers ``n C + c`` of R samples and cotangents -> their gradients as real numbers, ``(R, numbers)`` by parameter."""


class NotCovered(Exception):
    """An engine cannot compute every parameter's per-sample gradient exactly; the message says which and why."""


class Norms(dict[str, Tensor]):
    """What an engine gives, by parameter.

    Attributes:
        routes: Who computed each of them (see :attr:`~.plan.Plan.routes`).
    """

    def __init__(self, norms: dict[str, Tensor], routes: dict[str, str]) -> None:
        super().__init__(norms)
        self.routes = routes


def add_gradients(sums: dict[str, Tensor], names: Iterable[str], gradients: Iterable[Tensor | None]) -> None:
    """Add gradients to sums by name; None is zero."""
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            sums[name] = sums[name] + gradient if name in sums else gradient


def add_plain_gradients(
    sums: dict[str, Tensor], module: nn.Module, predict: Predict, batch: Any, cotangents: Iterable[Tensor]
) -> None:
    """Add what one plain backward pass per cotangent gives, for engines that keep no gradient of all samples."""
    outputs, parameters = predict(module, batch), trainable(module)
    for u in cotangents:
        gradients = torch.autograd.grad(
            outputs, list(parameters.values()), u.to(outputs), retain_graph=True, allow_unused=True
        )
        add_gradients(sums, parameters, gradients)


class Engine(Protocol):
    """Computes per-sample squared gradient norms."""

    def __call__(
        self,
        module: nn.Module,
        predict: Predict,
        batch: Any,
        cotangents: Iterable[Tensor],
        sums: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """``{parameter name: sum of ‖J_nᵀ u_n‖² over the cotangents, (N,) float64}`` for every trainable parameter.

        Args:
            module: The module; never changed.
            predict: Gives the outputs ``(N, ...)``.
            batch: N samples.
            cotangents: Tensors of the outputs' shape.
            sums: If given, the gradients themselves, summed over samples and cotangents, are added to it by parameter,
                each of its shape; those of 0 may be missing.

        Raises:
            NotCovered: The engine cannot give all of them exactly.
        """


def call(module: nn.Module, inputs: Any) -> Tensor:
    """The plainest :data:`Predict`: the batch is the module's only input."""
    outputs: Tensor = module(inputs)
    return outputs


def has_large_frozen(module: nn.Module) -> bool:
    """Tell whether so many weights are not trained that they are shared, and nothing is converted to check a module."""
    return sum(p.numel() for p in module.parameters() if not p.requires_grad) > LARGE_FROZEN


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name; tied ones once, under their first name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def first_line(error: Exception) -> str:
    """Of the error's message; its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
