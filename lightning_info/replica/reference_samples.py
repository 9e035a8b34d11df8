"""The reference samples: the fixed pool of training samples that every measurement of a run looks at."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_info.gradients.batches import concatenate, map_tensors, num_samples, take, tensors, with_tensors
from lightning_info.gradients.layout import GO_ON, Batch, Layout, Path, bare, by_length, rebuilt
from lightning_info.replica.declared_samples import DeclaredSamples

LARGEST_STATE = 1 << 26
"""Reference samples of up to 64 MiB travel in the checkpoint."""
LARGEST_POOL = 1 << 29
"""Training samples of up to 512 MiB are kept in host memory."""


class ReferenceSamples:
    """Copies on the CPU of the first samples that pass in training, or of samples that the user gave.

    Args:
        size: How many to keep; fewer if there are not more.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = size
        """How many were asked for; :attr:`size` is smaller where they would exceed :data:`LARGEST_POOL`."""
        self.complete = False
        self.layout: Layout | None = None
        """Where the samples of training batches are, once it is known; until then their length tells."""
        self.groups: list[Any] = []
        """Batches; one if all samples have the same shape."""
        self.parts: list[int] = []
        """Samples of each training batch that is joined in them."""

    def __len__(self) -> int:
        return sum(num_samples(group) for group in self.groups)

    @property
    def full(self) -> bool:
        """As many samples as asked are there."""
        return len(self) >= self.size

    @property
    def bytes(self) -> int:
        """Host memory of all tensors."""
        return sum(map(bytes_of, self.groups))

    def add(self, batch: Any, limited: bool = True) -> None:
        """Keep a copy of a training batch, or of as many of its samples as are missing.

        Args:
            batch: The batch.
            limited: No more than :data:`LARGEST_POOL` bytes, but for the first sample.

        Raises:
            ValueError: Its leaves are not those of the layout.
        """
        if self.full:
            return
        laid = batch if self.layout is None or isinstance(batch, Batch) else self.layout.wrap(batch)
        kept = take(laid, slice(0, min(self.size - len(self), num_samples(laid))))
        fitting = max(0, LARGEST_POOL - self.bytes) * num_samples(kept) // max(1, bytes_of(kept))
        if fitting < num_samples(kept) and limited:
            kept = take(kept, slice(0, max(fitting, 0 if self.groups else 1)))
            self.size = len(self) + num_samples(kept)
        if num_samples(kept) == 0:
            return
        self.groups.append(map_tensors(kept, lambda leaf: leaf.detach().cpu().clone()))

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

    def map(self, function: Callable[[Any], Any]) -> None:
        """Put what a function gives for each batch in its place."""
        self.groups = [Batch(function(group.bare), group.layout) for group in self.groups]

    def close(self, ranks: int = 1) -> bool:
        """What is there is all there will be; with several processes every one gets the samples of all.

        Returns:
            False if batches cannot be sent, so that every process keeps its own samples only.
        """
        self.complete = True
        shared = True
        if ranks > 1:
            gathered: list[bytes | None] = [None] * ranks
            torch.distributed.all_gather_object(gathered, _pickled(self.groups))
            sent = [groups for groups in gathered if groups is not None]
            shared = len(sent) == ranks
            if shared:
                self.groups = [group for groups in sent for group in pickle.loads(groups)]
        self.parts = [num_samples(group) for group in self.groups]
        self.groups = concatenate(self.groups)
        return shared

    def reopen(self) -> None:
        """Start collecting again."""
        self.groups, self.parts, self.complete = [], [], False

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
        self.groups, self.parts = groups, [num_samples(group) for group in groups]

    def shrink(self, size: int) -> None:
        """Keep only the first so many."""
        self.size = self.asked = min(self.size, size)
        groups, kept = self.groups, 0
        self.groups = []
        for group in groups:
            if kept < size:
                self.groups.append(take(group, slice(0, min(size - kept, num_samples(group)))))
                kept += num_samples(group)

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
        leaves = [tensors(group) for group in self.groups]
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

    def fill(self, given: Dataset[Any] | Sequence[Tensor], declared: DeclaredSamples | None = None) -> None:
        """Take the samples from a data set or from tensors that share axis 0.

        Args:
            given: The data set, or the tensors.
            declared: Collates a data set, which is else done in the default way, and says where the samples are.

        Raises:
            ValueError: There is no sample in it.
        """
        declared = declared or DeclaredSamples("fill")
        if isinstance(given, Dataset):
            items = (given[i] for i in range(min(self.size, len(given)))) if hasattr(given, "__len__") else iter(given)
            samples = list(itertools.islice(items, self.size))
            batch: Any = (declared.collate or default_collate)(samples) if samples else ()
        else:
            batch = tuple(given)
            if len({len(tensor) for tensor in batch}) > 1:
                raise ValueError(f"its tensors have {', '.join(str(len(tensor)) for tensor in batch)} samples")
        size = len(samples) if isinstance(given, Dataset) and samples else None
        laid = declared.laid(batch)
        if not isinstance(laid, Batch):
            # a collate function of one's own need not make an axis of its samples
            laid = Batch(batch, by_length(batch, size if declared.collate is None else None))
        self.add(laid, limited=False)
        self.close()


def bytes_of(batch: Any) -> int:
    """Memory of the tensors of a batch."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(batch))


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
