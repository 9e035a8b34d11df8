"""Losses of the training steps of the first epoch, each at the weights before its batch was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FirstEpoch:
    """Losses of the batches that have passed, over all processes.

    Attributes:
        losses: Sum of the losses that ``training_step`` returned, by the number of samples in the batch.
        batches: Number of these batches, by the number of samples in the batch.
        is_over: Whether the epoch is complete.
        missing: Why the losses cannot be used; empty if they can.
    """

    losses: Mapping[int, float] = field(default_factory=dict)
    batches: Mapping[int, int] = field(default_factory=dict)
    is_over: bool = False
    missing: str = ""

    @property
    def samples(self) -> int:
        """Number of samples that passed."""
        return sum(size * count for size, count in self.batches.items())
