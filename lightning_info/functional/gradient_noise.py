r"""Noise of stochastic gradients: its trace, the noise scale with an interval, and the temperature of SGD.

With gradients :math:`g_i` of n samples, their mean :math:`\bar g`, and the mean G and covariance Σ of a gradient,

.. math::
    \widehat{\operatorname{tr} \Sigma} = \frac{n}{n - 1} \Big(\frac1n \sum_i \|g_i\|^2 - \|\bar g\|^2\Big), \qquad
    \widehat{|G|^2} = \|\bar g\|^2 - \frac1n \widehat{\operatorname{tr} \Sigma}, \qquad
    B_{\text{noise}} = \frac{\operatorname{tr} \Sigma}{|G|^2} .

Both estimates are unbiased. The gradient of a batch of B samples has the covariance Σ/B, so at ``B = B_noise`` noise
and signal are of equal size. ``|G|²`` may come out negative where ``B_noise`` is far above n; the interval then has no
upper end.

Their errors come from the inner products of the mean gradients of G groups of samples. These are a U-statistic, whose
variance has a part that falls as 1/n (the noise along the mean gradient) and one that falls as 1/n² (``tr Σ²``), which
is all that is left where the signal vanishes; both are estimated without bias from the products themselves. The
interval is Fieller's, of ``|G|²/tr Σ``, whose denominator is far from zero, and its ends are inverted.

Source: McCandlish, Kaplan, Amodei & OpenAI Dota Team, *An empirical model of large-batch training* (2018), equation 2.9
and appendix A; Fieller (1954); Hoeffding (1948).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_info.student import NORMAL, student_factor

FEWEST_GROUPS = 4
"""Number of groups below which the errors are not known."""


class GradientNoise(NamedTuple):
    """What per-sample gradients say of the noise of their mean.

    Attributes:
        trace: ``tr Σ`` of one sample, in the squared unit of a gradient.
        trace_stderr: Its standard error; NaN with fewer than :data:`FEWEST_GROUPS` groups.
        squared_norm: ``|G|²``; it can be negative.
        squared_norm_stderr: Its standard error, in the same form.
        scale: ``B_noise`` in samples; infinite where ``|G|²`` is not positive.
        low: Lower end of its 95 % interval; NaN where the errors are not known.
        high: Upper end; infinite where ``|G|²`` is not resolved from zero.
    """

    trace: float
    trace_stderr: float
    squared_norm: float
    squared_norm_stderr: float
    scale: float
    low: float
    high: float


def gradient_noise_scale(
    squared_norms: Tensor, groups: Tensor, products: Tensor, squared_mean: float | None = None
) -> GradientNoise:
    """Estimate ``tr Σ``, ``|G|²`` and the noise scale, with their errors.

    Args:
        squared_norms: ``‖g_i‖²`` of n samples, ``(n,)``.
        groups: Number of the group of each sample, ``(n,)``; groups are random and of equal size, up to one sample.
        products: Inner products of the groups' mean gradients, ``(G, G)``.
        squared_mean: ``‖ḡ‖²`` of the mean over all samples; None: by the products.

    Raises:
        ValueError: Fewer than two samples, or shapes that do not fit.

    Example::

        gradients = torch.randn(256, 10) + 0.3  # (n, k)
        groups = torch.arange(256) % 8
        means = torch.stack([gradients[groups == a].mean(0) for a in range(8)])
        gradient_noise_scale(gradients.square().sum(1), groups, means @ means.T)
    """
    norms, products = squared_norms.detach().double(), products.detach().double()
    n, size = len(norms), len(products)
    if n < 2 or norms.dim() != 1 or groups.shape != norms.shape or products.shape != (size, size):
        raise ValueError(
            f"gradient_noise_scale: squared norms {tuple(norms.shape)}, groups {tuple(groups.shape)} and products "
            f"{tuple(products.shape)}; expected (n,), (n,) and (G, G) with n >= 2"
        )
    share = torch.bincount(groups, minlength=size).to(products) / n
    square = (share @ products @ share).item() if squared_mean is None else squared_mean
    trace = n / (n - 1) * max(0.0, norms.mean().item() - square)  # below 0 by rounding only
    signal = square - trace / n
    scale = trace / signal if signal > 0 else math.inf
    if size < FEWEST_GROUPS:
        return GradientNoise(trace, math.nan, signal, math.nan, scale, math.nan, math.nan)
    means = torch.stack([norms[groups == a].mean() for a in range(size)])
    variances = _variances(means, products)
    quantile = NORMAL * student_factor(size - 1)
    low, high = _interval(trace, signal, variances, quantile)
    errors = [math.sqrt(variance) * quantile / NORMAL for variance in variances[:2]]
    return GradientNoise(trace, errors[0], signal, errors[1], scale, low, high)


def measured_temperature(temperature: float, trace: float, weights: int) -> float:
    """Return the temperature of SGD whose gradients have the noise ``tr Σ``, ``T = η tr Σ / (2 B k)``.

    In a bowl ``h w²/2`` the weight then has the variance ``T/h`` for ``ηh << 1``.

    Args:
        temperature: That for unit variance, :func:`~.free_energy.temperature`, with momentum and dampening.
        trace: ``tr Σ`` of one sample.
        weights: k, their number.
    """
    return temperature * trace / weights


def _variances(means: Tensor, products: Tensor) -> tuple[float, float, float]:
    """Return the variances of ``tr Σ`` and ``|G|²`` and their covariance.

    With ``h_ab = s_a · s_b`` of group means and their row means ``r_a``, ``ζ1 = Cov(h_ab, h_ac)`` and
    ``ζ2 = Var(h_ab)``, the variance of the pairs has the expectation ``ζ2 - 4 ζ1/(G+1)``, and that of the row means
    ``(G-2)((G-4) ζ1 + ζ2)/(G-1)²``.

    Args:
        means: Mean squared norm of a gradient in each group, ``(G,)``.
        products: ``(G, G)``.
    """
    size = len(products)
    pairs = products[torch.triu_indices(size, size, 1).unbind()]
    rows = (products.sum(1) - products.diagonal()) / (size - 1)
    along = (rows.var() * (size - 1) ** 2 / (size - 2) - pairs.var()) * (size + 1) / (size * (size - 3))
    along = along.clamp_min(0.0)
    rest = (pairs.var() + 4 * along / (size + 1) - 2 * along).clamp_min(0.0)
    signal = 4 * along / size + 2 * rest / size**2
    noise = means - 2 * products.mean(1)  # mean of ‖g_i - ḡ‖², up to a constant
    joint = torch.cov(torch.stack([noise, 2 * rows]))
    return (joint[0, 0] / size).item(), signal.item(), (joint[0, 1] / size).item()


def _interval(
    trace: float, signal: float, variances: tuple[float, float, float], quantile: float
) -> tuple[float, float]:
    """Return Fieller's interval of the ratio ``|G|²/tr Σ``, inverted; ``|G|²`` is known not to be negative."""
    of_trace, of_signal, joint = (quantile**2 * variance for variance in variances)
    a = trace**2 - of_trace
    if a <= 0:
        return 0.0, math.inf

    def end(value: float, sign: int) -> float:
        b = value * trace - joint
        root = math.sqrt(max(0.0, b * b - a * (value**2 - of_signal)))
        return (b + sign * root) / a

    largest, smallest = end(max(0.0, signal), 1), end(signal, -1)
    return (1 / largest if largest > 0 else 0.0), (1 / smallest if smallest > 0 else math.inf)
