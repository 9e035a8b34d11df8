"""A random part of the samples of one pass over data, drawn while they pass by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_info.gradients.batches import concatenate, map_tensors, num_samples, take
from lightning_info.replica.reference_samples import LARGEST_STATE, ReferenceSamples
from lightning_info.replica.sample_pool import bytes_of

SALT = 7_046_029_254_386_353_131


@dataclass(frozen=True)
class SampledSet:
    """Samples that stand for a larger set.

    Attributes:
        groups: Batches on the CPU.
        total: Number of samples of the set that they were drawn from, each as likely as the others.
        missing: Why there are none; empty if there are some.
    """

    groups: list[Any] = field(default_factory=list)
    total: int = 0
    missing: str = ""

    @property
    def size(self) -> int:
        """Number of samples that are there."""
        return sum(map(num_samples, self.groups))


class RandomSubset:
    """Keeps samples of the batches of one pass over data, so that every subset of its size is as likely.

    Each sample has a random number, and those with the smallest are kept. The numbers come from a generator of its own:
    the choice does not depend on the data, nor on what is learned from them.

    Args:
        most: Largest number of samples.
        seed: Seed of the generator; another one than that of ``torch.manual_seed(seed)``, by which weights may begin.

    Attributes:
        total: Number of samples that passed.
        samples: The samples, once :meth:`close` was called.
    """

    def __init__(self, most: int, seed: int) -> None:
        self.total = 0
        self.samples = ReferenceSamples(most)
        self._size = most
        self._generator = Generator().manual_seed(SALT * (seed + 1) % 2**63)
        self._highest, self._kept = 1.0, 0
        self._parts: list[tuple[Any, Tensor]] = []  # samples of one batch, and their numbers

    @property
    def is_closed(self) -> bool:
        """Whether no sample is added any more."""
        return self.samples.complete

    def add(self, batch: Any) -> None:
        """Let the samples of a batch pass by; those that are kept are copied to the CPU."""
        self.pass_by(num_samples(batch), lambda: batch)

    def pass_by(self, count: int, batch: Callable[[], Any]) -> None:
        """Let so many samples pass by.

        Args:
            count: Number of samples.
            batch: Gives them; called only if some are kept.
        """
        numbers = torch.rand(count, generator=self._generator, dtype=torch.float64)
        if not self.total:
            self._size = max(1, min(self._size, LARGEST_STATE // max(1, bytes_of(batch()) // max(1, count))))
        self.total += count
        chosen = (numbers <= self._highest).nonzero().squeeze(1)
        if len(chosen):
            self._keep(batch(), numbers, chosen)
            if self._kept > 2 * self._size:
                self._thin_out()

    def close(self) -> None:
        """End the pass."""
        self._thin_out()
        self.samples.keep(concatenate([part for part, _ in self._parts]))
        self.samples.complete, self._parts = True, []

    def set(self) -> SampledSet | None:
        """Return the samples; None while the pass goes on."""
        return SampledSet(self.samples.groups, self.total) if self.is_closed else None

    def _thin_out(self) -> None:
        numbers = torch.cat([torch.empty(0, dtype=torch.float64), *(kept for _, kept in self._parts)])
        if len(numbers) <= self._size:
            return
        self._highest = numbers.kthvalue(self._size).values.item()
        parts, self._parts = self._parts, []
        self._kept = 0
        for batch, kept in parts:
            self._keep(batch, kept, (kept <= self._highest).nonzero().squeeze(1))

    def _keep(self, batch: Any, numbers: Tensor, chosen: Tensor) -> None:
        if len(chosen):
            part = map_tensors(take(batch, chosen), lambda leaf: leaf.detach().cpu())
            self._parts.append((part, numbers[chosen]))
            self._kept += len(chosen)
