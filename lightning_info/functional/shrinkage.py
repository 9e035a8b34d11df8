r"""Gaussians from few draws: correlations shrunk to the identity.

Of m draws in d dimensions, with ``x`` centred and of unit variance, ``w_a = x_a x_aᵀ`` and ``R`` their correlations,

.. math:: \hat R = (1 - \kappa) R + \kappa I, \qquad
          \kappa = \min\Bigl(1, \frac{\sum_{k \ne l} \widehat{\mathrm{Var}}(R_{kl})}{\sum_{k \ne l} R_{kl}^2}\Bigr),
          \qquad \widehat{\mathrm{Var}}(R_{kl}) = \frac{m}{(m - 1)^3} \sum_a (w_{a,kl} - \bar w_{kl})^2 .

The intensity κ estimates the one of least expected squared error; nothing is tuned. It does not depend on the scale of
a dimension. It is at least 1e-8, so that there is an inverse.

**Half exact.** Where every draw comes with the Gaussian of x given a part of the noise, mean ``m_a`` and independent
variances ``v_a``, the law of total covariance leaves only the covariance of the means to be estimated,

.. math:: \mathrm{Cov}(x) = \mathrm{Cov}_a(m_a) + \mathrm{diag}\, \mathbb E_a\, v_a ,

of which the correlations are moved half of the way to their mean over the inputs.

Source: Schäfer & Strimmer (2005), A shrinkage approach to large-scale covariance matrix estimation, Table 1 (target D
for the correlations).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_INTENSITY = 1e-8

_LEAST_VARIANCE = 1e-2
"""Of a unit at an input, where 1 is usual: the unit may be off or saturated at the input in all draws but a few."""

_ROUNDING = 1e-12
"""Deviation by size of what is taken for constant: a constant minus the mean of its copies need not be 0."""

_WORKSPACE = 2**17
"""Numbers in a temporary tensor, so that it stays in the cache."""


def shrunk_correlation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations of the draws, shrunk to the identity with the analytic intensity.

    Args:
        x: Draws ``(..., m, d)``. A dimension without variance has no correlation with the others.

    Returns:
        Correlations ``(..., d, d)`` and intensities ``(...)``, float64.

    Raises:
        ValueError: Fewer than two draws.
    """
    if x.ndim < 2 or x.shape[-2] < 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}; expected (..., draws, dimensions) with at least 2 draws")
    m = x.shape[-2]
    unit = _standardised(x.double(), -2)
    r = unit.mT @ unit / m
    squares = unit.square()
    # x of unit variance with m - 1 in the denominator is unit · ((m - 1) / m)^½
    variance = (squares.mT @ squares - m * r.square()) / (m * (m - 1))
    total, variance_total = (part.sum((-2, -1)) - _trace(part) for part in (r.square(), variance))
    intensity = torch.where(total > 0, variance_total / total, 1.0).clamp(_LEAST_INTENSITY, 1)
    correlation = (1 - intensity[..., None, None]) * r
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return correlation, intensity


