"""The reference samples of all callbacks of a run, under one limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import ReferenceType, WeakSet, ref

from torch import Tensor
from torch.utils.data import Dataset

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import Layout
from lightning_info.replica.declared_samples import DeclaredSamples
from lightning_info.replica.given_samples import GivenSamples
from lightning_info.replica.sample_pool import SamplePool, layout_of

LARGEST_STORE = 1 << 29
"""Training samples of up to 512 MiB are kept in host memory."""


class SampleStore:
    """Gives each callback the pool from which it reads.

    Args:
        limit: Bytes of all training samples together; what the user gives is not limited.
        wanted: Samples that the callback which wants most wants.
    """

    def __init__(self, limit: int | None = None, wanted: int = 0) -> None:
        self.limit = LARGEST_STORE if limit is None else limit
        self.wanted = wanted
        self._pools: WeakSet[SamplePool] = WeakSet()
        self._begun: list[tuple[Hashable, Layout, ReferenceType[SamplePool]]] = []
        self._given: list[GivenSamples] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy is that of another run, which keeps no samples yet."""
        return {"limit": self.limit, "wanted": self.wanted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return self.limit - sum(pool.bytes for pool in self._pools)

    def pool(self, begin: Hashable, batch: Any, wanted: int) -> SamplePool:
        """The pool of those who begin with this batch and see its samples at the same places.

        Args:
            begin: Which batch it is.
            batch: The batch.
            wanted: Samples that the reader wants.
        """
        layout = layout_of(batch)
        for other, places, begun in self._begun:
            known = begun()
            if other == begin and places == layout and known is not None:
                return known
        pool = self._new(wanted)
        self._begun.append((begin, layout, ref(pool)))
        return pool

    def apart(self, batches: Sequence[Any], wanted: int) -> SamplePool:
        """A pool of one's own that begins with these batches."""
        pool = self._new(wanted)
        for batch in batches:
            pool.keep(batch, pool.count, pool.count, num_samples(batch), None)
        return pool

    def given(
        self,
        given: Dataset[Any] | Sequence[Tensor],
        size: int,
        declared: DeclaredSamples,
        convert: Callable[[Any], Any],
    ) -> list[Any]:
        """Batches of the first samples of what the user gives; callbacks with the same object share them.

        Args:
            given: A data set or tensors.
            size: How many.
            declared: What is said about them.
            convert: Gives a batch the precision of training.

        Raises:
            ValueError: There is no sample in it.
        """
        # a collate function of one's own may make of more samples another batch (of other length, say)
        key = declared.key, None if declared.collate is None else size
        known = next((one for one in self._given if one.given is given and one.key == key), None)
        if known is None:
            known = GivenSamples(given, declared, convert, max(size, self.wanted), key)
            self._given.append(known)
        try:
            return known.first(size)
        except BaseException:
            self._given.remove(known)  # a generator that has raised ends
            raise

    def _new(self, wanted: int) -> SamplePool:
        pool = SamplePool(max(wanted, self.wanted))
        self._pools.add(pool)
        return pool
