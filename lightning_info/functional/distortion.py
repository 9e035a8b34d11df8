r"""The noise level at which the loss rises by a given amount, the *distortion*.

The expected loss under weight noise of the level β is estimated with a few draws at a time, so its rise is a noisy
number. For small β it grows as a power of β, so the rises at levels ``β_j`` predict it at any level nearby:

.. math:: \bar r(\beta) = \sum_j w_j\, r_j\, (\beta / \beta_j)^{0.8} \Big/ \sum_j w_j, \qquad
          w_j = \exp\bigl(-\tfrac12 (\ln(\beta / \beta_j) / \ln 2)^2\bigr) .

The next level, and at last the answer, is where this mean meets the target. So the draws of all evaluations near the
answer count, and no single one decides. The scatter of the rises about that mean is the error of the answer: with
``e_j`` the difference of the j-th, brought to the answer, from the mean,

.. math:: \mathrm{Var}(\bar r) \approx \frac{n}{n - 1}\,\frac{\sum_j w_j^2 e_j^2}{(\sum_j w_j)^2}, \qquad
          n = \frac{(\sum_j w_j)^2}{\sum_j w_j^2}

(the variance of a ratio estimator: Cochran, *Sampling Techniques*, 6.4), taken as n draws
(:mod:`~.standard_error`). Where the rise grows as β to the power p, ``log β`` is off by 1/p of its share of the rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lightning_info.functional.standard_error import student_factor

_TOLERANCE = math.log(1.1)

_POWER = 0.8
"""Power of β; for small trained networks it was 0.7 to 0.95, and between 0.5 and 2 the levels still converge."""

_NEARBY, _LONGEST_STEP = math.log(2), math.log(4)
"""Width of the neighbourhood, and longest step, in log β."""

_LARGEST = 20
"""Rise by target: one beyond it says that the target is passed, not how far."""


class DistortionLevel(NamedTuple):
    """Noise level found by :func:`distortion_level`.

    Attributes:
        beta: Level at which the mean of the rises meets the target, as far as the last step may go.
        rise: The mean of the rises at this level, nats per sample.
        evaluations: Number of calls of ``rise``.
        is_reached: Whether it is within 10 % of the target; if not, ``beta`` is not the answer.
        relative_error: Standard error of the rise at ``beta`` as a share of it, from the scatter of the evaluations;
            NaN for a single one.
        power: Power of β with which the rise grows at this level; if measured, from a few draws on either side.
    """

    beta: float
    rise: float
    evaluations: int
    is_reached: bool
    relative_error: float = math.nan
    power: float = _POWER

    @property
    def beta_stderr(self) -> float:
        """Standard error of ``beta`` as the level of the target, in the unit of β."""
        return self.beta * self.relative_error / self.power


def distortion_level(
    rise: Callable[[float], float],
    target: float,
    start: float = 1.0,
    evaluations: int = 11,
    low: float = 1e-6,
    high: float = 1e6,
) -> DistortionLevel:
    """β at which the expectation of ``rise(β)`` is the target, from noisy evaluations.

    The error is that of the mean of the evaluations, as far as they lie near the answer: with a start that is off by a
    factor 50, all but three of them.

    Args:
        rise: Rise of the expected loss at the level β, nats per sample, with new draws in every call; NaN and values
            above 20 targets count as 20 targets.
        target: The rise wanted, nats per sample.
        start: First level, such as the last one found or :func:`quadratic_level`; moved into ``[low, high]``.
        evaluations: Calls of ``rise``; fewer where it stays below the target at ``high``, or above it at ``low``.
        low: Smallest level.
        high: Largest level.

    Returns:
        The level. ``is_reached`` is False where the target is out of reach at ``high`` (or, from above, at ``low``),
        and where the evaluations did not suffice: a step is a factor 4 at most.

    Raises:
        ValueError: A target, a level or a number of evaluations that is not positive, or ``low >= high``.
    """
    if not (0 < target < math.inf):
        raise ValueError(f"distortion_level: target={target}; it must be positive and finite, for example 0.05")
    if not (0 < low < high < math.inf):
        raise ValueError(f"distortion_level: low={low}, high={high}; expected 0 < low < high")
    if not (0 < start < math.inf):
        raise ValueError(f"distortion_level: start={start}; it must be positive and finite")
    if evaluations < 1:
        raise ValueError(f"distortion_level: evaluations={evaluations}; expected at least 1")
    bounds = math.log(low), math.log(high)
    known: list[tuple[float, float]] = []
    log_beta = min(max(math.log(start), bounds[0]), bounds[1])
    for _ in range(evaluations):
        value = float(rise(math.exp(log_beta)))
        known.append((log_beta, value if value < _LARGEST * target else _LARGEST * target))
        last, log_beta = log_beta, _meeting(known, target, bounds)
        if log_beta == last in bounds:
            break
    mean = _mean_at(log_beta, known)
    is_reached = mean > 0 and abs(math.log(mean / target)) <= _TOLERANCE
    return DistortionLevel(math.exp(log_beta), mean, len(known), is_reached, _relative_error(log_beta, known))


def quadratic_level(
    diagonal: Tensor, lambda_: Tensor, samples: float, target: float, low: float = 1e-6, high: float = 1e6
) -> float:
    """β at which a diagonal quadratic loss rises by the target: where to start looking for the true one.

    Under its own noise the rise is ``sum h λ² / (1 + h λ²/β) / 2N``, which grows with β up to ``sum h λ² / 2N``. For a
    target of more than half of that the level of the half is given: the true loss does not stop there.

    Args:
        diagonal: ``(k,)``, of the curvature H of the summed loss.
        lambda_: Standard deviations of the prior, ``(k,)``.
        samples: N.
        target: The rise wanted, nats per sample.
        low: Smallest level; returned where the rise is larger there already.
        high: Largest level; returned where the rise is smaller still.
    """
    most = diagonal.detach().double() * lambda_.double().square()
    target = min(target, most.sum().item() / (4 * samples))
    ends = [math.log(low), math.log(high)]
    while ends[1] - ends[0] > 0.01:
        middle = sum(ends) / 2
        rise = (most / (1 + most / math.exp(middle))).sum().item() / (2 * samples)
        ends[rise > target] = middle
    return math.exp(ends[1]) if ends[1] < math.log(high) else high


def quadratic_power(diagonal: Tensor, lambda_: Tensor, beta: float) -> float:
    """Return ``d log(rise) / d log β`` of :func:`quadratic_level`'s loss: the power of β in the noise's variance.

    1 for small β; less where directions have the noise of their prior, which no level widens. Weights count by what
    their noise does to the loss. The true rise has another power, as the loss is not quadratic.

    Args:
        diagonal: ``(k,)``, of the curvature H of the summed loss.
        lambda_: Standard deviations of the prior, ``(k,)``.
        beta: The level.

    Returns:
        Between 0 and 1; 1 where nothing has curvature.
    """
    most = diagonal.detach().double() * lambda_.double().square()
    rise = most / (1 + most / beta)
    total = rise.sum().item()
    return rise.square().sum().item() / (beta * total) if total > 0 else 1.0


def _meeting(known: list[tuple[float, float]], target: float, bounds: tuple[float, float]) -> float:
    """Return log β at which the mean of the rises meets the target, at most a step from the last level."""
    last = known[-1][0]
    low, high = max(bounds[0], last - _LONGEST_STEP), min(bounds[1], last + _LONGEST_STEP)
    if _mean_at(high, known) < target:
        return high
    if _mean_at(low, known) > target:
        return low
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if _mean_at(middle, known) > target else (middle, high)
    return (low + high) / 2


def _mean_at(log_beta: float, known: list[tuple[float, float]]) -> float:
    brought = _brought_to(log_beta, known)
    return sum(weight * rise for weight, rise in brought) / sum(weight for weight, _ in brought)


def _relative_error(log_beta: float, known: list[tuple[float, float]]) -> float:
    """Return the standard error of the mean of the rises at a level, as a share of it."""
    brought, mean = _brought_to(log_beta, known), _mean_at(log_beta, known)
    total = sum(weight for weight, _ in brought)
    n = total**2 / sum(weight**2 for weight, _ in brought)
    if len(known) < 2 or n <= 1 or mean <= 0:
        return math.nan
    squares = sum((weight * (rise - mean)) ** 2 for weight, rise in brought)
    return math.sqrt(squares * n / (n - 1)) / total / mean * student_factor(max(1, round(n) - 1))


def _brought_to(log_beta: float, known: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return, for each evaluation, its weight at a level and its rise scaled to this level by the power of β."""
    return [
        (math.exp(-0.5 * ((log_beta - other) / _NEARBY) ** 2), rise * math.exp(_POWER * (log_beta - other)))
        for other, rise in known
    ]