class ShrunkGaussians(NamedTuple):
    """A Gaussian of each input, with the shrunk correlations of its draws, or none.

    Attributes:
        mean: ``(N, d)``.
        whitening: Inverse Cholesky factors ``(N, d, d)``; of a diagonal the inverse deviations ``(N, d)``.
        log_volume: Half the log determinant of the covariance, ``(N,)``.
    """

    mean: Tensor
    whitening: Tensor
    log_volume: Tensor

    @classmethod
    def of_conditional(cls, mean: Tensor, variance: Tensor) -> ShrunkGaussians:
        """By the law of total covariance, from Gaussians of draws, ``(m, N, d)`` float64, scaled as for :meth:`fit`."""
        m, n, d = mean.shape
        parts = list(_parts(n, max(m * d, d * d)))
        pooled = mean.new_zeros(d, d)
        for part in parts:
            pooled += _correlation(mean[:, part]).sum(0) / n
        log_volume, whitening = mean.new_empty(n), mean.new_empty(n, d, d)
        for part in parts:
            propagated = mean[:, part].std(0)
            correlation = (_correlation(mean[:, part]) + pooled) / 2 * (1 - _LEAST_INTENSITY)
            covariance = correlation * propagated[:, :, None] * propagated[:, None]
            total = (propagated.square() + variance[:, part].mean(0)).clamp_min(_LEAST_VARIANCE)
            covariance.diagonal(dim1=1, dim2=2).copy_(total)
            root = torch.linalg.cholesky(covariance)
            log_volume[part] = root.diagonal(dim1=1, dim2=2).log().sum(1)
            whitening[part] = torch.linalg.solve_triangular(root, torch.eye(d).to(root).expand_as(root), upper=False)
        return cls(mean.mean(0), whitening, log_volume)

    @classmethod
    def fit(cls, draws: Tensor, *, full: bool) -> ShrunkGaussians:
        """From draws ``(m, N, d)``, float64, scaled such that a variance of 1 is usual for a unit; least is 0.01."""
        m, n, d = draws.shape
        mean, log_volume = draws.new_empty(n, d), draws.new_empty(n)
        whitening = draws.new_empty(n, d, d) if full else draws.new_empty(n, d)
        for part in _parts(n, max(m * d, d * d)):
            x = draws[:, part]
            mean[part] = x.mean(0)
            deviation = x.var(0).clamp_min(_LEAST_VARIANCE).sqrt()
            log_volume[part] = deviation.log().sum(1)
            if full:
                root = torch.linalg.cholesky(shrunk_correlation(x.transpose(0, 1))[0])
                log_volume[part] += root.diagonal(dim1=1, dim2=2).log().sum(1)
                whitening[part] = torch.linalg.solve_triangular(root, torch.diag_embed(1 / deviation), upper=False)
            else:
                whitening[part] = 1 / deviation
        return cls(mean, whitening, log_volume)

    def widened(self, factor: float) -> ShrunkGaussians:
        """With ``factor`` times the covariances; densities but for another constant."""
        return self._replace(whitening=self.whitening / factor**0.5)

    def log_density(self, z: Tensor) -> Tensor:
        """``log q(z_i | x_j)`` but for a constant, ``(N, N)``, at a point ``(N, d)`` for each input."""
        n, d = z.shape
        if self.whitening.ndim == 2:
            precision = self.whitening.square()
            squares = z.square() @ precision.T - 2 * z @ (precision * self.mean).T
            return -0.5 * (squares + (precision * self.mean.square()).sum(1)) - self.log_volume
        density = z.new_empty(n, n)
        for part in _parts(n, n * d):
            w = self.whitening[part]
            whitened = (w.reshape(-1, d) @ z.T).view(len(w), d, n).sub_(w @ self.mean[part, :, None])
            density[:, part] = whitened.square_().sum(1).T
        return -0.5 * density - self.log_volume


def _correlation(draws: Tensor) -> Tensor:
    """Of draws ``(m, N, d)``, ``(N, d, d)``; 0 of a dimension that does not vary."""
    unit = _standardised(draws.transpose(0, 1), 1)
    return unit.mT @ unit / len(draws)


def _standardised(x: Tensor, draws: int) -> Tensor:
    """Float64 x with mean 0 and variance 1 along a dimension; 0 where it varies by no more than rounding."""
    centred = x - x.mean(draws, keepdim=True)
    deviation = centred.square().mean(draws, keepdim=True).sqrt()
    varies = deviation > _ROUNDING * x.abs().amax(draws, keepdim=True)
    return torch.where(varies, centred / deviation, 0.0)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def _parts(n: int, numbers: int) -> Iterator[slice]:
    """Slices of n inputs that fit into the workspace, at ``numbers`` an input."""
    step = max(1, _WORKSPACE // max(1, numbers))
    return (slice(start, min(n, start + step)) for start in range(0, n, step))
