"""The twin's batch: the user's, with one sample of the data set in place of another.

If the loader returns the same batch again, the twin's is made anew from the data as the loader does it. If it does not
(augmentation), the other samples are those of the user's batch, and the replacement is drawn, collated and transferred
alone, from its own random numbers, and put into its row.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.sample_objects import objects_of
from lightning_info.replica.isolation import isolated
from lightning_info.twin.copying import copy_data, tensors_of
from lightning_info.twin.handover import OutOfStep
from lightning_info.twin.randomness import seed_all
from lightning_info.twin.refusals import NotSupported

APART = 0x1E3779B97F4A7C15
"""Offset that separates our draws from those of a user with a small seed: equal ones would look repeatable."""


def choose_samples(
    index: int | None, replacement: int | None, seed: int, size: int, number: int = 0
) -> tuple[int, int]:
    """Return the sample to replace and its replacement; those not given are drawn, and differ from each other.

    Args:
        index: The sample to replace, if given.
        replacement: The replacement, if given.
        seed: Seed of the draws.
        size: Number of samples of the data set.
        number: Number of the pair among those of this seed, which differ as long as there are others.

    Raises:
        NotSupported: A given sample does not exist, or there is no other.
    """
    for name, sample in (("index", index), ("replacement", replacement)):
        if sample is not None and not 0 <= sample < size:
            raise NotSupported(f"{name}={sample} is not one of the {size} training samples; take 0 to {size - 1}")
    if index is not None and replacement is not None:
        return index, replacement
    if size < 2:
        raise NotSupported("a training set of one sample has none to replace it; add samples, or remove the callback")
    draw, given = random.Random(seed), index if replacement is None else replacement
    earlier: set[int | None] = set()
    for _ in range(number):
        earlier.add(_another(draw, size, {given, *earlier}))
        if len(earlier) == size - (given is not None):
            earlier = set()
    drawn = _another(draw, size, {given, *earlier})
    if index is not None:
        return index, drawn
    return drawn, _another(draw, size, {drawn}) if replacement is None else replacement


def _another(draw: random.Random, size: int, but: set[int | None]) -> int:
    while (number := draw.randrange(size)) in but:
        pass
    return number


class Replacer:
    """Replaces one sample by another.

    Args:
        index: The sample that is replaced.
        replacement: The sample that takes its place.
        seed: Seed of the draws.
        transfer: Applies to a collated batch what happens until it is trained on.
        instead: Copies that replace the objects with these identities wherever data are drawn.
    """

    def __init__(
        self, index: int, replacement: int, seed: int, transfer: Callable[[Any], Any], instead: dict[int, Any]
    ) -> None:
        self.index, self.replacement, self.seed = index, replacement, seed
        self.transfer, self.instead = transfer, instead

    def check(self, loader: Any, device: torch.device) -> None:
        """Draw the replacement once, before it is needed.

        Raises:
            NotSupported: The replacement cannot be drawn.
        """
        try:
            with isolated(device):
                self._draw(loader)([self.replacement])
        except Exception as error:
            name = type(loader.dataset).__name__
            raise NotSupported(
                f"sample {self.replacement} cannot be drawn from a copy of {name}, which keeps the generators of the "
                f"original as they are: {type(error).__name__}: {error}; leave out in __getstate__ what cannot be "
                f"copied"
            ) from error

    def alone(self, loader: Any, device: torch.device) -> Any:
        """Return a batch of the replaced sample alone, the same one at each call."""
        with isolated(device):
            seed_all(APART + self.seed)
            return self._draw(loader)([self.index])

    def __call__(self, loader: Any, batch: Any, indices: Sequence[int], visit: int, device: torch.device) -> Any:
        """Return the twin's batch.

        Args:
            loader: The user's training loader.
            batch: A copy of the user's batch, as it is trained on.
            indices: Indices of its samples.
            visit: Number of times that the sample was replaced before.
            device: Device on which it is trained.

        Raises:
            OutOfStep: The sample cannot be put into the batch.
        """
        others = [self.replacement if number == self.index else number for number in indices]
        with isolated(device):
            seed_all((APART + 1_000_003 * self.seed + visit) % 2**63)
            draw = self._draw(loader)
            if _same(draw(indices), batch):
                return draw(others)
            rows = [row for row, number in enumerate(indices) if number == self.index]
            return _splice(batch, draw([self.replacement]), rows, len(indices))

    def _draw(self, loader: Any) -> Callable[[Sequence[int]], Any]:
        dataset, collate = copy_data((loader.dataset, loader.collate_fn), self.instead)

        def draw(indices: Sequence[int]) -> Any:
            if loader.batch_sampler is None:
                return self.transfer(collate(dataset[list(indices)]))
            if hasattr(dataset, "__getitems__"):
                return self.transfer(collate(dataset.__getitems__(list(indices))))
            return self.transfer(collate([dataset[number] for number in indices]))

        return draw


def _same(one: Any, other: Any) -> bool:
    leaves, others = tensors_of(one), tensors_of(other)
    return len(leaves) == len(others) > 0 and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(leaves, others, strict=True)
    )


def _splice(batch: Any, single: Any, rows: Sequence[int], size: int) -> Any:
    """Return a batch of ``size`` samples with the one sample of another batch in some of its rows."""
    if isinstance(batch, Tensor):
        return _splice_tensor(batch, single, rows, size)
    objects = objects_of(batch)
    if objects is not None:
        (alone,) = objects.split(single)
        return objects.collate([alone if row in rows else one for row, one in enumerate(objects.split(batch))])
    if isinstance(batch, Mapping):
        parts = {key: _splice(batch[key], single[key], rows, size) for key in batch}
        return parts if type(batch) is dict else type(batch)(parts)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        fields = {name: _splice(getattr(batch, name), getattr(single, name), rows, size) for name in names}
        return dataclasses.replace(batch, **fields)
    if isinstance(batch, (list, tuple)):
        if len(batch) == size and len(single) == 1:  # one entry for each sample
            items = [single[0] if row in rows else item for row, item in enumerate(batch)]
        else:
            items = [_splice(*pair, rows, size) for pair in zip(batch, single, strict=True)]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if batch is None or isinstance(batch, (bool, int, float, str, bytes)):
        return batch
    raise OutOfStep(f"a sample cannot be put into a batch that holds {type(batch).__name__}")


def _splice_tensor(batch: Tensor, single: Tensor, rows: Sequence[int], size: int) -> Tensor:
    if batch.dim() > 0 and len(batch) == size and single.shape == (1, *batch.shape[1:]):
        spliced = batch.clone()
        spliced[list(rows)] = single.to(batch)
        return spliced
    if batch.shape == single.shape:  # no axis of samples
        return batch
    raise OutOfStep(f"a sample of shape {tuple(single.shape)} cannot be put into a batch of shape {tuple(batch.shape)}")
