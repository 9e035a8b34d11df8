"""Counts: logarithms of their rates."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import PerOutput


class Poisson(PerOutput):
    """``p(y | z) = exp(y z - λ) / y!`` with the rate ``λ = exp(z)``, which is also H."""

    name: ClassVar[str] = "poisson"
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return ``exp(z)``."""
        return z.exp()

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return counts, float64."""
        return draws.poisson(z.exp(), generator)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``exp(z) - y z``."""
        return z.exp() - y * z

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``exp(z) - y``."""
        return z.exp() - y

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``exp(z) (exp(d) - 1 - d)`` with ``d = other - z``."""
        d = other - z
        return z.exp() * (torch.expm1(d) - d)
