"""Cross entropies that a ``training_step`` writes by hand, recognised by their gradient, which also tells the labels.

A loss is c times the summed cross entropy of logits z exactly if its gradient in z is c (p(z) - e_y) whatever z is,
with the softmax or the sigmoids p of z and labels y that do not depend on it: at a label, and only there, the gradient
is negative. So the outputs of the module's calls are put in the place of z: first as they are, then drawn at several
sizes, in float64. It counts only if the labels and c stay the same and the loss then depends on no weight in any other
way. What it leaves out has the gradient 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_info.replica.loss_recognition import bernoulli, categorical
from lightning_info.replica.module_calls import gradient_elsewhere, gradients_at, module_calls
from lightning_info.replica.predicted import NoPrediction, Prediction

SIZES = (0.3, 1.0, 3.0)
"""Of the logits that are tried."""
FEWEST = 4
"""Labels without which a gradient tells nothing."""
SURE = 1e-6
"""Probability of all but one class below which the gradient may be 0 at a label, too: it counts as nothing."""
_IGNORED = -100

Kind = Literal["categorical", "bernoulli"]


@dataclass(frozen=True)
class ClassificationLoss:
    """What was recognised.

    Attributes:
        kind: Softmax or sigmoids.
        name: Of the module whose output are the logits.
        call: Its place among the module calls of the step, in the order in which they end.
        axis: Of the classes; 0 where every output is a class of its own.
    """

    kind: Kind
    name: str
    call: int
    axis: int

    def __str__(self) -> str:
        what = "cross entropy" if self.kind == "categorical" else "binary cross entropy"
        classes = f", classes on axis {self.axis}" if self.axis else ""
        return f"{what} of the output of {self.name or 'the module'}{classes}"

    def prediction(self, calls: list[tuple[str, Tensor]], loss: Tensor | None, batch: Any, samples: int) -> Prediction:
        """What the step says of a batch.

        Args:
            calls: Of the step, as :func:`~.module_calls.module_calls` gives them.
            loss: With a graph; None where there is none, so that there are no labels.
            batch: As the step gets it.
            samples: In it.

        Raises:
            NoPrediction: The loss is another one now.
        """
        z = calls[self.call][1] if self.call < len(calls) and calls[self.call][0] == self.name else None
        if z is None:
            raise NoPrediction(f"the loss was recognised as {self}, which the step has not in this batch")
        found: _Labels | None = None
        if loss is not None and z.requires_grad and not is_functorch_wrapped_tensor(z):
            (gradient,) = gradients_at(loss, [z])
            found = None if gradient is None else self.labels(gradient, z.detach(), 1e-3)
            if found is None:
                raise NoPrediction(f"the loss was recognised as {self}, and its gradient is another one now")
        logits = z.movedim(self.axis, 1) if self.axis else z
        if self.kind == "categorical":
            y = None if found is None else found.y.masked_fill(~found.kept, _IGNORED)
            prediction = categorical({"input": logits, "target": y}, samples)
        else:
            y = None if found is None else found.y.to(z.dtype)
            kept = None if found is None or bool(found.kept.all()) else found.kept.to(z.dtype)
            prediction = bernoulli({"input": logits, "target": y, "weight": kept}, samples)
        prediction.recognised = str(self)
        return prediction

    def labels(self, gradient: Tensor, z: Tensor, error: float) -> _Labels | None:
        """If the gradient in z is c (p - e_y), or 0: c, the labels, and where it is not 0; else None.

        Args:
            gradient: Like z.
            z: Logits.
            error: Relative to c.
        """
        g, z = gradient.double(), z.double()
        if self.kind == "bernoulli":
            p, y, known = z.sigmoid(), g < 0, g != 0
            y, sure = torch.where(known, y, p > 0.5), torch.minimum(p, 1 - p) < SURE
            truth = p - y.double()
        else:
            g, z = (tensor.movedim(self.axis, -1) for tensor in (g, z))
            p, y, known = z.softmax(-1), g.argmin(-1), (g != 0).any(-1)
            y, sure = torch.where(known, y, p.argmax(-1)), 1 - p.amax(-1) < SURE
            truth = p - F.one_hot(y, z.shape[-1])
        if not g.isfinite().all():
            return None
        if not known.any():
            return _Labels(math.nan, y, sure)
        c = float(g[known].abs().sum() / truth[known].abs().sum())
        wrong = (g - c * truth)[known].abs().amax()
        return _Labels(c, y, known | sure) if bool(wrong <= error * c) else None


@dataclass
class _Labels:
    scale: float
    y: Tensor
    kept: Tensor

    def is_as(self, other: _Labels) -> bool:
        """The same labels and scale."""
        same = torch.equal(self.kept, other.kept) and torch.equal(self.y[self.kept], other.y[self.kept])
        return same and abs(self.scale - other.scale) <= 1e-5 * self.scale


def recognised(run: Callable[[], Tensor], module: nn.Module) -> ClassificationLoss | None:
    """The one cross entropy that the loss is; None if it is none.

    Args:
        run: Runs the ``training_step`` and gives its loss.
        module: Whose step it is.

    Raises:
        NoPrediction: Several fit.
    """
    with module_calls(module) as calls:
        loss = run()
    outputs = [(place, name, z) for place, (name, z) in enumerate(calls) if z.requires_grad and z.dim() > 0]
    gradients = gradients_at(loss, [z for *_, z in outputs]) if outputs else ()
    found: list[tuple[ClassificationLoss, Tensor]] = []
    for (place, name, z), gradient in zip(outputs, gradients, strict=True):
        if gradient is None:
            continue
        shapes: list[tuple[Kind, int]] = [("categorical", axis) for axis in {1, z.dim() - 1} - {0}]
        for kind, axis in [*shapes, ("bernoulli", 0)]:
            one = ClassificationLoss(kind, name, place, axis)
            here = one.labels(gradient, z.detach(), 1e-3)
            if here is not None and int(here.kept.sum()) >= FEWEST and _holds(one, run, module, z.detach()):
                found.append((one, z.detach()))
    if not found:
        return None
    one, z = found[-1]  # the outermost of modules that give the same
    for other, tensor in found:
        if other.kind != one.kind or not torch.equal(tensor.flatten(), z.flatten()):
            raise NoPrediction(f"the gradient of the loss is that of a {one}, and of a {other} as well")
    return one


def _holds(one: ClassificationLoss, run: Callable[[], Tensor], module: nn.Module, z: Tensor) -> bool:
    """Whether it is the same at other logits, and the loss depends on the weights by them only."""
    generator = torch.Generator().manual_seed(0)
    known: _Labels | None = None
    for size in SIZES:
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z.device)
        at = (size * noise).requires_grad_()
        gradient = gradient_elsewhere(run, module, one.call, at)
        if gradient is None:
            return False
        found = one.labels(gradient, at.detach(), 1e-5)
        if found is None or (known is not None and not known.is_as(found)):
            return False
        known = found
    return True
