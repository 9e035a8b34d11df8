r"""Gaussians from few draws: correlations shrunk to the identity.

Of m draws in d dimensions, with ``x`` centred and of unit variance, ``w_a = x_a x_aᵀ`` and ``R`` their correlations,

.. math:: \hat R = (1 - \kappa) R + \kappa I, \qquad
          \kappa = \min\Bigl(1, \frac{\sum_{k \ne l} \widehat{\mathrm{Var}}(R_{kl})}{\sum_{k \ne l} R_{kl}^2}\Bigr),
          \qquad \widehat{\mathrm{Var}}(R_{kl}) = \frac{m}{(m - 1)^3} \sum_a (w_{a,kl} - \bar w_{kl})^2 .

The intensity κ estimates the one of least expected squared error; nothing is tuned. It does not depend on the scale of
a dimension. It is at least 1e-8, so there is an inverse. The numerator needs no second matrix of products, as

.. math:: \sum_{k, l} \sum_a w_{a,kl}^2 = \sum_a \Bigl(\sum_k x_{ak}^2\Bigr)^2 .

**Without a fold.** Draws are dealt into folds, and there are Gaussians of all draws but those of each. Sums over draws
of x, of its powers and of products of two units are taken once for each fold; those without it are the total minus it.
Draws are measured from the first one, so little precision is lost to the centre, and a constant is exactly 0.

**Half exact.** Where every draw comes with the Gaussian of x given a part of the noise, mean ``m_a`` and independent
variances ``v_a``, the law of total covariance leaves only the covariance of the means to be estimated,

.. math:: \mathrm{Cov}(x) = \mathrm{Cov}_a(m_a) + \mathrm{diag}\, \mathbb E_a\, v_a ,

and its correlations are moved halfway to their mean over the inputs.

Source: Schäfer & Strimmer (2005), A shrinkage approach to large-scale covariance matrix estimation, Table 1 (target D
for the correlations).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_info.functional.packed_gaussians import PackedGaussians

_LEAST_INTENSITY = 1e-8

_LEAST_VARIANCE = 1e-2
"""Least variance of a unit at an input, where 1 is usual: it may be off or saturated there in all but a few draws."""

_ROUNDING = 1e-12
"""Variance divided by mean square about the first draw below which a unit counts as constant."""

_WORKSPACE = 2**19
"""Number of elements of a temporary tensor."""


def shrunk_correlation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the correlations of the draws, shrunk to the identity with the analytic intensity.

    Args:
        x: Draws ``(..., m, d)``. A dimension without variance has no correlation with the others.

    Returns:
        Correlations ``(..., d, d)`` and intensities ``(...)``, float64.

    Raises:
        ValueError: Fewer than two draws.
    """
    if x.ndim < 2 or x.shape[-2] < 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}; expected (..., draws, dimensions) with at least 2 draws")
    draws = x.double().reshape(-1, *x.shape[-2:])
    kept = torch.ones(1, draws.shape[1], dtype=torch.float64, device=x.device)
    correlation, intensity = _Moments.of(draws, kept).shrunk_correlation()
    return correlation.reshape(*x.shape[:-2], *correlation.shape[-2:]), intensity.reshape(x.shape[:-2])


def gaussians_without(draws: Tensor, fold: Tensor, *, full: bool) -> PackedGaussians:
    """Return a Gaussian of each input for each fold, of the draws in the other folds.

    Args:
        draws: ``(m, N, d)`` float64, scaled such that a variance of 1 is usual for a unit; the least is 0.01.
        fold: Number of each draw's fold, ``(m,)``; at least two draws are in others.
        full: Whether to use shrunk correlations, or none.
    """
    m, n, d = draws.shape
    kept = _others(fold)
    found = PackedGaussians.empty(len(kept), n, d, full=full, like=draws)
    for part in _parts(n, len(kept) * max(m * d, d * d)):
        moments = _Moments.of(draws[:, part].transpose(0, 1), kept)
        variance = moments.unbiased.clamp_min(_LEAST_VARIANCE)
        if full:
            deviation = variance.sqrt()
            covariance = moments.shrunk_correlation()[0] * deviation[..., :, None] * deviation[..., None, :]
            found.put(part, moments.centre, covariance)
        else:
            found.put(part, moments.centre, variance)
    return found


def conditional_gaussians_without(mean: Tensor, variance: Tensor, fold: Tensor) -> PackedGaussians:
    """Return the same by the law of total covariance, from Gaussians of draws, ``(m, N, d)`` each, float64."""
    m, n, d = mean.shape
    kept = _others(fold)
    found = PackedGaussians.empty(len(kept), n, d, full=True, like=mean)
    parts = list(_parts(n, len(kept) * max(m * d, d * d)))
    known = mean.new_empty(len(kept), n, d, d)
    for part in parts:
        known[:, part] = _Moments.of(mean[:, part].transpose(0, 1), kept).correlation()
    pooled = known.sum(1, keepdim=True) / n
    for part in parts:
        below = _Moments.of(mean[:, part].transpose(0, 1), kept)
        spread, own = below.unbiased, _folded(kept, variance[:, part].transpose(0, 1)) / below.counts
        covariance = known[:, part].add_(pooled).mul_((1 - _LEAST_INTENSITY) / 2)
        covariance *= spread.sqrt()[..., :, None] * spread.sqrt()[..., None, :]
        covariance.diagonal(dim1=-2, dim2=-1).copy_((spread + own).clamp_min(_LEAST_VARIANCE))
        found.put(part, below.centre, covariance)
    return found


