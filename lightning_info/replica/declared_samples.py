"""What a user says about the samples of a batch: functions that split and join them, or the axes on which they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_info.gradients.contract import first_line
from lightning_info.gradients.layout import (
    GO_ON,
    Batch,
    Layout,
    Path,
    by_length,
    describe,
    is_plain_list,
    lengths,
    name_of,
    rebuilt,
)
from lightning_info.gradients.sample_objects import Objects, deep_mapped

Split = Callable[[Any], Sequence[Any]]
"""``batch -> [sample, ...]``."""
Collate = Callable[[list[Any]], Any]
"""``[sample, ...] -> batch``, as a DataLoader's ``collate_fn``."""
BatchAxes = Mapping[str, int | None] | Mapping[int, int | None]
"""Name or position of a tensor in the batch -> axis of its samples, None if it belongs to all of them."""


class DoesNotFit(ValueError):
    """The batch is not as it was declared."""


@dataclass(frozen=True)
class DeclaredSamples:
    """Where the samples are, as far as the user says it.

    Args:
        owner: Who asks, for messages.
        split: The argument of a callback.
        collate: The argument of a callback.
        batch_axes: The argument of a callback.

    Raises:
        ValueError: They make no sense.
    """

    owner: str
    split: Split | None = None
    collate: Collate | None = None
    batch_axes: BatchAxes | None = None

    def __post_init__(self) -> None:
        for name, value, example in (
            ("split", self.split, "split=lambda batch: batch.to_data_list()"),
            ("collate", self.collate, "collate=my_collate_fn"),
        ):
            if value is not None and not callable(value):
                raise ValueError(f"{self.owner}: {name} must be a function, got {value!r}; for example {example}")
        if self.split is not None and self.collate is None:
            raise ValueError(
                f"{self.owner}: split= needs collate=, the function that makes a batch of a list of its samples again, "
                f"such as the collate_fn of the DataLoader"
            )
        if self.split is not None and self.batch_axes is not None:
            raise ValueError(f"{self.owner}: split= and batch_axes= exclude each other; give one of them")
        if self.batch_axes is not None:
            self._check_axes(self.batch_axes)

    def _check_axes(self, axes: Any) -> None:
        example = "for example batch_axes={'x': 1, 'table': None}"
        if not isinstance(axes, Mapping) or not axes:
            raise ValueError(f"{self.owner}: batch_axes must map tensors of the batch to axes, got {axes!r}; {example}")
        for key, axis in axes.items():
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise ValueError(
                    f"{self.owner}: batch_axes has the key {key!r}; give the name of an entry or its position, and "
                    f"'inputs.0' for an entry in an entry; {example}"
                )
            if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis < 0):
                raise ValueError(
                    f"{self.owner}: batch_axes[{key!r}] must be an axis from 0 on, or None for what belongs to all "
                    f"samples, got {axis!r}; {example}"
                )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where the same was said."""
        axes = None if self.batch_axes is None else tuple(sorted((str(k), str(v)) for k, v in self.batch_axes.items()))
        return self.split, self.collate, axes

    @property
    def text(self) -> str:
        """What was said, in words; empty if nothing was."""
        names = [getattr(one, "__qualname__", type(one).__qualname__) for one in (self.split, self.collate) if one]
        axes = [] if self.batch_axes is None else [f"{key}: {axis}" for key, axis in self.batch_axes.items()]
        return ", ".join([*names, *axes])

    def laid(self, batch: Any) -> Any:
        """The batch with the places of its samples, or as it is where nothing is said of them.

        Raises:
            DoesNotFit: It is not as declared; the message names tensors and sizes.
        """
        if self.split is not None:
            return self._split(batch)
        return batch if self.batch_axes is None else self._along(batch, self.batch_axes)

    def _split(self, batch: Any) -> Batch:
        assert self.split is not None
        assert self.collate is not None
        objects = Objects(self.split, self.collate, deep_mapped)
        laid = Batch(batch, Layout({}, frozenset(), objects={(): objects}))
        told = f"a batch of type {type(batch).__name__}"
        try:
            samples = self.split(batch)
            count = len(samples)
        except Exception as error:
            raise DoesNotFit(f"split= fails on {told}: {type(error).__name__}: {first_line(error)}") from error
        if count == 0:
            raise DoesNotFit(f"split= gives no samples of {told}")
        try:
            again = self.collate(laid.samples((), batch))
        except Exception as error:
            raise DoesNotFit(
                f"collate= fails on the {count} samples that split= gives of {told} (the first is "
                f"{described(samples[0])}): {type(error).__name__}: {first_line(error)}"
            ) from error
        difference = _difference(batch, again)
        if difference:
            raise DoesNotFit(
                f"collate= does not make the batch again of the {count} samples that split= gives of it: {difference}"
            )
        return laid

    def _along(self, batch: Any, given: BatchAxes) -> Batch:
        found: dict[Path, Any] = {}

        def visit(path: Path, value: Any) -> Any:
            if isinstance(value, (Tensor, np.ndarray)):
                found[path] = value
                return value
            return GO_ON

        rebuilt(batch, visit)
        wanted = {str(key): axis for key, axis in given.items()}
        named = {name_of(path): path for path in found}
        for name, axis in wanted.items():
            if name not in named:
                raise DoesNotFit(
                    f"batch_axes names {name!r}, and the batch has no such tensor; it has {_listed(found) or 'none'}"
                )
            shape = tuple(found[named[name]].shape)
            if axis is not None and axis >= len(shape):
                raise DoesNotFit(f"batch_axes[{name!r}] is {axis}, and {describe(named[name])} has the shape {shape}")
        axes = {named[name]: axis for name, axis in wanted.items() if axis is not None}
        sizes = {path: found[path].shape[axis] for path, axis in axes.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{describe(path)} has {size} on axis {axes[path]}" for path, size in sizes.items())
            raise DoesNotFit(f"the axes in batch_axes do not have the same length: {told}")
        kept = {named[name] for name, axis in wanted.items() if axis is None}
        rest = [torch.as_tensor(value) for path, value in found.items() if path not in kept and value.ndim > 0]
        if not rest:
            raise DoesNotFit(f"batch_axes keeps all tensors whole, so that no samples are left: {_listed(found)}")
        size = next(iter(sizes.values()), lengths(rest)[0])
        layout = by_length(batch, size)
        others = {path: axis for path, axis in layout.axes.items() if path not in kept}
        shared = (layout.shared | kept) - axes.keys()
        return Batch(batch, replace(layout, axes=others | axes, shared=frozenset(shared)))


def described(value: Any) -> str:
    """A sample, by the shapes of its tensors."""
    shapes = ", ".join(str(tuple(leaf.shape)) for _, leaf in _named(value)[:4])
    return f"a {type(value).__name__}" + (f" with tensors {shapes}" if shapes else "")


def _listed(found: Mapping[Path, Any]) -> str:
    return ", ".join(f"{name_of(path)!r} {tuple(value.shape)}" for path, value in found.items())


def _difference(batch: Any, again: Any) -> str:
    """What tells a batch from what its samples make; empty if nothing does."""
    if type(batch) is not type(again) and not (is_plain_list(batch) and is_plain_list(again)):
        return f"it is a {type(again).__name__}, not a {type(batch).__name__}"
    leaves, others = _named(batch), _named(again)
    if len(leaves) != len(others):
        return f"it has {len(others)} tensors, not {len(leaves)}"
    for (name, one), (_, other) in zip(leaves, others, strict=True):
        if one.shape != other.shape:
            return f"{name} has the shape {tuple(other.shape)}, not {tuple(one.shape)}"
        if not torch.equal(one, other.to(one)):
            return f"{name}, of shape {tuple(one.shape)}, has other values"
    return ""


def _named(value: Any) -> list[tuple[str, Tensor]]:
    """All tensors of a batch, those in any other objects too."""
    found: list[tuple[str, Tensor]] = []

    def visit(path: Path, part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append((describe(path), part))
        elif isinstance(part, (Mapping, list, tuple)) or is_dataclass(part):
            return GO_ON
        else:
            inside: list[Tensor] = []
            deep_mapped(part, lambda leaf: inside.append(leaf) or leaf)  # type: ignore[func-returns-value]
            found.extend((f"tensor {i} of {describe(path)}", leaf) for i, leaf in enumerate(inside))
        return part

    rebuilt(value, visit)
    return found
