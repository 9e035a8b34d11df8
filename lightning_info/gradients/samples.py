"""The sample axis of a batch: any nesting of tuples, lists, dicts and dataclasses whose tensors share axis 0."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def num_samples(batch: Any) -> int:
    """The commonest length of axis 0 among the tensors; that of the first of them where several are as common.

    Raises:
        ValueError: No tensor with an axis in the batch.
    """
    sizes = Counter(len(leaf) for leaf in tensors(batch) if leaf.dim() > 0)
    if not sizes:
        raise ValueError(f"no tensor with a sample axis in a batch of type {type(batch).__name__}")
    return sizes.most_common(1)[0][0]


def take(batch: Any, index: Tensor | slice) -> Any:
    """The batch restricted to some samples; what has no sample axis is kept whole.

    Tensors, arrays, and lists of anything but tensors (file names, say) are restricted.
    """
    size = num_samples(batch)
    numbers = range(size)[index] if isinstance(index, slice) else index.tolist()

    def select(value: Any) -> Any:
        if isinstance(value, (Tensor, np.ndarray)):
            if value.ndim == 0 or len(value) != size:
                return value
            if isinstance(index, slice):
                return value[index]
            return value[index.to(value.device) if isinstance(value, Tensor) else numbers]
        if len(value) == size and not tensors(value):
            return type(value)(value[i] for i in numbers)
        parts = [apply_to_collection(part, _SPLIT, select) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    return apply_to_collection(batch, _SPLIT, select)


_SPLIT = (Tensor, np.ndarray, list, tuple)


def concatenate(batches: list[Any]) -> list[Any]:
    """Join consecutive batches along the sample axis as far as they agree in everything else.

    Returns:
        One batch if all agree, more if samples differ in shape (padded text, images of several sizes) or batches in
        what is not a tensor of samples (a scale, file names).
    """
    joined: list[list[Any]] = []
    last = None
    for batch in batches:
        rest = without_samples(batch)
        if joined and rest is not None and rest == last:
            joined[-1].append(batch)
        else:
            joined.append([batch])
        last = rest
    return [group[0] if len(group) == 1 else _join(group) for group in joined]


def tensors(batch: Any) -> list[Tensor]:
    """All tensors of a batch, in a fixed order."""
    leaves: list[Tensor] = []
    apply_to_collection(batch, Tensor, leaves.append)
    return leaves


def with_tensors(batch: Any, leaves: list[Tensor]) -> Any:
    """A batch of the same form with other tensors, in the order of :func:`tensors`."""
    replacements = iter(leaves)
    return apply_to_collection(batch, Tensor, lambda _: next(replacements))


def split_samples(batch: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Tensors of the batch that carry the sample axis, and a function that puts others in their place."""
    size = num_samples(batch)
    leaves = tensors(batch)
    places = [i for i, leaf in enumerate(leaves) if leaf.dim() > 0 and len(leaf) == size]

    def rebuild(carried: list[Tensor]) -> Any:
        placed = dict(zip(places, carried, strict=True))
        return with_tensors(batch, [placed.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in places], rebuild


def without_samples(batch: Any) -> bytes | None:
    """All of a batch but its sample-axis tensors, comparable; None if it cannot be."""
    size = num_samples(batch)

    def shape(leaf: Tensor) -> Any:
        carried = leaf.dim() > 0 and len(leaf) == size
        if carried:
            return leaf.dtype, tuple(leaf.shape[1:])
        return leaf.dtype, tuple(leaf.shape), leaf.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()

    try:
        return pickle.dumps(apply_to_collection(batch, Tensor, shape))
    except Exception:  # of whatever the user keeps in a batch
        return None


def _join(batches: list[Any]) -> Any:
    columns = [split_samples(batch)[0] for batch in batches]
    _, rebuild = split_samples(batches[0])
    return rebuild([torch.cat(column) for column in zip(*columns, strict=True)])
