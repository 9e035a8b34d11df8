r"""Gaussian weights with a standard deviation for each, as distributions Q whose draws and KL are of one spread.

.. math:: \mathrm{KL}\bigl(\mathcal N(\mu, \mathrm{diag}\,v) \,\|\, \mathcal N(m, \mathrm{diag}\,\lambda^2)\bigr)
          = \tfrac12 \sum_i \Bigl[\frac{v_i}{\lambda_i^2} - 1 - \log\frac{v_i}{\lambda_i^2}
          + \frac{(\mu_i - m_i)^2}{\lambda_i^2}\Bigr] .

A bound for weights that are drawn with another spread than the one in its KL bounds nothing: here both read one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class NearestPrior(NamedTuple):
    """The prior of several that is nearest to a posterior.

    Attributes:
        information: KL(Q‖P), nats.
        stds: λ of each group of weights.
        log_choices: Logarithm of the number of priors that there were to choose from.
    """

    information: float
    stds: list[float]
    log_choices: float


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

    def divergence(self, prior_mean: Tensor, prior_std: float | Tensor) -> float:
        """Return KL(Q‖P) from a prior ``N(prior_mean, diag(prior_std²))``, in nats.

        Args:
            prior_mean: ``(k,)``.
            prior_std: ``(k,)``, or one number for all weights.

        Raises:
            ValueError: A standard deviation of the prior is not positive and finite.
        """
        scale = torch.as_tensor(prior_std, dtype=torch.float64, device=self.std.device)
        if not (scale.isfinite() & (scale > 0)).all():
            raise ValueError(f"DiagonalGaussian: prior_std={prior_std}; it must be positive and finite")
        ratio = self.std.detach().double() / scale
        moved = (self._displacement(prior_mean) / scale).square()
        return max(0.0, 0.5 * (ratio.square() - 1 - 2 * ratio.log() + moved).sum().item())  # rounding

    def nearest_prior(self, prior_mean: Tensor, sizes: Sequence[int], stds: Sequence[float]) -> NearestPrior:
        """Return the prior with the smallest KL among those that have one of some λ for each group of weights.

        Args:
            prior_mean: Mean of all of them, ``(k,)``.
            sizes: Number of weights in each group, in their order; a group is a layer's weight or bias, for example.
            stds: The λ to choose from.

        Raises:
            ValueError: The sizes do not add up to k, or a λ is not positive and finite.
        """
        if sum(sizes) != len(self.std):
            raise ValueError(f"DiagonalGaussian: groups of {sum(sizes)} weights; there are {len(self.std)}")
        squares = self._displacement(prior_mean).square() + self.std.detach().double().square()
        scales = torch.tensor(stds, dtype=torch.float64, device=squares.device)
        totals = torch.stack([part.sum() for part in torch.split(squares, list(sizes))])
        counts = torch.tensor(sizes, dtype=torch.float64, device=squares.device)
        by_scale = totals / (2 * scales.square()).unsqueeze(1) + counts * scales.log().unsqueeze(1)
        chosen = scales[by_scale.argmin(0)]
        whole = chosen.repeat_interleave(torch.tensor(sizes, device=squares.device))
        return NearestPrior(self.divergence(prior_mean, whole), chosen.tolist(), len(sizes) * math.log(len(stds)))

    def _displacement(self, prior_mean: Tensor) -> Tensor:
        return self.mean.detach().double() - prior_mean.detach().double().to(self.mean.device)
