"""The sample axis of a batch: any nesting of tuples, lists, dicts and dataclasses whose tensors share axis 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def num_samples(batch: Any) -> int:
    """Length of axis 0 of the first tensor that has one.

    Raises:
        ValueError: No tensor with an axis in the batch.
    """
    sizes = [len(leaf) for leaf in tensors(batch) if leaf.dim() > 0]
    if not sizes:
        raise ValueError(f"no tensor with a sample axis in a batch of type {type(batch).__name__}")
    return sizes[0]


def take(batch: Any, index: Tensor | slice) -> Any:
    """The batch restricted to some samples; tensors without the sample axis are kept whole."""
    size = num_samples(batch)

    def select(leaf: Tensor) -> Tensor:
        if leaf.dim() == 0 or len(leaf) != size:
            return leaf
        return leaf[index if isinstance(index, slice) else index.to(leaf.device)]

    return apply_to_collection(batch, Tensor, select)


def concatenate(batches: list[Any]) -> list[Any]:
    """Join consecutive batches along the sample axis as far as their shapes allow.

    Returns:
        One batch if all agree, more if samples differ in shape (padded text, images of several sizes).
    """
    joined: list[list[Any]] = []
    for batch in batches:
        if joined and _signature(joined[-1][0]) == _signature(batch):
            joined[-1].append(batch)
        else:
            joined.append([batch])
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


def _signature(batch: Any) -> tuple[Any, ...]:
    size = num_samples(batch)
    return tuple(
        (leaf.dtype, leaf.shape[1:] if leaf.dim() > 0 and len(leaf) == size else None) for leaf in tensors(batch)
    )


def _join(batches: list[Any]) -> Any:
    columns = [split_samples(batch)[0] for batch in batches]
    _, rebuild = split_samples(batches[0])
    return rebuild([torch.cat(column) for column in zip(*columns, strict=True)])
