"""The samples of a batch: counted, taken, joined and replaced along the sample axis.

A batch is any nesting of tuples, lists, dicts and dataclasses. Where its sample axes are known it is a
:class:`~.layout.Batch`; of another one every leaf carries the samples whose axis 0 has the commonest length. Samples
that are objects (graphs) are taken and joined as such.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.layout import GO_ON, Batch, Layout, Path, bare, by_length, lengths, rebuilt


def num_samples(batch: Any) -> int:
    """Samples of a batch.

    Raises:
        ValueError: No tensor with an axis in the batch.
    """
    return len(batch) if isinstance(batch, Batch) else lengths(batch)[0]


class SampleCount:
    """Counts the samples of batches of one form by one of their tensors: no walk through each of them."""

    def __init__(self) -> None:
        self._place: tuple[Path, int] | None = None  # of the tensor, and its sample axis

    def __call__(self, batch: Any, layout: Layout | None) -> int:
        """Return the number of samples of a batch as it comes from the loader.

        Raises:
            ValueError: No tensor with an axis in the batch.
        """
        if self._place is None and layout is not None and not layout.objects:
            places = ((path, axis) for path, axis in layout.axes.items() if isinstance(_leaf(batch, path), Tensor))
            self._place = next(places, None)
        if self._place is None:
            return num_samples(batch if layout is None else layout.wrap(batch))
        path, axis = self._place
        return int(_leaf(batch, path).shape[axis])


def _leaf(batch: Any, path: Path) -> Any:
    for step in path:
        batch = getattr(batch, step[1:]) if isinstance(step, str) and step.startswith(".") else batch[step]
    return batch


def take(batch: Any, index: Tensor | slice) -> Any:
    """The batch restricted to some samples; what has no sample axis is kept whole.

    Tensors, arrays, and lists of one object for each sample are restricted.
    """
    known = _known(batch)
    layout = known.layout
    numbers: list[int] | None = None if isinstance(index, slice) else index.tolist()
    taken: dict[Path, list[Any]] = {}

    def visit(path: Path, value: Any) -> Any:
        if path in layout.objects:
            samples = known.samples(path, value)
            taken[path] = samples[index] if isinstance(index, slice) else [samples[i] for i in numbers or ()]
            return layout.objects[path].collate(taken[path])
        axis = layout.axes.get(path)
        if axis is None:
            return GO_ON
        if isinstance(value, Tensor):
            return value[(slice(None),) * axis + (index if isinstance(index, slice) else index.to(value.device),)]
        if isinstance(value, np.ndarray):
            return value[(slice(None),) * axis + (index if isinstance(index, slice) else numbers,)]
        return type(value)(value[index] if isinstance(index, slice) else [value[i] for i in numbers or ()])

    found = rebuilt(bare(batch), visit)
    return Batch(found, layout, taken) if isinstance(batch, Batch) else found


def select(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """The same samples of several tensors, each with the samples on axis 0 and on a device of its own."""
    return [tensor[index.to(tensor.device)] for tensor in tensors]


def spread(batch: Any, most: int) -> Any:
    """At most so many samples, evenly over the batch and in its order."""
    return take(batch, spread_index(num_samples(batch), most))


def spread_index(size: int, most: int) -> Tensor:
    """At most so many of the numbers below ``size``, the first and the last among them."""
    return torch.linspace(0, size - 1, min(size, most), dtype=torch.float64).round().long()


def spread_around(size: int, most: int, sample: int) -> Tensor:
    """The same, a given number among them."""
    return torch.tensor(sorted({sample, *spread_index(size, most - 1).tolist()}))


def company(sample: int, size: int, fewest: int) -> Tensor:
    """The samples with which one goes forward, in order: alone, or with others where the module needs as many."""
    if fewest == 1:
        return torch.tensor([sample])
    if size == 2:  # other than the whole batch
        return torch.tensor([0, sample, 1])
    if size == 1:
        return torch.tensor([0, 0])
    return torch.tensor([sample, sample + 1] if sample + 1 < size else [sample - 1, sample])


def shuffled(size: int) -> Tensor:
    """A fixed order of so many samples that is not the given one."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    return order if size < 2 or (order.diff() < 0).any() else order.flip(0)


def concatenate(batches: list[Any]) -> list[Any]:
    """Join consecutive batches along the sample axis as far as they agree in everything else.

    Returns:
        One batch if all agree, more if samples differ in shape (padded text, images of several sizes), batches in what
        belongs to all their samples (a scale, a table), or if samples must stay in the order of their batch.
    """
    joined: list[list[Any]] = []
    last = None
    for batch in batches:
        rest = None if isinstance(batch, Batch) and batch.layout.ordered else without_samples(batch)
        if joined and rest is not None and rest == last:
            joined[-1].append(batch)
        else:
            joined.append([batch])
        last = rest
    return [join(group) for group in joined]


def tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch, in a fixed order."""
    leaves: list[Tensor] = []

    def collect(leaf: Tensor) -> Tensor:
        leaves.append(leaf)
        return leaf

    map_tensors(batch, collect)
    return leaves


def with_tensors(batch: Any, leaves: list[Tensor]) -> Any:
    """A batch of the same form with other tensors, in the order of :func:`tensors`."""
    replacements = iter(leaves)
    return map_tensors(batch, lambda _: next(replacements))


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """A batch of the same form with what a function gives for each of its tensors."""
    objects = batch.layout.objects if isinstance(batch, Batch) else {}
    if not objects:
        return _like(batch, apply_to_collection(bare(batch), Tensor, function))

    def visit(path: Path, value: Any) -> Any:
        if path in objects:
            return objects[path].mapped(value, function)
        return function(value) if isinstance(value, Tensor) else GO_ON

    return _like(batch, rebuilt(bare(batch), visit))


def split_samples(batch: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Tensors of the batch that carry samples, these on axis 0, and a function that puts others in their place.

    Raises:
        NotCovered: No tensor carries them.
    """
    layout = _known(batch).layout
    if layout.objects:
        raise NotCovered("its samples are objects, such as graphs, and no tensors")
    carried: dict[Path, Tensor] = {}

    def collect(path: Path, value: Any) -> Any:
        axis = layout.axes.get(path)
        if isinstance(value, Tensor) and axis is not None:
            carried[path] = value.movedim(axis, 0) if axis else value
        return GO_ON if axis is None else value

    rebuilt(bare(batch), collect)
    if not carried:
        raise NotCovered("its samples are no tensors")

    def rebuild(others: list[Tensor]) -> Any:
        placed = dict(zip(carried, others, strict=True))

        def put(path: Path, value: Any) -> Any:
            if path not in placed:
                return GO_ON
            return placed[path].movedim(0, layout.axes[path]) if layout.axes[path] else placed[path]

        return _like(batch, rebuilt(bare(batch), put))

    return list(carried.values()), rebuild


def without_samples(batch: Any) -> bytes | None:
    """All of a batch but its samples, comparable; None if it cannot be."""
    layout = _known(batch).layout

    def visit(path: Path, value: Any) -> Any:
        if path in layout.objects:
            return type(value).__name__
        axis = layout.axes.get(path)
        if isinstance(value, (Tensor, np.ndarray)) and axis is not None:
            return str(value.dtype), tuple(value.shape[:axis]), tuple(value.shape[axis + 1 :])
        if isinstance(value, Tensor):
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return str(value.dtype), tuple(value.shape), content
        return GO_ON if axis is None else type(value).__name__

    try:
        return pickle.dumps((sorted(map(repr, (*layout.axes.items(), *layout.objects))), rebuilt(bare(batch), visit)))
    except Exception:  # of whatever the user keeps in a batch
        return None


def _known(batch: Any) -> Batch:
    return batch if isinstance(batch, Batch) else Batch(batch, by_length(batch))


def _like(batch: Any, other: Any) -> Any:
    return Batch(other, batch.layout) if isinstance(batch, Batch) else other


def join(batches: list[Any]) -> Any:
    """One batch of the samples of several that agree in everything else; a single one is given back as it is."""
    if len(batches) == 1:
        return batches[0]
    layout = _known(batches[0]).layout
    axes, objects = layout.axes, layout.objects
    columns: dict[Path, list[Any]] = {path: [] for path in (*axes, *objects)}

    for batch in map(_known, batches):

        def collect(path: Path, value: Any, batch: Batch = batch) -> Any:
            if path not in columns:
                return GO_ON
            if path in objects:
                columns[path].extend(batch.samples(path, value))
            else:
                columns[path].append(value)
            return value

        rebuilt(batch.bare, collect)

    def put(path: Path, value: Any) -> Any:
        if path in objects:
            return objects[path].collate(columns[path])
        if path not in axes:
            return GO_ON
        if isinstance(value, Tensor):
            return torch.cat(columns[path], axes[path])
        if isinstance(value, np.ndarray):
            return np.concatenate(columns[path], axes[path])
        return type(value)(item for part in columns[path] for item in part)

    return _like(batches[0], rebuilt(bare(batches[0]), put))
