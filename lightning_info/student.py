"""Student's distribution, without torch, so that whoever only reads logs starts fast.

Source of the distribution function at whole degrees of freedom: Abramowitz & Stegun, 26.7.3 and 26.7.4; of its
quantile at many of them: 26.7.5.
"""

from __future__ import annotations

import math
from functools import cache

NORMAL = 1.96
"""Standard errors on either side in an interval of 95 %."""

_SUMMED = 200
"""Degrees of freedom up to which the distribution function is summed; beyond, the series is off by less than 1e-9."""


@cache
def student_factor(freedom: int) -> float:
    """``t_{0.975, ν} / 1.96``: by how much a standard error with ν degrees of freedom has to be larger; no unit.

    Args:
        freedom: ν; of a mean of n draws n - 1.

    Returns:
        The factor, 1 for ever more of them; infinite for none. The level is that of ±1.96 of a normal distribution,
        0.9500042.

    Raises:
        ValueError: A negative ν.
    """
    if freedom < 0:
        raise ValueError(f"student_factor: freedom={freedom}; n draws have n - 1 degrees of freedom, at least 0")
    if freedom == 0:
        return math.inf
    if freedom > _SUMMED:
        z2 = NORMAL**2
        first, second = (z2 + 1) / 4, ((5 * z2 + 16) * z2 + 3) / 96
        third = (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384
        return 1 + (first + (second + third / freedom) / freedom) / freedom
    level = math.erf(NORMAL / math.sqrt(2))
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low) / NORMAL


def _within(angle: float, freedom: int) -> float:
    """Probability of ``|t| < √ν tan θ``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for j in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (j - 1) / j
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
