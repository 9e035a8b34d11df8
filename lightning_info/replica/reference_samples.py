"""The reference samples: the fixed pool of training samples that every measurement of a run looks at."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info.gradients.batches import concatenate, map_tensors, num_samples, take, tensors, with_tensors
from lightning_info.gradients.layout import GO_ON, Batch, Layout, Path, bare, by_length, rebuilt
from lightning_info.replica.declared_samples import DeclaredSamples
from lightning_info.replica.sample_pool import SamplePool, bytes_of
from lightning_info.replica.sample_store import SampleStore

LARGEST_STATE = 1 << 26
"""Reference samples of up to 64 MiB travel in the checkpoint."""


class ReferenceSamples:
    """Copies on the CPU of the first samples that pass in training, or of samples that the user gave.

    Args:
        size: How many to keep; fewer if there are not more.
        store: What keeps them, with those of other callbacks.
    """

    def __init__(self, size: int, store: SampleStore | None = None) -> None:
        self.size = size
        self.asked = size
        """How many were asked for; :attr:`size` is smaller where they would exceed the limit of the store."""
        self.store = SampleStore() if store is None else store
        self.complete = False
        self.layout: Layout | None = None
        """Where the samples of training batches are, once it is known; until then their length tells."""
        self._groups: list[Any] | None = []  # None: to be read from the pool
        self.parts: list[int] = []
        """Samples of each training batch that is joined in them."""
        self._pool: SamplePool | None = None  # whose first samples they are

    @property
    def groups(self) -> list[Any]:
        """Batches; one if all samples have the same shape."""
        if self._groups is None:
            assert self._pool is not None
            self._groups = self._pool.first(sum(self.parts))
        return self._groups

    @groups.setter
    def groups(self, groups: list[Any]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return sum(self.parts) if self._groups is None else sum(map(num_samples, self._groups))

    @property
    def full(self) -> bool:
        """As many samples as asked are there."""
        return len(self) >= self.size

    @property
    def bytes(self) -> int:
        """Host memory of all tensors."""
        return sum(map(bytes_of, self.groups))

    def add(self, batch: Any, of: Hashable = None) -> None:
        """Keep a copy of a training batch, or of as many of its samples as are missing and as the store has room for.

        Args:
            batch: The batch.
            of: Which batch it is, where others keep samples of it in the same store.

        Raises:
            ValueError: Its leaves are not those of the layout.
        """
        if self.full:
            return
        laid = batch if self.layout is None or isinstance(batch, Batch) else self.layout.wrap(batch)
        of = object() if of is None else of
        if self._pool is None:
            self._pool = self.store.pool(of, laid, self.size)
        there, wanted = len(self), min(self.size - len(self), num_samples(laid))
        kept = self._pool.keep(laid, of, there, wanted, self.store.free)
        if kept is None:  # the others went on with another batch
            self._pool = self.store.apart(self.apart(), self.size)
            kept = self._pool.keep(laid, of, there, wanted, self.store.free) or 0
        if kept < wanted:
            self.size = there + kept
        if kept > 0:
            self.parts.append(kept)
            self._groups = None

    def lay(self, layout: Layout) -> None:
        """Say where the samples are; those that are there already (all of them at the same places) change over."""
        self.layout = layout
        self.groups = [
            group.laid(replace(group.layout, ordered=layout.ordered, fewest=layout.fewest)) for group in self.groups
        ]

    def laid(self, batch: Any) -> Any:
        """A training batch with the places of its samples, as far as they are known."""
        with contextlib.suppress(ValueError):  # the samples were given, in another form
            return batch if self.layout is None else self.layout.wrap(batch)
        return batch

    def close(self, ranks: int = 1) -> bool:
        """What is there is all there will be; with several processes every one gets the samples of all.

        Returns:
            False if batches cannot be sent, so that every process keeps its own samples only.
        """
        self.complete = True
        if ranks == 1:
            return True
        gathered: list[bytes | None] = [None] * ranks
        torch.distributed.all_gather_object(gathered, _pickled([_compact(batch) for batch in self.apart()]))
        sent = [batches for batches in gathered if batches is not None]
        if len(sent) < ranks:
            return False
        batches = [batch for batches in sent for batch in pickle.loads(batches)]
        self._pool, self.parts = None, [num_samples(batch) for batch in batches]
        self.groups = concatenate(batches)
        return True

    def reopen(self) -> None:
        """Start collecting again."""
        self.groups, self.parts, self.complete, self._pool = [], [], False, None

    def apart(self) -> list[Any]:
        """The training batches that are joined in the groups."""
        rest, batches = list(self.parts), []
        for group in self.groups:
            start = 0
            while start < num_samples(group):
                size = rest.pop(0) if rest else num_samples(group)
                batches.append(take(group, slice(start, start + size)))
                start += size
        return batches

    def keep(self, groups: list[Any]) -> None:
        """Go on with some of the samples."""
        self.groups, self.parts, self._pool = groups, [num_samples(group) for group in groups], None

    def shrink(self, size: int) -> None:
        """Keep only the first so many, of those that are there and of those to come."""
        self.size = self.asked = min(self.size, size)
        kept: list[Any] = []
        for group in self.groups:
            if (left := size - sum(map(num_samples, kept))) > 0:
                kept.append(take(group, slice(0, min(left, num_samples(group)))))
        if kept:
            self.keep(kept)

    def keep_order(self) -> None:
        """Take the batches apart again, whose samples must stay in their order."""
        self.groups = self.apart()
        if self.layout is not None:
            self.lay(replace(self.layout, ordered=True))

    def state(self) -> list[dict[str, Any]] | None:
        """The groups, for a checkpoint, and the sample axis of each of their tensors.

        None until complete, beyond ``LARGEST_STATE``, and where samples are objects (graphs).
        """
        if any(isinstance(group, Batch) and group.layout.objects for group in self.groups):
            return None
        leaves = [tensors(_compact(group)) for group in self.groups]
        if not self.complete or not self.groups or self.bytes > LARGEST_STATE:
            return None
        pairs = zip(self.groups, leaves, strict=True)
        return [
            {"tensors": group, "rest": _rest(bare(batch)), **_places(batch), "parts": self.parts}
            for batch, group in pairs
        ]

    def restore(self, state: list[dict[str, Any]], like: Any) -> None:
        """Take up what :meth:`state` gave, in the form of a batch of this run.

        Floating-point tensors take the precision of the batch's.

        Raises:
            ValueError: The batch has other tensors, or differs in what is not a tensor of samples.
        """
        like = bare(like)
        rest, leaves = _rest(like), tensors(like)
        for group in state:
            if len(group["tensors"]) != len(leaves):
                raise ValueError(f"they have {len(group['tensors'])} tensors, a batch of this run {len(leaves)}")
            if rest is None or group["rest"] != rest:
                raise ValueError("their batches held something besides tensors that is different now")
        self.groups = [
            _laid(
                with_tensors(
                    like,
                    [
                        saved.to(leaf.dtype) if saved.is_floating_point() and leaf.is_floating_point() else saved
                        for saved, leaf in zip(group["tensors"], leaves, strict=True)
                    ],
                ),
                group,
            )
            for group in state
        ]
        self.parts = next((list(group.get("parts", ())) for group in state), [])
        self.complete = True

    def fill(
        self,
        given: Dataset[Any] | Sequence[Tensor],
        declared: DeclaredSamples | None = None,
        convert: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        """Take the samples from a data set or from tensors that share axis 0.

        Args:
            given: The data set, or the tensors.
            declared: Collates a data set, which is else done in the default way, and says where the samples are.
            convert: Gives a batch the precision of training.

        Raises:
            ValueError: There is no sample in it.
        """
        self.groups = self.store.given(given, self.size, declared or DeclaredSamples("fill"), convert)
        self.parts, self.complete = [num_samples(group) for group in self.groups], True


def _compact(batch: Any) -> Any:
    """With tensors that own their memory, as saving one saves all of the memory that it is a part of."""
    return map_tensors(batch, lambda leaf: leaf if _owns_its_memory(leaf) else leaf.clone())


def _owns_its_memory(leaf: Tensor) -> bool:
    if leaf.layout != torch.strided:
        return True
    return leaf.untyped_storage().nbytes() <= leaf.numel() * leaf.element_size()


def _places(batch: Any) -> dict[str, Any]:
    if not isinstance(batch, Batch):
        return {}
    layout, axes = batch.layout, list[int | None]()

    def visit(path: Path, value: Any) -> Any:
        if isinstance(value, Tensor):
            axes.append(layout.axes.get(path))
        return GO_ON

    rebuilt(batch.bare, visit)
    return {"axes": axes, "ordered": layout.ordered, "fewest": layout.fewest}


def _laid(batch: Any, saved: dict[str, Any]) -> Batch:
    """With the places of the samples that :meth:`ReferenceSamples.state` wrote down."""
    known = by_length(batch)
    if "axes" not in saved:  # of an earlier version
        return Batch(batch, known)
    axes = iter(saved["axes"])
    places = dict.fromkeys(known.axes, 0)  # lists and arrays, which have to be the same in every batch
    shared = set(known.shared)

    def visit(path: Path, value: Any) -> Any:
        if isinstance(value, Tensor):
            axis = next(axes)
            places.pop(path, None)
            shared.discard(path)
            if axis is None:
                shared.add(path)
            else:
                places[path] = axis
        return GO_ON

    rebuilt(batch, visit)
    return Layout(places, frozenset(shared), saved["ordered"], saved["fewest"]).wrap(batch)


def _rest(batch: Any) -> str | None:
    """A fingerprint of all of a batch that is no tensor; None if it cannot be compared."""
    rest = _pickled(apply_to_collection(batch, Tensor, lambda leaf: None))
    return None if rest is None else hashlib.sha256(rest).hexdigest()


def _pickled(value: Any) -> bytes | None:
    """None if it cannot be."""
    try:
        return pickle.dumps(value)
    except Exception:  # of whatever the user keeps in a batch
        return None
