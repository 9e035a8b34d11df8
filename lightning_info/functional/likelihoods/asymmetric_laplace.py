"""Real numbers with two different exponential tails: the density whose ``-log`` is a quantile loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import PerOutput


class AsymmetricLaplace(PerOutput):
    """``p(y | z) = τ(1 - τ) exp(-ρ(y - z))`` with ``ρ(r) = τ r`` above 0 and ``(τ - 1) r`` below: z is the τ-quantile.

    ``H = τ(1 - τ)`` for every output, at a scale of 1 by convention. It is the density of one level. A quantile loss of
    several levels of the same target defines no joint density, so no loss is recognised as this automatically: an
    adapter returns the outputs of one level and this distribution. Source: Yu & Moyeed, *Bayesian quantile regression*,
    2001.

    Args:
        quantile: τ, between 0 and 1.

    Raises:
        ValueError: The quantile is not between 0 and 1.
    """

    name: ClassVar[str] = "asymmetric_laplace"
    convention: ClassVar[str] = "unit scale"

    def __init__(self, quantile: float) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"AsymmetricLaplace: quantile={quantile} must lie between 0 and 1, say quantile=0.9")
        self.quantile = float(quantile)

    def __str__(self) -> str:
        return f"{self.name} (quantile = {self.quantile:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsymmetricLaplace) and other.quantile == self.quantile

    def __hash__(self) -> int:
        return hash((AsymmetricLaplace, self.quantile))

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return ``τ(1 - τ)``, for every output."""
        return torch.full_like(z, self.quantile * (1 - self.quantile))

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return ``z`` plus an exponential, above with probability ``1 - τ``."""
        size = -torch.log1p(-draws.uniform(z.shape, z, generator))
        below = draws.uniform(z.shape, z, generator) < self.quantile
        return z + torch.where(below, -size / (1 - self.quantile), size / self.quantile)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``ρ(y - z)``."""
        residual = y - z
        return torch.maximum(self.quantile * residual, (self.quantile - 1) * residual)

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``1 - τ`` where y is below z, else ``-τ``."""
        return (y < z).to(z) - self.quantile

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``(1 - τ)(d + (exp(-τ d) - 1)/τ)`` at a distance d above z; below it with τ and 1 - τ exchanged."""
        d, tau = other - z, self.quantile
        above, below = d.clamp_min(0), (-d).clamp_min(0)
        high = (1 - tau) * (above + torch.expm1(-tau * above) / tau)
        return high + tau * (below + torch.expm1(-(1 - tau) * below) / (1 - tau))
