"""Labels that are there or not: one logit each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood, columns_of


class Bernoulli(Likelihood):
    """``p = sigmoid(z)`` of every output, and ``H = diag(p (1 - p))``."""

    name: ClassVar[str] = "bernoulli"

    def fisher_trace(self, z: Tensor) -> Tensor:
        """``p (1 - p)``."""
        return z.sigmoid() * (-z).sigmoid()

    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """``p (1 - p) t``."""
        return self.fisher_trace(z) * t

    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        """One output at a time: ``sqrt(p (1 - p))``."""
        return columns_of(self.fisher_trace(z).sqrt())

    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """``"sampled"``: the score of a label from the model; else ``± sqrt(p (1 - p))``."""
        if estimator == "sampled":
            return self.score(z, self.sample(z, generator))
        return draws.signs(z.shape, z, generator) * self.fisher_trace(z).sqrt()

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Labels 0 and 1, float64."""
        return (draws.uniform(z.shape, z, generator) < z.sigmoid()).double()

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """``p - y``."""
        return z.sigmoid() - y

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q))``."""
        there = z.sigmoid() * (logsigmoid(z) - logsigmoid(other))
        return there + (-z).sigmoid() * (logsigmoid(-z) - logsigmoid(-other))
