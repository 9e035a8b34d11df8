"""What the modules of a step give, and the gradient of its loss there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.replica.returned_loss import TrainedLoss, edge_of
from lightning_info.replica.shown_tensor import shown_tensor


@dataclass
class SeenStep:
    """One pass of a ``training_step``.

    Attributes:
        calls: Of modules, as :func:`module_calls` gives them.
        loss: With a graph; None where there is none, as where gradients are off.
        batch: As the step got it.
        samples: In it.
        again: Runs the same step on the same batch and gives its loss.
        module: Whose step it is.
    """

    calls: list[tuple[str, Tensor]]
    loss: Tensor | None
    batch: Any
    samples: int
    again: Callable[[], Tensor]
    module: nn.Module

    def trained(self, outputs: Tensor) -> TrainedLoss | None:
        """The loss as a function of outputs of a module; None where there is no graph."""
        if self.loss is None or is_functorch_wrapped_tensor(outputs):
            return None
        edge = edge_of(outputs)
        return None if edge is None else TrainedLoss([self.loss], [edge])

    def output(self, call: int, name: str) -> Tensor | None:
        """What a module call gave; None if it is none of that module."""
        return self.calls[call][1] if call < len(self.calls) and self.calls[call][0] == name else None


@contextmanager
def module_calls(module: nn.Module, replace: dict[int, Tensor] | None = None) -> Iterator[list[tuple[str, Tensor]]]:
    """Name and output of every module call that gives one real tensor, in the order in which they end.

    Args:
        module: The module.
        replace: Tensors in the places of some of the outputs, by the number of the call.
    """
    calls: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[..., Any]:
        def see(part: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or shown_tensor(output) is None or not output.is_floating_point():
                return None
            calls.append((name, output))
            return None if replace is None else replace.get(len(calls) - 1)

        return see

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def gradients_at(loss: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of a loss in outputs of modules, None where it does not depend on them."""
    return torch.autograd.grad(loss, list(outputs), retain_graph=True, allow_unused=True)


def gradient_elsewhere(run: Callable[[], Tensor], module: nn.Module, call: int, outputs: Tensor) -> Tensor | None:
    """The gradient of a step's loss in other outputs of a module call.

    Args:
        run: Runs the ``training_step`` and gives its loss.
        module: Whose step it is.
        call: The number of the call.
        outputs: Put in the place of what it gives; they require a gradient.

    Returns:
        None where the step fails with them, or its loss depends on a weight in another way than by them.
    """
    try:
        with module_calls(module, {call: outputs}):
            loss = run()
        gradient, *others = gradients_at(loss, [outputs, *(p for p in module.parameters() if p.requires_grad)])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None
    return gradient if all(other is None for other in others) else None
