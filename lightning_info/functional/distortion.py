r"""The noise level at which the loss rises by a given amount, the *distortion*.

The expected loss under weight noise of the level β rises, for small β, as a power of it; so ``log rise`` is nearly
straight in ``log β``, and a secant there needs few evaluations. Each evaluation runs the network over all samples and
draws, hence their number is small and fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

_TOLERANCE = math.log(1.1)
_LONGEST_STEP = math.log(1e3)
"""Of log β, while the target is not enclosed."""

_NO_POWER_LAW = math.log(20)
"""Of rise to target, as logarithm: a rise beyond it says that the target is passed, not how far."""


class DistortionLevel(NamedTuple):
    """Noise level found by :func:`distortion_level`.

    Attributes:
        beta: Of the evaluated levels the one whose rise is nearest the target, by ratio.
        rise: Of the expected loss at ``beta``, nats a sample.
        evaluations: How often ``rise`` was called.
        is_reached: Whether the rise is within 10 % of the target; where it is not, ``beta`` is no answer.
    """

    beta: float
    rise: float
    evaluations: int
    is_reached: bool


def distortion_level(
    rise: Callable[[float], float],
    target: float,
    start: float | None = None,
    evaluations: int = 5,
    low: float = 1e-6,
    high: float = 1e6,
) -> DistortionLevel:
    """β at which ``rise(β)`` is the target within 10 %, by a bracketed secant on logarithms.

    Take the same noise for every β in ``rise``, which makes it nearly monotone; where it is not, the search goes on
    between the last two levels on either side of the target. A rise that is NaN or infinite counts as above it.

    Args:
        rise: Of the expected loss at the level β, nats a sample.
        target: The rise wanted, nats a sample.
        start: First level to try, such as the last one found; 1 if None. Moved into ``[low, high]``.
        evaluations: At most so many calls of ``rise``.
        low: Smallest level.
        high: Largest level.

    Returns:
        The level. ``is_reached`` is False where the target is out of reach at ``high`` (or, from above, at ``low``),
        and where the evaluations did not suffice, as they may not from a start that is off by several powers of ten.

    Raises:
        ValueError: A target, a level or a number of evaluations that is not positive, or ``low >= high``.
    """
    if not (0 < target < math.inf):
        raise ValueError(f"distortion_level: target={target}; it has to be positive and finite, for example 0.05")
    if not (0 < low < high < math.inf):
        raise ValueError(f"distortion_level: low={low}, high={high}; expected 0 < low < high")
    if start is not None and not (0 < start < math.inf):
        raise ValueError(f"distortion_level: start={start}; it has to be positive and finite, or None")
    if evaluations < 1:
        raise ValueError(f"distortion_level: evaluations={evaluations}; expected at least 1")
    bounds = math.log(low), math.log(high)
    tried: list[_Level] = []
    log_beta = math.log(start if start is not None else 1.0)
    for _ in range(evaluations):
        log_beta = min(max(log_beta, bounds[0]), bounds[1])
        if any(log_beta == level.log_beta for level in tried):
            break  # out of reach at the last level there is
        beta = {bounds[0]: low, bounds[1]: high}.get(log_beta, math.exp(log_beta))
        value = float(rise(beta))
        tried.append(_Level(log_beta, _log_ratio(value, target), beta, value))
        if abs(tried[-1].log_ratio) <= _TOLERANCE:
            break
        log_beta = _next(tried)
    best = min(tried, key=lambda level: abs(level.log_ratio))
    return DistortionLevel(best.beta, best.rise, len(tried), abs(best.log_ratio) <= _TOLERANCE)


def quadratic_level(
    diagonal: Tensor, lambda_: Tensor, samples: float, target: float, low: float = 1e-6, high: float = 1e6
) -> float:
    """β at which a diagonal quadratic loss rises by the target: where to start looking for the true one.

    Under its own noise the rise is ``sum h λ² / (1 + h λ²/β) / 2N``, which grows with β up to ``sum h λ² / 2N``.

    Args:
        diagonal: ``(k,)``, of the curvature H of the summed loss.
        lambda_: Standard deviations of the prior, ``(k,)``.
        samples: N.
        target: The rise wanted, nats a sample.
        low: Smallest level; returned where the rise is larger there already.
        high: Largest level; returned where the rise is smaller still.
    """
    most = diagonal.detach().double() * lambda_.double().square()
    ends = [math.log(low), math.log(high)]
    while ends[1] - ends[0] > 0.01:
        middle = sum(ends) / 2
        rise = (most / (1 + most / math.exp(middle))).sum().item() / (2 * samples)
        ends[rise > target] = middle
    return math.exp(ends[1]) if ends[1] < math.log(high) else high


class _Level(NamedTuple):
    log_beta: float
    log_ratio: float
    beta: float
    rise: float


def _log_ratio(rise: float, target: float) -> float:
    """Of the rise to the target; infinite where there is no logarithm, so that no secant goes through it."""
    if rise <= 0:
        return -math.inf
    return math.log(rise / target) if rise < math.inf else math.inf  # NaN is no number below


def _next(tried: list[_Level]) -> float:
    """Where to look next, as log β: inside the bracket if there is one, else along the last secant."""
    last = tried[-1]
    opposite = next((level for level in reversed(tried) if (level.log_ratio < 0) != (last.log_ratio < 0)), None)
    if opposite is None:
        slope = _slope(tried[-2], last) if len(tried) > 1 else 1.0
        step = last.log_ratio / slope if slope > 0 else math.copysign(math.inf, last.log_ratio)
        return last.log_beta - min(max(step, -_LONGEST_STEP), _LONGEST_STEP)
    weight = 1.0
    if len(tried) > 2 and opposite is not tried[-2]:
        # the far side stayed: it counts less (Anderson & Björck), or the secant would creep up on the target
        weight = 1 - last.log_ratio / tried[-2].log_ratio
        weight = weight if weight > 0 else 0.5
    near, far = (min(level.log_ratio, _NO_POWER_LAW) for level in (last, opposite))
    share = near / (near - weight * far) if math.isfinite(near - weight * far) else 0.5
    return last.log_beta + min(max(share, 0.05), 0.95) * (opposite.log_beta - last.log_beta)


def _slope(a: _Level, b: _Level) -> float:
    slope = (b.log_ratio - a.log_ratio) / (b.log_beta - a.log_beta)
    return slope if math.isfinite(slope) else 1.0
