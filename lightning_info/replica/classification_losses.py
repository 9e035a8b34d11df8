"""Cross entropies that a ``training_step`` writes by hand, recognised by their gradient, which also tells the targets.

A loss is a sum of cross entropies of logits z, each with a weight v of its own, exactly if its gradient in z is
v (p(z) - q) whatever z is, with the softmax or the sigmoids p of z, and probabilities q and weights v >= 0 that do not
depend on z (:mod:`~.class_gradients`). So the outputs of the module's calls are taken for z: as they are, and replaced
by others, in float64. It counts only if q and v stay the same and the loss depends on no weight in any other way. What
it leaves out has the gradient 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_info.replica.class_gradients import Kind, Targets, of_labels, of_probabilities, of_smoothed_labels
from lightning_info.replica.experiments import experiment
from lightning_info.replica.loss_recognition import bernoulli, categorical
from lightning_info.replica.module_calls import SeenStep, gradient_elsewhere, gradients_at, module_calls
from lightning_info.replica.predicted import NoPrediction, Prediction

_TRIED = 3
"""Logits at which the loss is looked at; two of them tell targets and weights."""
FEWEST = 4
"""Labels without which a gradient tells nothing."""
_HERE, _ELSEWHERE = 1e-3, 1e-5
"""Errors that are allowed at the outputs as they are, and at others, in float64."""
_IGNORED = -100


@dataclass
class ClassificationLoss:
    """What was recognised.

    Attributes:
        kind: Softmax or sigmoids.
        name: Of the module whose output are the logits.
        call: Its place among the module calls of the step, in the order in which they end.
        axis: Of the classes; 0 where every output is a class of its own.
        smoothing: ε of the labels, 0 where they are as they are; None where the targets are other probabilities.
        scale: Weight of every row in the first batch; None where they differ.
        rows: That count, in the first batch.
    """

    kind: Kind
    name: str
    call: int
    axis: int
    smoothing: float | None = 0.0
    scale: float | None = None
    rows: int = 0

    def __str__(self) -> str:
        what = "cross entropy" if self.kind == "categorical" else "binary cross entropy"
        classes = f", classes on axis {self.axis}" if self.axis else ""
        labels = " at probabilities" if self.smoothing is None else ""
        labels = f" at labels smoothed by {self.smoothing:.3g}" if self.smoothing else labels
        weights = " with weights" if self.scale is None else ""
        return f"{what} of the output of {self.name or 'the module'}{classes}{labels}{weights}"

    def prediction(self, step: SeenStep) -> Prediction:
        """What a step says of its batch.

        Raises:
            NoPrediction: The loss is another one now.
        """
        z = step.output(self.call, self.name)
        if z is None:
            raise NoPrediction(f"the loss was recognised as {self}, which the step has not in this batch")
        found: Targets | None = None
        if step.loss is not None and z.requires_grad and not is_functorch_wrapped_tensor(z):
            (gradient,) = gradients_at(step.loss, [z])
            found = None if gradient is None else self._targets(gradient, z.detach(), step)
            if found is None:
                raise NoPrediction(f"the loss was recognised as {self}, and its gradient is another one now")
        prediction = self._read(z, found, step.samples)
        prediction.recognised = str(self)
        prediction.trained = step.trained(z)
        return prediction

    def _read(self, z: Tensor, found: Targets | None, samples: int) -> Prediction:
        if self.kind == "bernoulli":
            y = None if found is None else (found.q if self.smoothing is None else found.q.round()).to(z.dtype)
            kept = None if found is None or bool(found.kept.all()) else found.kept.to(z.dtype)
            return bernoulli({"input": z, "target": y, "weight": kept}, samples)
        arguments = {"input": z.movedim(self.axis, 1), "target": None}
        if found is not None and self.smoothing is None:
            arguments["target"] = found.q.movedim(-1, 1).to(z.dtype)
        elif found is not None:
            arguments["target"] = found.q.argmax(-1).masked_fill(~found.kept, _IGNORED)
        return categorical(arguments | ({"label_smoothing": self.smoothing} if self.smoothing else {}), samples)

    def _targets(self, gradient: Tensor, z: Tensor, step: SeenStep) -> Targets | None:
        """Of a batch; passes at other logits are made where the gradient alone does not tell them."""
        g, at = self._rows(gradient), self._rows(z)
        if self.smoothing == 0 and self.scale is not None:
            found = of_labels(self.kind, g, at, _HERE)
            if found is not None:
                return found
        elif self.smoothing and self.scale is not None:
            counted = int((g != 0).any(-1).sum())
            for scale in (self.scale * self.rows / max(counted, 1), self.scale):  # of a mean, and of a sum
                found = of_smoothed_labels(g, at, self.smoothing, scale, _HERE)
                if found is not None:
                    return found
        with experiment():
            tried = list(_elsewhere(step.again, step.module, self.call, z, 2))
        found = self._solved(tried) if len(tried) == 2 else None
        if found is None or not found.holds(self.kind, g, at, _HERE):
            return None
        if bool(found.kept.any()):
            self._widen(found)
        return found

    def fits(self, seen: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the loss is this one; notes its targets and weights.

        Args:
            seen: Its gradients with the logits that they are at: those of the step, then others.
        """
        (gradient, z), *tried = seen
        found = self._solved(tried)
        if found is None or int(found.kept.sum()) < FEWEST:
            return False
        if not found.holds(self.kind, self._rows(gradient), self._rows(z), _HERE):
            return False
        self.smoothing, self.scale, self.rows = found.smoothing(self.kind), found.scale, int(found.kept.sum())
        return True

    def _solved(self, tried: list[tuple[Tensor, Tensor]]) -> Targets | None:
        """From gradients at several logits; None if it is no cross entropy."""
        pairs = [(self._rows(gradient), self._rows(z)) for gradient, z in tried]
        found = of_probabilities(self.kind, *pairs[:2])
        holds = found is not None and all(found.holds(self.kind, *pair, _ELSEWHERE) for pair in pairs)
        return found if holds else None

    def _widen(self, found: Targets) -> None:
        """What a batch shows that the first one did not, such as labels that are mixed in some batches only."""
        smoothing, scale = found.smoothing(self.kind), found.scale
        if smoothing is None or self.smoothing is None or not math.isclose(smoothing, self.smoothing, abs_tol=1e-4):
            self.smoothing = None
        self.scale = None if scale is None else self.scale

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.double().movedim(self.axis, -1) if self.kind == "categorical" else tensor.double()


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
    weights: set[Tensor] = {p for p in module.parameters() if p.requires_grad}
    found: list[tuple[ClassificationLoss, Tensor]] = []
    for place, (name, z) in enumerate(calls):
        if not z.requires_grad or z.dim() == 0 or _reaches(loss, weights, z):
            continue
        (gradient,) = gradients_at(loss, [z])
        if gradient is None:
            continue
        tried = list(_elsewhere(run, module, place, z))
        if len(tried) < _TRIED:
            continue
        axes = {1, z.dim() - 1} - {0, z.dim()}
        shapes: list[tuple[Kind, int]] = [("categorical", axis) for axis in axes if z.shape[axis] > 1]
        for kind, axis in [*shapes, ("bernoulli", 0)]:
            one = ClassificationLoss(kind, name, place, axis)
            if one.fits([(gradient, z.detach()), *tried]):
                found.append((one, z.detach()))
    if not found:
        return None
    one, z = found[-1]  # the outermost of modules that give the same
    for other, tensor in found:
        if other.kind != one.kind or not torch.equal(tensor.flatten(), z.flatten()):
            raise NoPrediction(f"the gradient of the loss is that of a {one}, and of a {other} as well")
    return one


def _elsewhere(
    run: Callable[[], Tensor], module: nn.Module, call: int, z: Tensor, most: int = _TRIED
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients at other logits, with them, as long as they are to be had; every probability differs in the first two.

    Args:
        run: See :func:`recognised`.
        module: See :func:`recognised`.
        call: The number of the module call that gives the logits.
        z: What it gave.
        most: How many.
    """
    places = sum(torch.arange(n).reshape(-1, *(1,) * (z.dim() - 1 - axis)) for axis, n in enumerate(z.shape))
    for size, step, seed in ((0.3, 0.0, 0), (0.3, 2.0, 0), (3.0, 0.0, 1))[:most]:
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        at = (size * noise + step * (1 - 2 * (places % 2))).to(z.device).requires_grad_()
        gradient = gradient_elsewhere(run, module, call, at)
        if gradient is None:
            return
        yield gradient, at.detach()


def _reaches(loss: Tensor, weights: set[Tensor], z: Tensor) -> bool:
    """Whether the graph leads from a loss to a weight on a way that is not by z."""
    seen, nodes = {z.grad_fn}, [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) in weights:
            return True
        nodes.extend(one for one, _ in node.next_functions)
    return False