class _Moments(NamedTuple):
    """Moments of draws of N inputs without each of F folds.

    Attributes:
        draws: Draws of all folds, relative to the first of each input, ``(N, m, d)``.
        kept: Mask of the draws that count, ``(F, m)`` of 0 and 1.
        first: The first draws, ``(N, 1, d)``.
        mean: Mean relative to the first draw, ``(F, N, d)``.
        variance: Variance with the number of draws in the denominator, 0 if it is only rounding, ``(F, N, d)``.
    """

    draws: Tensor
    kept: Tensor
    first: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, draws: Tensor, kept: Tensor) -> _Moments:
        """Compute them from draws ``(N, m, d)`` and the mask of those that are kept."""
        first = draws[:, :1]
        x, counts = (draws - first).contiguous(), kept.sum(1)[:, None, None]
        one, two = _folded(kept, x), _folded(kept, x.square())
        mean = one / counts
        variance = two / counts - mean.square()
        return cls(x, kept, first, mean, torch.where(variance * counts > _ROUNDING * two, variance, 0.0))

    @property
    def counts(self) -> Tensor:
        """Draws, ``(F, 1, 1)``."""
        return self.kept.sum(1)[:, None, None]

    @property
    def centre(self) -> Tensor:
        """Means, ``(F, N, d)``."""
        return self.mean + self.first.transpose(0, 1)

    @property
    def unbiased(self) -> Tensor:
        """Variances with one draw less in the denominator."""
        return self.variance * self.counts / (self.counts - 1)

    def correlation(self) -> Tensor:
        """Return correlations ``(F, N, d, d)``; 0 for a unit that does not vary, also with itself."""
        products = self.draws.new_empty(*self.mean.shape, self.mean.shape[2])
        total = self.draws.mT @ self.draws
        for own, without in zip(products, self.kept == 0, strict=True):
            some = self.draws[:, without.nonzero()[:, 0]]
            torch.sub(total, some.mT @ some, out=own)
        inverse = torch.where(self.variance > 0, self.variance.rsqrt(), 0.0)
        scaled = inverse * self.mean
        products *= (inverse / self.counts)[..., :, None] * inverse[..., None, :]
        return products.sub_(scaled[..., :, None] * scaled[..., None, :])

    def shrunk_correlation(self) -> tuple[Tensor, Tensor]:
        """Return correlations ``(F, N, d, d)`` and the intensities ``(F, N)``."""
        r, m = self.correlation(), self.counts[..., 0]
        squares, fourth = self._squares()
        total = r.square().sum((2, 3)) - (self.variance > 0).sum(2)
        # x of unit variance with m - 1 in the denominator is x · ((m - 1) / m)^½
        variance_total = (squares - fourth - m * total) / (m * (m - 1))
        intensity = torch.where(total > 0, variance_total / total, 1.0).clamp(_LEAST_INTENSITY, 1)
        r *= 1 - intensity[..., None, None]
        r.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        return r, intensity

    def _squares(self) -> tuple[Tensor, Tensor]:
        """Return ``Σ_a (Σ_k x_ak²)²`` and ``Σ_a Σ_k x_ak⁴`` of centred draws of unit variance, ``(F, N)`` each."""
        x, mean = self.draws, self.mean
        squared = x.square()
        two, three, four = (_folded(self.kept, power) for power in (squared, squared * x, squared.square()))
        fourth = four - 4 * mean * three + 6 * mean.square() * two - 3 * self.counts * mean.square().square()
        inverse = torch.where(self.variance > 0, 1 / self.variance, 0.0)
        lengths = squared @ inverse.permute(1, 2, 0) - 2 * x @ (inverse * mean).permute(1, 2, 0)
        lengths += (inverse * mean.square()).sum(2).T[:, None]
        return (lengths.square_() * self.kept.T).sum(1).T, (fourth * inverse.square()).sum(2)


def _folded(kept: Tensor, values: Tensor) -> Tensor:
    """Sums ``(F, N, d)`` over the draws that are kept, of values ``(N, m, d)``."""
    return (kept @ values).transpose(0, 1)


def _others(fold: Tensor) -> Tensor:
    """Return the mask of draws in other folds, ``(F, m)`` of 0 and 1."""
    return (fold != torch.arange(int(fold.max()) + 1, device=fold.device)[:, None]).double()


def _parts(n: int, numbers: int) -> Iterator[slice]:
    """Yield slices of n inputs that fit into the workspace, at ``numbers`` an input."""
    step = max(1, _WORKSPACE // max(1, numbers))
    return (slice(start, min(n, start + step)) for start in range(0, n, step))
