r"""Gaussian weights with a standard deviation for each, as distributions Q whose draws and KL are of one spread.

.. math:: \mathrm{KL}\bigl(\mathcal N(\mu, \mathrm{diag}\,v) \,\|\, \mathcal N(m, \lambda^2 I)\bigr)
          = \tfrac12 \sum_i \Bigl[\frac{v_i}{\lambda^2} - 1 - \log\frac{v_i}{\lambda^2}\Bigr]
          + \frac{\|\mu - m\|^2}{2\lambda^2} .

A bound for weights that are drawn with another spread than the one in its KL bounds nothing: here both read one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class DiagonalGaussian:
    """Weights ``N(mean, diag(std²))``.

    Attributes:
        mean: ``(k,)``.
        std: Standard deviations ``(k,)``, positive.

    Raises:
        ValueError: The shapes differ, or a standard deviation is not positive and finite.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.dim() != 1:
            raise ValueError(
                f"DiagonalGaussian: mean of shape {tuple(self.mean.shape)}, std of shape {tuple(self.std.shape)}; give "
                f"both as (k,)"
            )
        if not (self.std.isfinite() & (self.std > 0)).all():
            raise ValueError("DiagonalGaussian: every standard deviation must be positive and finite")

    def noise(self, draws: int, generator: Generator) -> Tensor:
        """Return deviations from the mean, ``(draws, k)``; the generator is one of the CPU."""
        z = torch.randn(draws, len(self.std), generator=generator, dtype=self.std.dtype)
        return z.to(self.std.device).mul_(self.std)

    def divergence(self, prior_mean: Tensor, prior_std: Sequence[float]) -> list[float]:
        """Return KL(Q‖P), in nats, for each of some priors ``N(prior_mean, prior_std² I)``.

        Args:
            prior_mean: ``(k,)``.
            prior_std: λ of each prior.

        Raises:
            ValueError: A λ is not positive and finite.
        """
        if not all(0 < std < math.inf for std in prior_std):
            raise ValueError(f"DiagonalGaussian: prior_std={list(prior_std)}; they must be positive and finite")
        std, weights = self.std.detach().double(), len(self.std)
        squares, logs = std.square().sum().item(), 2 * std.log().sum().item()
        distance = (self.mean.detach().double() - prior_mean.detach().double().to(std.device)).square().sum().item()
        return [
            0.5 * ((squares + distance) / prior**2 - weights - logs + 2 * weights * math.log(prior))
            for prior in prior_std
        ]
