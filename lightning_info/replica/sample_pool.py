"""Samples of consecutive batches in memory that is taken once, of which every callback reads the first ones."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_info.gradients.batches import join, map_tensors, num_samples, take, tensors, without_samples
from lightning_info.gradients.layout import GO_ON, Batch, Layout, Path, bare, by_length, rebuilt


def bytes_of(batch: Any) -> int:
    """Memory of the tensors of a batch."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(batch))


class _Joined:
    """Consecutive batches that agree in all but their samples, joined along the sample axes.

    Args:
        batch: The first of them.
        room: Samples that memory is taken for; more take it anew.
    """

    def __init__(self, batch: Any, room: int) -> None:
        self.count, self.room = 0, room
        self.is_wrapped, self.layout = isinstance(batch, Batch), layout_of(batch)
        self.rest = None if self.is_wrapped and self.layout.ordered else without_samples(batch)
        self.leaves: dict[Path, Any] = {}

        def visit(path: Path, value: Any) -> Any:
            if path in self.layout.axes:
                self.leaves[path] = None
                return None
            return value.detach().cpu().clone() if isinstance(value, Tensor) else GO_ON

        self.form = rebuilt(bare(batch), visit)

    @property
    def shared_bytes(self) -> int:
        """Memory of what belongs to all samples."""
        found: list[Tensor] = []
        apply_to_collection(self.form, Tensor, found.append)
        return sum(leaf.numel() * leaf.element_size() for leaf in found)

    def goes_on(self, rest: bytes | None) -> bool:
        """Whether a batch with this beside its samples can be joined."""
        return self.rest is not None and self.rest == rest

    def append(self, batch: Any) -> None:
        """Copy the samples of a batch behind those that are there."""
        size = num_samples(batch)
        if self.count + size > self.room:
            self._widen(max(self.count + size, 2 * self.room))

        def visit(path: Path, value: Any) -> Any:
            axis = self.layout.axes.get(path)
            if axis is None:
                return GO_ON
            self.leaves[path] = self._put(self.leaves[path], value, axis, size)
            return value

        rebuilt(bare(batch), visit)
        self.count += size

    def first(self, size: int) -> Any:
        """A batch of the first samples, which lie in the same memory."""

        def put(path: Path, value: Any) -> Any:
            axis = self.layout.axes.get(path)
            if axis is None:
                return GO_ON
            leaf = self.leaves[path]
            if isinstance(leaf, Tensor):
                return leaf if leaf.shape[axis] == size else leaf.narrow(axis, 0, size)
            return leaf[(slice(None),) * axis + (slice(size),)] if isinstance(leaf, np.ndarray) else leaf[:size]

        batch = rebuilt(self.form, put)
        return Batch(batch, self.layout) if self.is_wrapped else batch

    def _put(self, leaf: Any, value: Any, axis: int, size: int) -> Any:
        if isinstance(value, Tensor):
            value = value.detach()
            if leaf is None and size == self.room:  # in its own memory format
                return value.cpu().clone()
            leaf = _empty(value, axis, self.room) if leaf is None else leaf
            leaf.narrow(axis, self.count, size).copy_(value)
            return leaf
        if isinstance(value, np.ndarray):
            if leaf is None:
                leaf = np.empty((*value.shape[:axis], self.room, *value.shape[axis + 1 :]), value.dtype)
            leaf[(slice(None),) * axis + (slice(self.count, self.count + size),)] = value
            return leaf
        return value if leaf is None else type(leaf)((*leaf[: self.count], *value))

    def _widen(self, room: int) -> None:
        former, self.room = dict(self.leaves), room
        for path, leaf in former.items():
            axis, count = self.layout.axes[path], self.count
            if isinstance(leaf, Tensor):
                self.leaves[path] = _empty(leaf, axis, room)
                self.leaves[path].narrow(axis, 0, count).copy_(leaf.narrow(axis, 0, count))
            elif isinstance(leaf, np.ndarray):
                wider = np.empty((*leaf.shape[:axis], room, *leaf.shape[axis + 1 :]), leaf.dtype)
                first = (slice(None),) * axis + (slice(count),)
                wider[first] = leaf[first]
                self.leaves[path] = wider


