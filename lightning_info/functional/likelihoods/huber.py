"""Real numbers with a normal core and exponential tails: the density whose ``-log`` is Huber's loss."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import huber_loss

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import PerOutput

_NEAR = 1e-4
"""Distance up to which the divergence is ½ H d², to a relative error of 1e-8; its closed form cancels there."""


class Huber(PerOutput):
    r"""``p(y | z) = exp(-ρ(y - z)) / C``, with ``ρ(r) = ½ r²`` up to δ and ``δ |r| - ½ δ²`` beyond.

    .. math:: C = \sqrt{2\pi}\,\operatorname{erf}(\delta/\sqrt2) + \tfrac{2}{\delta} e^{-\delta^2/2}, \qquad
              H = \mathbb{E}[\rho'^2] = \mathbb{E}[\rho''] = P(|y - z| < \delta)
                = \sqrt{2\pi}\,\operatorname{erf}(\delta/\sqrt2) / C

    for every output: 1 as δ grows (the Gaussian), and δ² as it goes to 0 (the Laplacian of scale 1/δ). The residual
    counts in its own units, which is a convention, as for the unit variance of a squared error. Smooth L1 with
    threshold β is the Huber loss of residuals over ``sqrt(β)`` with ``δ = sqrt(β)``. Source: Huber, *Robust estimation
    of a location parameter*, 1964.

    Args:
        delta: δ, greater than 0.

    Raises:
        ValueError: δ is not greater than 0.
    """

    name: ClassVar[str] = "huber"
    convention: ClassVar[str] = "unit scale"

    def __init__(self, delta: float = 1.0) -> None:
        if not 0 < delta < math.inf:
            raise ValueError(f"Huber: delta={delta} must be greater than 0 and finite; for example delta=1.0")
        self.delta = float(delta)
        core, edge = math.sqrt(2 * math.pi) * math.erf(delta / math.sqrt(2)), math.exp(-0.5 * delta**2)
        self._constant = core + 2 / delta * edge
        self._core = core / self._constant  # the probability of |y - z| < delta
        self._tail = edge / delta / self._constant  # of one tail

    def __str__(self) -> str:
        return f"{self.name} (delta = {self.delta:g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Huber) and other.delta == self.delta

    def __hash__(self) -> int:
        return hash((Huber, self.delta))

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return the probability of the core, for every output."""
        return torch.full_like(z, self._core)

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return ``z`` plus noise: the distribution function inverted."""
        u = draws.uniform(z.shape, z, generator)
        lower = torch.minimum(u, 1 - u)  # of the mirrored residual, at most one half
        tail = (lower / self._tail).clamp(torch.finfo(z.dtype).tiny, 1).log() / self.delta - self.delta
        below = torch.special.ndtr(torch.full_like(z, -self.delta))
        share = math.sqrt(2 * math.pi) / self._constant
        core = torch.special.ndtri(below + (lower - self._tail).clamp_min(0) / share)
        residual = torch.where(lower < self._tail, tail, core)
        return z + torch.where(u < 0.5, residual, -residual)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``ρ(z - y)``."""
        return huber_loss(z, y, reduction="none", delta=self.delta)

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``z - y``, at most δ."""
        return (z - y).clamp(-self.delta, self.delta)

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        r"""Return ``E[ρ(r + d) - ρ(r)]`` at a distance d, with G the distribution function of a residual r.

        Its second derivative is ``P(|r + d| < δ) = G(δ - d) - G(-δ - d)``, so with ``M'' = G`` it is
        ``M(δ - d) - M(δ) - M(-δ - d) + M(-δ) + d (M'(δ) - M'(-δ))``.
        """
        d, delta = (z - other).abs(), torch.full_like(z, self.delta)
        (m0, slope0), (m1, slope1) = self._second_integral(delta), self._second_integral(-delta)
        rest = self._second_integral(delta - d)[0] - self._second_integral(-delta - d)[0]
        return torch.where(d < _NEAR, 0.5 * self._core * d.square(), rest - m0 + m1 + d * (slope0 - slope1))

    def _second_integral(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``M(x)`` and ``M'(x)`` for x up to δ: the distribution function integrated twice and once from -∞."""
        delta, tail = self.delta, self._tail
        outer = tail * (delta * (x.clamp_max(-delta) + delta)).exp()
        x, edge = x.clamp_min(-delta), torch.full_like(x, -delta)  # the core, on from where the tail ends
        step, share = x + delta, math.sqrt(2 * math.pi) / self._constant
        (i0, i1), (j0, j1) = _normal_integrals(x), _normal_integrals(edge)
        below = torch.special.ndtr(edge)
        slope = share * (i0 - j0 - below * step) + tail * step
        value = share * (i1 - j1 - j0 * step - 0.5 * below * step.square()) + 0.5 * tail * step.square()
        return value + outer / delta * step + outer / delta**2, slope + outer / delta


def _normal_integrals(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard normal distribution function integrated from -∞ to x, once and twice."""
    cdf, density = torch.special.ndtr(x), (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
    return x * cdf + density, 0.5 * ((x.square() + 1) * cdf + x * density)
