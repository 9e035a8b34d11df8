"""Real numbers: means in units of the standard deviation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import PerOutput


class Gaussian(PerOutput):
    """Normal distribution with mean z and unit variance, so ``H = I``.

    A predicted variance v comes as a second output ``v / (sqrt(2) v0)`` beside ``mean / sqrt(v0)``, with v0 the present
    value of v: the Fisher information ``diag(1/v, 1/(2v²))`` of mean and variance is the identity in these units.
    """

    name: ClassVar[str] = "gaussian"
    convention: ClassVar[str] = "unit variance"

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return one for every output."""
        return torch.ones_like(z)

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return ``z`` plus standard normal noise."""
        return z + draws.normal(z.shape, z, generator)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``½ (z - y)²``."""
        return 0.5 * (z - y).square()

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``z - y``."""
        return z - y

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``½ (z - y)²``; with variances v, u and unscaled means ``½ (v/u - 1 - log(v/u) + (z - y)²/u)``."""
        if variances is None:
            return 0.5 * (z - other).square()
        v, u = variances
        return 0.5 * ((v / u - 1) - (v / u).log() + (z - other).square() / u)
