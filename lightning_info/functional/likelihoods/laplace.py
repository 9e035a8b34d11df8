"""Real numbers with heavy tails: locations in units of the scale."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import PerOutput


class Laplace(PerOutput):
    """``p(y | z) = ½ exp(-|y - z|)``, the density whose ``-log`` is the absolute error.

    The scale is 1 by convention, as the absolute error does not determine it; with a scale b, H is ``1/b²`` times that.
    The score is ``± 1``, so ``H = E[s²] = 1`` for every output, although the curvature of ``|y - z|`` is 0 almost
    everywhere.
    """

    name: ClassVar[str] = "laplace"
    convention: ClassVar[str] = "unit scale"

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return one for every output."""
        return torch.ones_like(z)

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return ``z`` plus an exponential of random sign."""
        size = -torch.log1p(-draws.uniform(z.shape, z, generator))
        return z + draws.signs(z.shape, z, generator) * size

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``|z - y|``."""
        return (z - y).abs()

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the sign of ``z - y``."""
        return (z - y).sign()

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``d + exp(-d) - 1`` at a distance d."""
        d = (z - other).abs()
        return torch.expm1(-d) + d
