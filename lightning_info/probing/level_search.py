"""The level at which weight noise raises the loss of a network by a distortion, within a fixed number of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from lightning_info.functional.distortion import DistortionLevel, distortion_level
from lightning_info.probing.noisy_loss import loss_rise
from lightning_info.probing.probe import Probe

SHARES = 4
"""Parts of the samples, each with draws of its own; with more of them little is won."""
PASSES = 22
"""Over the samples: two for each evaluation, as a draw comes with its opposite."""


def find_level(
    probe: Probe, noise: Callable[[int, float], Tensor], seeds: Iterator[int], target: float, start: float, loss: float
) -> DistortionLevel:
    """Search with new draws in every evaluation, one for each share of the samples.

    Args:
        probe: With a private replica.
        noise: ``(seed, β) -> (k,)``.
        seeds: ``PASSES // 2 * SHARES`` of them.
        target: The rise wanted, nats a sample.
        start: First level to try.
        loss: Mean loss of a sample without noise.
    """

    def rise(beta: float) -> float:
        return loss_rise(probe, (noise(next(seeds), beta) for _ in range(SHARES)), SHARES, loss)

    return distortion_level(rise, target, start, PASSES // 2)