class _Objects:
    """The same of samples that are objects, such as graphs, which have no axis along which memory could be taken.

    Args:
        batch: The first of the batches.
    """

    shared_bytes = 0

    def __init__(self, batch: Any) -> None:
        self.count = 0
        self.rest = None if batch.layout.ordered else without_samples(batch)
        self._pieces: list[Any] = []
        self._read: dict[int, Any] = {}

    def goes_on(self, rest: bytes | None) -> bool:
        """Whether a batch with this beside its samples can be joined."""
        return self.rest is not None and self.rest == rest

    def append(self, batch: Any) -> None:
        """Copy the samples of a batch behind those that are there."""
        self._pieces.append(map_tensors(batch, lambda leaf: leaf.detach().cpu().clone()))
        self.count += num_samples(batch)

    def first(self, size: int) -> Any:
        """A batch of the first samples, made once for all who read as many."""
        if size not in self._read:
            pieces, missing = [], size
            for piece in self._pieces:
                if missing > 0:
                    pieces.append(take(piece, slice(0, missing)) if missing < num_samples(piece) else piece)
                missing -= num_samples(piece)
            self._read[size] = join(pieces)
        return self._read[size]


class SamplePool:
    """Copies on the CPU of the samples of consecutive batches.

    Callbacks that begin with the same batch read from one pool. Whoever comes to a batch first copies the samples that
    it wants of it, the next one those that are still missing.

    Args:
        wanted: How many the one that wants most will want; memory for them is taken at once, and is used once it is
            written to.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.bytes = 0
        self._joined: list[_Joined | _Objects] = []
        self._batches: dict[int, tuple[Hashable, int]] = {}  # number of its first sample -> which, samples kept of it

    def keep(self, batch: Any, of: Hashable, start: int, size: int, free: int | None) -> int | None:
        """Have the first samples of a batch.

        Args:
            batch: The batch.
            of: Which one it is.
            start: Samples that the reader has.
            size: How many it wants of this one.
            free: Bytes that more samples may take, but for the first one; None: any.

        Returns:
            How many are there for it; None if other batches came here between those of the reader.
        """
        known, there = self._batches.get(start, (of, 0))
        if known != of or (start + there != self.count and size > there):
            return None
        if size > there:
            room = min(num_samples(batch), self.wanted - self.count)
            there += self._append(take(batch, slice(there, size)), free, room, goes_on=there > 0)
            if there:
                self._batches[start] = of, there
        return min(size, there)

    def first(self, size: int) -> list[Any]:
        """Batches of the first samples; one if all agree in what belongs to all of them."""
        batches = []
        for joined in self._joined:
            if size > 0:
                batches.append(joined.first(min(size, joined.count)))
            size -= joined.count
        return batches

    def _append(self, batch: Any, free: int | None, room: int, goes_on: bool) -> int:
        """Samples that there was memory for.

        Args:
            batch: The samples.
            free: See :meth:`keep`.
            room: Samples that memory is taken for where they cannot be joined with those before.
            goes_on: They are of the batch that came last.
        """
        size, most = num_samples(batch), self.wanted - self.count
        if free is not None:
            fitting = max(0, free) * size // max(1, bytes_of(batch))
            size, most = min(size, max(fitting, 0 if self.count else 1)), min(most, fitting)
            if size == 0:
                return 0
            batch = take(batch, slice(0, size))
        goes_on = goes_on or (bool(self._joined) and self._joined[-1].goes_on(without_samples(batch)))
        if not goes_on:
            # samples that differ in shape do not come in one piece
            room = max(size, min(room, most) if self._joined else most)
            self._joined.append(_Objects(batch) if layout_of(batch).objects else _Joined(batch, room))
        last = self._joined[-1]
        last.append(batch)
        self.count += size
        self.bytes += bytes_of(batch) - (last.shared_bytes if goes_on else 0)
        return size


def layout_of(batch: Any) -> Layout:
    """Where its samples are, as far as it is known."""
    return batch.layout if isinstance(batch, Batch) else by_length(batch)


def _empty(like: Tensor, axis: int, size: int) -> Tensor:
    """Memory for so many samples like those of a tensor, in the format that ``torch.cat`` gives."""
    shape = (*like.shape[:axis], size, *like.shape[axis + 1 :])
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    channels_last = formats.get(like.dim())
    contiguous = channels_last is None or like.is_contiguous() or not like.is_contiguous(memory_format=channels_last)
    kind = torch.contiguous_format if contiguous else channels_last
    return torch.empty(shape, dtype=like.dtype, memory_format=kind)
