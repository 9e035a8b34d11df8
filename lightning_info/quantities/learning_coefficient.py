"""``LocalLearningCoefficient``: λ of a network by sampling of its weights, for ``measure`` and ends of epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_info import validation
from lightning_info.functional.learning_coefficient import local_learning_coefficient
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import flat
from lightning_info.quantities.quantity import NotMeasurable, Point, Quantity
from lightning_info.quantities.weight_information.curvature import choose_curvature
from lightning_info.quantities.weight_information.noisy_loss import has_loss, moved
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.timing import trial
from lightning_info.reporting.description import Description


class LocalLearningCoefficient(Quantity):
    r"""Measures the local learning coefficient, see :mod:`~..functional.learning_coefficient`.

    It takes ``chains * (burn_in + steps)`` forward and backward passes over all reference samples, each point: use it
    with :func:`~lightning_info.measure`, or at ends of epochs::

        result = measure(net, data, InfoCallback(LocalLearningCoefficient()))
        trainer = Trainer(callbacks=[InfoCallback(LocalLearningCoefficient(), every_n_epochs=10)])

    - ``learning_coefficient/value`` and ``_stderr``: λ and its Monte-Carlo error. NaN, with the reason, where the
      chains have not converged or the weights are no minimum.
    - ``learning_coefficient/r_hat``, ``/effective_samples``: the worse of the loss and of the distance from the start.
      ``learning_coefficient/drift``: of λ, from the first to the second half of the draws. They are there where the
      value is refused too.

    Args:
        localisation: γ, precision of the Gaussian prior around the weights.
        chains: Number of chains.
        steps: Steps of each that count.
        burn_in: Steps before these.
    """

    name = "learning_coefficient"
    moves_weights = True
    tags = tuple(f"learning_coefficient/{n}" for n in ("value", "value_stderr", "r_hat", "effective_samples", "drift"))
    table = (("learning_coefficient/value", "learning_coefficient/value_stderr"),)
    descriptions: ClassVar[Mapping[str, Description]] = {
        "learning_coefficient/value": Description(
            "Local learning coefficient of the loss, by sampling of the weights",
            "",
            "the data fix more directions in the weights",
            "the data fix fewer directions in the weights",
            "It depends on the prior around the weights, and on the number of training samples.",
        ),
        "learning_coefficient/r_hat": Description(
            "Disagreement of the chains, 1 if there is none", caution="Above 1.05 there is no value."
        ),
        "learning_coefficient/effective_samples": Description(
            "Number of independent draws that the chains are worth", caution="Below 100 there is no value."
        ),
        "learning_coefficient/drift": Description(
            "Change of the coefficient from the first to the second half of the draws",
            caution="Beyond three of its Monte-Carlo errors there is no value.",
        ),
    }

    def __init__(self, localisation: float = 100.0, chains: int = 4, steps: int = 1000, burn_in: int = 500) -> None:
        self.localisation, self.chains, self.steps, self.burn_in = localisation, chains, steps, burn_in
        self.least_passes = float(chains * (steps + burn_in))

    @override
    def check(self, owner: str) -> None:
        validation.positive_number(owner, "localisation", self.localisation, 100.0)
        for name, example in (("chains", 4), ("steps", 1000), ("burn_in", 500)):
            validation.positive_integer(owner, name, getattr(self, name), example)
        if self.chains < 2 or self.steps < 8:
            raise ValueError(f"{owner}: chains={self.chains}, steps={self.steps}; give at least 2 chains of 8 steps")

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        if not has_loss(snapshot):
            raise NotMeasurable("there are no targets to take the loss at; an adapter gives them beside the outputs")
        self._losses(snapshot, self._start(snapshot).unsqueeze(0))
        return {
            "measures": f"local learning coefficient by {self.chains} Langevin chains of {self.burn_in} + {self.steps} "
            f"steps, prior precision {self.localisation:g}"
        }

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        start = self._start(snapshot).unsqueeze(0)
        each = trial(lambda: self._losses(snapshot, start), snapshot.device)
        return self.least_passes * each * samples / snapshot.size

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        n = point.training_samples(snapshot.size)
        if n < 3:
            raise Unavailable(f"the scale n / log n of the coefficient needs 3 training samples, and there are {n:g}")
        plan = choose_curvature(snapshot, snapshot.size, "diagonal")
        curvature = n / math.log(n) * plan.diagonal(snapshot, point.generator)
        found = local_learning_coefficient(
            lambda w: self._losses(snapshot, w),
            self._start(snapshot),
            n,
            point.generator,
            localisation=self.localisation,
            scale=(curvature + self.localisation).rsqrt(),
            chains=self.chains,
            steps=self.steps,
            burn_in=self.burn_in,
        )
        if found.refused:
            point.warn(f"no learning_coefficient/value at step {point.step} (NaN): {found.refused}", "refused")
        both = found.chains, found.distance
        numbers = (
            found.value,
            found.stderr,
            max(one.r_hat for one in both),
            min(one.effective_samples for one in both),
            found.chains.drift,
        )
        return dict(zip(self.tags, numbers, strict=True))

    @staticmethod
    def _start(snapshot: ModelSnapshot) -> Tensor:
        return torch.cat([flat(p.detach()).double() for p in trainable(snapshot.module).values()])

    def _losses(self, snapshot: ModelSnapshot, weights: Tensor) -> Tensor:
        """Return the mean loss at each row of weights, with its gradient."""
        parameters, start = list(trainable(snapshot.module).values()), self._start(snapshot)
        found = []
        for row in weights:
            with moved(snapshot, row.detach() - start):
                total, slope = 0.0, torch.zeros_like(start)
                for part in snapshot.parts():
                    loss = snapshot.predictor(snapshot.module, part).summed_loss()
                    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                    pairs = zip(gradients, parameters, strict=True)
                    slope += torch.cat([flat(torch.zeros_like(p) if g is None else g).double() for g, p in pairs])
                    total += loss.detach().double().item()
            found.append((total + (row - row.detach()) @ slope) / snapshot.size)
        return torch.stack(found)

    @override
    def settings(self) -> Mapping[str, object]:
        return {"localisation": float(self.localisation)}
