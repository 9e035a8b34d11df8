"""Whether a layer compresses: how far its information falls from its peak, and whether the choice of bins decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_info.student import NORMAL

FALL = 0.5
"""Bits from the peak to the end that count as compression; single runs of ReLU networks fall by less than that."""


def peak_to_end(curve: Sequence[float]) -> float:
    """Return how far a curve ends below its largest value, in its unit; NaN for a curve without values.

    Args:
        curve: Values over training; NaN where there is none. The last value that there is counts as the end.
    """
    values = [value for value in curve if not math.isnan(value)]
    return max(values) - values[-1] if values else math.nan


def compression_verdict(
    falls: Mapping[str, float],
    saturated: Mapping[str, bool],
    least: float = FALL,
    errors: Mapping[str, float] | None = None,
) -> str:
    """Return what several range policies (or estimators) say about one layer, and whether they agree.

    Args:
        falls: Peak-to-end fall in bits by policy; NaN where the policy does not apply.
        saturated: Whether the curve stays within a bit of its ceiling, so no fall could be seen, by policy.
        least: Smallest fall that counts, bits.
        errors: Standard errors of the falls; a fall counts, or does not, only if 1.96 of them cannot change it.

    Returns:
        One line.
    """
    seen = {policy: fall for policy, fall in falls.items() if not math.isnan(fall)}
    telling = {policy: fall for policy, fall in seen.items() if not saturated.get(policy, False)}
    if not telling:
        return "saturated: says nothing" if seen else "no values"
    half = {policy: NORMAL * (errors or {}).get(policy, 0.0) for policy in telling}
    falling = [policy for policy, fall in telling.items() if fall - half[policy] >= least]
    steady = [policy for policy, fall in telling.items() if fall + half[policy] < least]
    if falling and steady:
        return f"depends on the range: falls under {', '.join(falling)}, not under {', '.join(steady)}"
    unsure = [policy for policy in telling if policy not in falling and policy not in steady]
    if unsure:
        told = ", ".join(f"{telling[policy]:.2g} ± {half[policy]:.1g} under {policy}" for policy in unsure)
        return f"cannot be told: falls by {told} (bits, over random combinations), where {least:g} counts"
    if steady:
        return "does not compress"
    alone = len(telling) == 1 < len(seen)
    return f"compresses ({falling[0]} only is not saturated)" if alone else "compresses"
