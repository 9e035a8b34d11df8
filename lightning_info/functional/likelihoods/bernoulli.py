"""Labels that are there or not: one logit each."""

from __future__ import annotations

from typing import ClassVar

from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, softplus

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import PerOutput


class Bernoulli(PerOutput):
    """``p = sigmoid(z)`` of every output, and ``H = diag(p (1 - p))``."""

    name: ClassVar[str] = "bernoulli"
    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return ``p (1 - p)``."""
        return z.sigmoid() * (-z).sigmoid()

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return labels 0 and 1, float64."""
        return (draws.uniform(z.shape, z, generator) < z.sigmoid()).double()

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``log(1 + exp z) - y z``."""
        return softplus(z) - y * z

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``p - y``."""
        return z.sigmoid() - y

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q))``."""
        there = z.sigmoid() * (logsigmoid(z) - logsigmoid(other))
        return there + (-z).sigmoid() * (logsigmoid(-z) - logsigmoid(-other))
