r"""Standard error of a mean of few draws.

Of n independent normal draws the deviation s is itself a random number, and ``mean ± 1.96 s/√n`` covers the truth less
often than in 95 cases of 100: 70 of two draws, 86 of four, 92 of eight. The interval that covers it in 95 takes
Student's quantile with n - 1 degrees of freedom instead of 1.96. Every error bar here is read as 1.96 standard errors,
so the quantile goes into the standard error:

.. math:: \mathrm{stderr} = \frac{s}{\sqrt n} \cdot \frac{t_{0.975,\,n-1}}{1.96}, \qquad
          s^2 = \frac{1}{n - 1} \sum_i (x_i - \bar x)^2 .

The factor is 6.5 for two draws, 1.62 for four, 1.09 for sixteen and 1.02 for 64. Draws far from normal (a loss under
weight noise that explodes now and then) are covered less often still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_info.student import NORMAL, student_factor

__all__ = ["NORMAL", "jackknife_error", "sampled_mean", "standard_error", "stratified_error", "student_factor"]


def standard_error(draws: Tensor | Sequence[float]) -> float:
    """Return the standard error of the mean of independent draws, such that ±1.96 of it cover 95 %; see the module.

    Args:
        draws: ``(n,)``, in any unit, which is that of the result.

    Returns:
        The error, NaN for a single draw and where a draw is not finite.

    Raises:
        ValueError: Not one axis, or no draw.
    """
    values = torch.as_tensor(draws, dtype=torch.float64)
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"standard_error: draws of shape {tuple(values.shape)}; expected (n,) with at least one")
    if len(values) == 1 or not values.isfinite().all():
        return math.nan
    return values.std().item() / math.sqrt(len(values)) * student_factor(len(values) - 1)


def stratified_error(draws: Tensor, strata: Tensor, weights: Tensor) -> float:
    """Return the standard error of ``Σ_b w_b x̄_b``, the weighted mean of the means of strata of independent draws.

    ``√(Σ_b w_b² s_b² / n_b)`` with Student's factor of ``n - B`` degrees of freedom; with one stratum
    :func:`standard_error`. Source: Cochran, *Sampling Techniques*, 5.4.

    Args:
        draws: ``(n,)``, in any unit, which is that of the result.
        strata: Number of the stratum of each, ``(n,)``; every stratum has at least one draw.
        weights: Weights of the B strata, ``(B,)``.

    Returns:
        The error, NaN where a stratum has a single draw and where a draw is not finite.
    """
    if not draws.isfinite().all():
        return math.nan
    parts = [draws[strata == b].double() for b in range(len(weights))]
    if any(len(part) < 2 for part in parts):
        return math.nan
    variances = torch.stack([part.var() / len(part) for part in parts])
    error = (weights.to(variances).square() * variances).sum().sqrt().item()
    return error * student_factor(len(draws) - len(parts))


def jackknife_error(left_out: Tensor | Sequence[float]) -> float:
    """Return the standard error of any smooth function of a mean of n draws, from its values without one draw each.

    ``√((n - 1)/n Σ (x_i - x̄)²)``, with Student's factor as in :func:`standard_error`, which it equals where the
    function is linear. Source: Tukey (1958); Efron & Stein (1981), by whom the square is not too small in expectation.

    Args:
        left_out: ``(n,)``, the function of the mean of all draws but the i-th, in any unit, that of the result.

    Returns:
        The error, NaN for a single draw and where a value is not finite.
    """
    values = torch.as_tensor(left_out, dtype=torch.float64)
    return (len(values) - 1) * standard_error(values)


def sampled_mean(draws: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean over draws of samples ``(N,)``, and its standard error given the samples; NaN without draws.

    With one draw the error is the scatter of the samples, whose own differences make it an upper bound; with several,
    the scatter within samples.
    """
    if not draws:
        return math.nan, math.nan
    values = torch.stack(list(draws))
    variance = values.var(0).mean() if len(values) > 1 else values.var()
    freedom = values.numel() - (values.shape[1] if len(values) > 1 else 1)
    factor = student_factor(freedom) if freedom else math.nan
    return values.mean().item(), factor * (variance / values.numel()).sqrt().item()
