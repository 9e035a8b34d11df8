"""Batches and rows of a sample, read from the loader's own sampler, whatever the order, workers and augmentation.

The batch sampler (or the sampler, without automatic batching) is changed to a subclass of its own class whose iterators
record what they yield. It stays the same object, yields the same numbers, and gets its class back at the end.
"""

from __future__ import annotations

import operator
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from lightning_info.twin.handover import OutOfStep
from lightning_info.twin.refusals import refuse_loader


class Locator:
    """Reads the indices of every training batch. Several may read the same loader."""

    def __init__(self) -> None:
        self._strategy: Any = None
        self._samplers: list[weakref.ref[Any]] = []

    def install(self, trainer: Any) -> None:
        """Read every training loader that the Trainer uses from now on, before it is iterated."""
        self._strategy = trainer.strategy
        shadow = vars(self._strategy).get("process_dataloader")
        if not isinstance(shadow, _ProcessDataloader):
            shadow = vars(self._strategy)["process_dataloader"] = _ProcessDataloader(trainer)
        shadow.locators.append(self)

    def attach(self, loader: Any) -> None:
        """Read the indices of this loader, if it can be read."""
        if refuse_loader(loader) is not None:
            return
        sampler = _sampler(loader)
        with suppress(TypeError):  # a class of C, such as list, has no subclass for its objects to change to
            locators = _recording(sampler).locators
            if self not in locators:
                locators.append(self)
                self._samplers.append(weakref.ref(sampler))

    def refuse(self, loader: Any) -> str | None:
        """Say why this loader cannot be read; None if it can."""
        refusal = refuse_loader(loader)
        if refusal is None and self not in getattr(type(_sampler(loader)), "locators", ()):
            kind = type(_sampler(loader)).__name__
            refusal = f"a batch_sampler of type {kind} cannot be observed; make it a class with __iter__ and __len__"
        return refusal

    def next_batch(self, trainer: Any) -> list[int]:
        """Return indices of the batch that the Trainer has just fetched; to be called once for each.

        Raises:
            OutOfStep: They are not known.
        """
        loader, fetcher = trainer.train_dataloader, trainer.fit_loop._data_fetcher
        prefetched = loader.num_workers * (loader.prefetch_factor or 0)
        (iterator,) = fetcher.iterator._iterator.iterators
        recorded = getattr(iterator, "_sampler_iter", None)
        batches = recorded.batches.get(id(self)) if isinstance(recorded, _Iterator) else None
        if not batches or len(batches) > 1 + prefetched:
            raise OutOfStep("the training loader does not tell which samples its batches hold")
        try:
            return [operator.index(number) for number in batches.popleft()]
        except TypeError as error:
            raise OutOfStep(f"the training loader's sampler gives something that is not an index ({error})") from error

    def uninstall(self) -> None:
        """Leave strategy and loaders as they were."""
        for sampler in [known for reference in self._samplers if (known := reference()) is not None]:
            recording = type(sampler)
            recording.locators.remove(self)
            if not recording.locators:
                sampler.__class__ = recording.__base__
        self._samplers = []
        shadow = vars(self._strategy).get("process_dataloader") if self._strategy is not None else None
        if isinstance(shadow, _ProcessDataloader):
            shadow.locators.remove(self)
            if not shadow.locators:
                del vars(self._strategy)["process_dataloader"]
        self._strategy = None


class _ProcessDataloader:
    """Wraps the strategy's own method, which sees every loader between its creation and its first use."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._process = trainer, trainer.strategy.process_dataloader
        self.locators: list[Locator] = []

    def __call__(self, dataloader: Any) -> Any:
        dataloader = self._process(dataloader)
        if self._trainer.training:  # not while validation loaders are set up
            for locator in self.locators:
                locator.attach(dataloader)
        return dataloader


class _Iterator:
    """Yields what another iterator yields, and records it for every locator."""

    def __init__(self, batches: Iterator[Any], locators: Iterable[Locator]) -> None:
        self._source = batches
        self.batches: dict[int, deque[Any]] = {id(locator): deque() for locator in locators}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._source)
        for kept in self.batches.values():
            kept.append(batch)
        return batch


def _sampler(loader: Any) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _recording(sampler: Any) -> Any:
    """Return the class of a sampler, made a recording one if it is not; raises TypeError if it cannot be."""
    cls: Any = type(sampler)
    if "locators" in vars(cls):
        return cls
    locators: list[Locator] = []
    iterate: Callable[[Any], Iterable[Any]] = cls.__iter__
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    recording = type(
        cls.__name__,
        (cls,),
        {**names, "locators": locators, "__iter__": lambda self: _Iterator(iter(iterate(self)), locators)},
    )
    sampler.__class__ = recording
    return recording
