"""Samples of what the user gives as ``reference``: a data set, or tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import Batch, Layout, by_length
from lightning_info.replica.declared_samples import DeclaredSamples
from lightning_info.replica.sample_pool import SamplePool

AT_ONCE = 61
"""Samples of a data set that are collated at once; a number that tuples in a sample hardly have."""


class GivenSamples:
    """Draws them, each once, as many as are wanted so far.

    Args:
        given: A data set, or tensors that share axis 0.
        declared: Collates a data set, which is else done in the default way, and says where the samples are.
        convert: Gives a batch the precision of training.
        wanted: How many the callback that wants most will want.
        key: Tells it from others of the same data.
    """

    def __init__(
        self,
        given: Dataset[Any] | Sequence[Tensor],
        declared: DeclaredSamples,
        convert: Callable[[Any], Any],
        wanted: int,
        key: Hashable,
    ) -> None:
        self.given, self.key = given, key
        self.declared = declared
        self.convert = convert
        self.pool = SamplePool(min(wanted, _most(given)))
        self._tensors = None if isinstance(given, Dataset) else tuple(given)
        self._items = _items(given) if isinstance(given, Dataset) else None
        self._layout: Layout | None = None

    def first(self, size: int) -> list[Any]:
        """Batches of the first samples; one where all agree in shape.

        Raises:
            ValueError: There is none.
        """
        if self._tensors is not None:
            self._keep(self._tensors, size)
        collate = self.declared.collate
        while self._items is not None and self.pool.count < size:
            missing = size - self.pool.count
            samples = list(itertools.islice(self._items, min(AT_ONCE, missing) if collate is None else missing))
            if not samples:
                break
            self._keep((collate or default_collate)(samples), len(samples))
        if self.pool.count == 0:
            raise ValueError("there is no sample in it")
        return self.pool.first(size)

    def _keep(self, batch: Any, size: int) -> None:
        if self._items is None and len({len(tensor) for tensor in batch}) > 1:
            raise ValueError(f"its tensors have {', '.join(str(len(tensor)) for tensor in batch)} samples")
        laid = self.declared.laid(batch)
        if not isinstance(laid, Batch):
            # a collate function of one's own need not make an axis of its samples
            is_plain = self._items is not None and self.declared.collate is None
            self._layout = self._layout or by_length(batch, size if is_plain else None)
            laid = self._layout.wrap(batch)
        laid, start = Batch(self.convert(laid.bare), laid.layout), self.pool.count if self._items is not None else 0
        self.pool.keep(laid, start, start, min(size, num_samples(laid)), None)


def _most(given: Any) -> int:
    """Samples that there will be, as far as that is known; memory for more is taken as they come."""
    if isinstance(given, Dataset):
        return len(given) if hasattr(given, "__len__") else AT_ONCE
    return min((len(tensor) for tensor in given), default=0)


def _items(data_set: Any) -> Iterator[Any]:
    if not hasattr(data_set, "__len__"):
        return iter(data_set)
    return (data_set[i] for i in range(len(data_set)))
