"""Squared and absolute errors that a ``training_step`` writes by hand, recognised by values and gradients.

A loss is c/2 ‖z - y‖² at outputs z and targets y, or a function of it, exactly if its gradient in z is c (z - y)
whatever z is. So the outputs of the module's calls are put in the place of z and compared with the tensors of the
batch: first as they are, then, in float64, with outputs that are drawn about the targets at several distances. It
counts only if the loss then depends on no weight in any other way, and if no other outputs or targets fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_info.gradients.layout import GO_ON, Path, describe, rebuilt
from lightning_info.replica.loss_recognition import gaussian, laplace
from lightning_info.replica.module_calls import SeenStep, gradient_elsewhere, gradients_at, module_calls
from lightning_info.replica.predicted import NoPrediction, Prediction

DISTANCES = (0.1, 1.0, 30.0)
"""Of the outputs that are tried from the targets, in units of the present one."""
FEWEST = 4
"""Values without which a gradient tells nothing."""

Kind = Literal["squared", "absolute"]


@dataclass(frozen=True)
class ElementwiseError:
    """What was recognised.

    Attributes:
        kind: Of which power the error is.
        name: Of the module whose output is compared.
        call: Its place among the module calls of the step, in the order in which they end.
        target: Path of the target in the batch.
    """

    kind: Kind
    name: str
    call: int
    target: Path

    def __str__(self) -> str:
        return f"{self.kind} error between the output of {self.name or 'the module'} and {describe(self.target)}"

    def prediction(self, step: SeenStep) -> Prediction:
        """What a step says of its batch.

        Raises:
            NoPrediction: The loss is another one now.
        """
        z, target, loss = step.output(self.call, self.name), dict(_leaves(step.batch)).get(self.target), step.loss
        target = target if z is None or target is None else _cut(target, z)
        if z is None or target is None or not _comparable(z, target):
            raise NoPrediction(f"the loss was recognised as {self}, which the step has not in this batch")
        y, kept = target.reshape(z.shape), None
        if loss is not None and not is_functorch_wrapped_tensor(z) and z.requires_grad:
            (gradient,) = gradients_at(loss, [z])
            found = None if gradient is None else _factor(self.kind, gradient, z.detach() - y, 1e-3)
            if found is None:
                raise NoPrediction(f"the loss was recognised as {self}, and its gradient is another one now")
            kept = found[1]
        weight = None if kept is None or bool(kept.all()) else kept.to(z.dtype)
        read = gaussian if self.kind == "squared" else laplace
        prediction = read({"input": z, "target": y, "weight": weight}, step.samples)
        prediction.recognised = str(self)
        prediction.trained = step.trained(z)
        return prediction


def recognised(run: Callable[[], Tensor], module: nn.Module, batch: Any) -> ElementwiseError | None:
    """The one elementwise error that the loss is a function of; None if there is none.

    Args:
        run: Runs the ``training_step`` and gives its loss.
        module: Whose step it is.
        batch: As the step gets it.

    Raises:
        NoPrediction: Several fit.
    """
    with module_calls(module) as calls:
        loss = run()
    targets = [(path, leaf) for path, leaf in _leaves(batch) if leaf.is_floating_point()]
    found: list[tuple[ElementwiseError, Tensor, Tensor]] = []
    for place, (name, z) in enumerate(calls):
        pairs = [(path, leaf) for path, leaf in targets if z.numel() >= FEWEST and _comparable(z, leaf)]
        gradient = gradients_at(loss, [z])[0] if pairs and z.requires_grad else None
        if gradient is None:
            continue
        for path, leaf in pairs:
            y = leaf.reshape(z.shape)
            kinds: tuple[Kind, ...] = ("squared", "absolute")
            for kind in kinds:
                one = ElementwiseError(kind, name, place, path)
                if _fits(kind, gradient, z.detach() - y) and _holds(one, run, module, z.detach(), y):
                    found.append((one, z.detach().flatten(), y.flatten()))
    if not found:
        return None
    one, z, y = found[-1]  # the outermost of modules that give the same
    for other, *tensors in found:
        if other.kind != one.kind or not torch.equal(tensors[0], z) or not torch.equal(tensors[1], y):
            raise NoPrediction(f"the gradient of the loss is that of a {one}, and of a {other} as well")
    return one


def _holds(one: ElementwiseError, run: Callable[[], Tensor], module: nn.Module, z: Tensor, y: Tensor) -> bool:
    """Whether the gradient is that of the error at other outputs, and the loss depends on the weights by them only."""
    generator, target = torch.Generator().manual_seed(0), y.double()
    unit = float((z.double() - target).square().mean().sqrt()) or 1.0
    masks = []
    for distance in DISTANCES:
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z.device)
        at = (target + distance * unit * noise).requires_grad_()
        gradient = gradient_elsewhere(run, module, one.call, at)
        if gradient is None:
            return False
        found = _factor(one.kind, gradient, at.detach() - target, 1e-5)
        if found is None:
            return False
        masks.append(found[1])
    return all(torch.equal(mask, masks[0]) for mask in masks)


def _factor(kind: Kind, gradient: Tensor, residual: Tensor, error: float) -> tuple[float, Tensor] | None:
    """If the gradient is c times the residual, or its sign, or 0: c, and where it is not 0; else None."""
    gradient = gradient.double()
    shape = residual.double() if kind == "squared" else residual.double().sign()
    kept = (gradient != 0) | (residual == 0)
    if not gradient.isfinite().all():
        return None
    if not gradient.any():
        return 0.0, kept
    c = float((gradient * shape)[kept].sum() / shape[kept].square().sum())
    scale = gradient.abs().amax() if kind == "absolute" else gradient.square().mean().sqrt()
    wrong = (gradient - c * shape)[kept].abs().amax()
    return (c, kept) if c > 0 and bool(wrong <= error * scale) else None


def _fits(kind: Kind, gradient: Tensor, residual: Tensor) -> bool:
    return int((gradient != 0).sum()) >= FEWEST and _factor(kind, gradient, residual, 1e-3) is not None


def _comparable(z: Tensor, y: Tensor) -> bool:
    """The same shape, but for axes of one element."""
    return [n for n in z.shape if n != 1] == [n for n in y.shape if n != 1]


def _cut(y: Tensor, z: Tensor) -> Tensor:
    """As long as the outputs, where these are cut to the longest sample of some that were cut out of a batch."""
    if y.dim() != z.dim() or any(a > b for a, b in zip(z.shape, y.shape, strict=True)):
        return y
    return y[tuple(slice(0, length) for length in z.shape)]


def _leaves(batch: Any) -> list[tuple[Path, Tensor]]:
    found: list[tuple[Path, Tensor]] = []

    def visit(path: Path, value: Any) -> Any:
        if isinstance(value, Tensor):
            found.append((path, value))
            return value
        return GO_ON

    rebuilt(batch, visit)
    return found
