"""Samples of what the user gives as ``reference``: a data set, or tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import Batch, Layout, by_length
from lightning_info.replica.sample_pool import SamplePool

AT_ONCE = 61
"""Samples of a data set that are collated at once; a number that tuples in a sample hardly have."""


class GivenSamples:
    """Draws them, each once, as many as are wanted so far.

    Args:
        given: A data set, collated in the default way, or tensors that share axis 0.
        convert: Gives a batch the precision of training.
        wanted: How many the callback that wants most will want.
    """

    def __init__(self, given: Dataset[Any] | Sequence[Tensor], convert: Callable[[Any], Any], wanted: int) -> None:
        self.given = given
        self.convert = convert
        self.pool = SamplePool(wanted)
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
        while self._items is not None and self.pool.count < size:
            samples = list(itertools.islice(self._items, min(AT_ONCE, size - self.pool.count)))
            if not samples:
                break
            self._keep(default_collate(samples), len(samples))
        if self.pool.count == 0:
            raise ValueError("there is no sample in it")
        return self.pool.first(size)

    def _keep(self, batch: Any, size: int) -> None:
        if self._items is None:
            if len({len(tensor) for tensor in batch}) > 1:
                raise ValueError(f"its tensors have {', '.join(str(len(tensor)) for tensor in batch)} samples")
            laid, start = Batch(self.convert(batch), by_length(batch)), 0
        else:
            self._layout = self._layout or by_length(batch, size)
            laid, start = self._layout.wrap(self.convert(batch)), self.pool.count
        self.pool.keep(laid, start, start, min(size, num_samples(laid)), None)


def _items(data_set: Any) -> Iterator[Any]:
    if not hasattr(data_set, "__len__"):
        return iter(data_set)
    return (data_set[i] for i in range(len(data_set)))
