"""The level at which weight noise raises the loss of a network by a distortion, within a fixed number of passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from lightning_info.functional.distortion import DistortionLevel, distortion_level
from lightning_info.quantities.weight_information.loss_rise import LossRise

SHARES = 4
"""Parts of the samples, each with its own draws; more of them gain little."""
PASSES = 16
"""Passes over the samples: two for each evaluation, as a draw comes with its opposite."""
POWER_PASSES = 4
"""Further passes, for the power of β with which the rise grows at the level."""
ASIDE, POWERS = 1.25, (0.25, 2.0)
"""Factor of β on either side for the power, and the range of the power, as four draws are few."""


def find_level(
    loss_rise: LossRise,
    noise: Callable[[int, float], Tensor],
    seeds: Iterator[int],
    target: float,
    start: float,
) -> DistortionLevel:
    """Search with new draws in every evaluation, one for each share of the samples.

    At the level that was found, the power of β with which the rise grows is measured with the last four draws on either
    side of it: with the same draws, as the difference of two rises is then known far better than each.

    Args:
        loss_rise: Rise of the loss over the samples, in :data:`SHARES` parts.
        noise: Draws weight noise, ``(seed, β) -> (k,)``.
        seeds: Seeds of the draws, ``PASSES // 2 * SHARES`` of them.
        target: The wanted rise, nats per sample.
        start: First level to try.
    """
    used: list[int] = []

    def rise(beta: float) -> float:
        used.extend(next(seeds) for _ in range(SHARES))
        return rise_of(used[-SHARES:], beta)

    def rise_of(some: list[int], beta: float) -> float:
        return loss_rise(noise(seed, beta) for seed in some)

    level = distortion_level(rise, target, start, PASSES // 2)
    if not level.is_reached:
        return level
    less, more = (rise_of(used[-SHARES:], level.beta * factor) for factor in (1 / ASIDE, ASIDE))
    if not 0 < less < more < math.inf:  # the power used by the search stays
        return level
    power = math.log(more / less) / (2 * math.log(ASIDE))
    return level._replace(power=min(max(power, POWERS[0]), POWERS[1]))
