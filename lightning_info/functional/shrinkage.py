r"""Correlations from few draws: the sample's, shrunk to the identity.

Of m draws in d dimensions, with ``x`` centred and of unit variance, ``w_a = x_a x_aᵀ`` and ``R`` their correlations,

.. math:: \hat R = (1 - \kappa) R + \kappa I, \qquad
          \kappa = \min\Bigl(1, \frac{\sum_{k \ne l} \widehat{\mathrm{Var}}(R_{kl})}{\sum_{k \ne l} R_{kl}^2}\Bigr),
          \qquad \widehat{\mathrm{Var}}(R_{kl}) = \frac{m}{(m - 1)^3} \sum_a (w_{a,kl} - \bar w_{kl})^2 .

The intensity κ estimates the one of least expected squared error; nothing is tuned. It does not change with the scale of
a dimension.

Source: Schäfer & Strimmer (2005), A shrinkage approach to large-scale covariance matrix estimation, Table 1 (target D
for the correlations).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    centred = x.double() - x.double().mean(-2, keepdim=True)
    deviation = centred.square().mean(-2, keepdim=True).sqrt()
    unit = torch.where(deviation > 0, centred / deviation, 0.0)
    mean_product = unit.mT @ unit / m
    squares = unit.square()
    variance = (squares.mT @ squares - m * mean_product.square()) * m / (m - 1) ** 3 * ((m - 1) / m) ** 2
    off = mean_product.square()
    off.diagonal(dim1=-2, dim2=-1).zero_()
    variance.diagonal(dim1=-2, dim2=-1).zero_()
    total = off.sum((-2, -1))
    intensity = torch.where(total > 0, variance.sum((-2, -1)) / total, 1.0).clamp(0, 1)
    correlation = (1 - intensity[..., None, None]) * mean_product
    correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return correlation, intensity
