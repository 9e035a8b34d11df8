"""Which leaves of a batch carry the sample axis: decided once, and carried along with the batch."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_info.gradients.sample_objects import Objects, objects_of

Path = tuple[Any, ...]
"""Keys, positions and (with a dot in front) field names that lead to a leaf."""

GO_ON = object()
"""What a visitor gives for a container that is no leaf."""


@dataclass(frozen=True)
class Layout:
    """Where the samples are in batches of one form.

    Leaves are tensors, arrays, and lists of one object for each sample (file names, texts of different length).

    Attributes:
        axes: The sample axis of every leaf that has one.
        shared: Tensors and arrays that belong to all samples of their batch.
        ordered: The module takes samples only in the order in which they stand in their batch.
        fewest: Samples that the module takes at least.
        objects: Parts whose samples are objects, such as a batch of graphs; nothing in them is a leaf.
        lengths: The leaf ``(N,)`` that tells how many positions each sample has; None where none does, or where nothing
            in what the module gives depends on it.
    """

    axes: Mapping[Path, int]
    shared: frozenset[Path]
    ordered: bool = False
    fewest: int = 1
    objects: Mapping[Path, Objects] = field(default_factory=dict)
    lengths: Path | None = None

    def wrap(self, batch: Any) -> Batch:
        """A batch with this layout.

        Raises:
            ValueError: The batch has other leaves, or the lengths of its sample axes do not agree.
        """
        found: dict[Path, Any] = {}
        known = {**self.axes, **self.objects}

        def visit(path: Path, value: Any) -> Any:
            if path in known or isinstance(value, (Tensor, np.ndarray)) or objects_of(value) is not None:
                found[path] = value
                return value
            return GO_ON

        rebuilt(batch, visit)
        missing = [describe(path) for path in known if path not in found]
        unknown = [describe(path) for path in found if path not in known and path not in self.shared]
        if missing or unknown:
            what = f"has no {', '.join(missing)}" if missing else f"has {', '.join(unknown)} beside what the first had"
            raise ValueError(f"it {what}")
        laid = Batch(batch, self)
        lengths = {path: _length(found[path], axis) for path, axis in self.axes.items()}
        for path in self.objects:
            try:
                lengths[path] = len(laid.samples(path, found[path]))
            except Exception as error:  # whatever splitting raises on a batch of another form
                raise ValueError(f"it cannot be split: {type(error).__name__}: {error}") from error
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{describe(path)} {length}" for path, length in lengths.items())
            raise ValueError(f"the lengths of its sample axes do not agree: {told}")
        return laid


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """A batch whose sample axes are known; what the module takes is :attr:`bare`."""

    bare: Any
    layout: Layout
    _split: dict[Path, list[Any]] = field(default_factory=dict, repr=False)

    def samples(self, path: Path, value: Any) -> list[Any]:
        """The samples of a part that holds them as objects; it is split once."""
        if path not in self._split:
            self._split[path] = list(self.layout.objects[path].split(value))
        return self._split[path]

    def laid(self, layout: Layout) -> Batch:
        """The same batch with another layout."""
        return replace(self, layout=layout)

    def __len__(self) -> int:
        """Samples; told by a tensor where there is one."""
        found: list[int] = []

        def visit(path: Path, value: Any) -> Any:
            if path in self.layout.objects:
                found.append(len(self.samples(path, value)))
                return value
            axis = self.layout.axes.get(path)
            if axis is None:
                return GO_ON
            found.insert(0 if isinstance(value, Tensor) else len(found), _length(value, axis))
            return value

        rebuilt(self.bare, visit)
        return found[0]


def bare(batch: Any) -> Any:
    """What the module takes."""
    return batch.bare if isinstance(batch, Batch) else batch


def by_length(batch: Any, size: int | None = None) -> Layout:
    """Every leaf whose axis 0 is as long as the samples are many carries them, and so do as many graphs.

    Args:
        batch: As the module takes it.
        size: N; by default the number of graphs, or the commonest length of axis 0 among the tensors, that of the
            first of them where several are as common.

    Raises:
        ValueError: No tensor with an axis in the batch, and no graphs.
    """
    size = lengths(batch)[0] if size is None else size
    axes: dict[Path, int] = {}
    shared: set[Path] = set()
    objects = objects_in(batch)

    def visit(path: Path, value: Any) -> Any:
        if path in objects:
            return value
        if isinstance(value, (Tensor, np.ndarray)):
            if value.ndim > 0 and len(value) == size:
                axes[path] = 0
            else:
                shared.add(path)
            return value
        if is_plain_list(value) and len(value) == size > 0 and not any(True for _ in _tensors(value)):
            axes[path] = 0
            return value
        return GO_ON

    rebuilt(batch, visit)
    carrying = {path: found for path, (found, count) in objects.items() if count == size}
    return Layout(axes, frozenset({*shared, *(objects.keys() - carrying.keys())}), objects=carrying)


def lengths(batch: Any) -> list[int]:
    """Numbers of graphs, then lengths of axis 0 among the tensors, the commonest first.

    Raises:
        ValueError: No tensor with an axis in the batch, and no graphs.
    """
    objects = objects_in(batch)
    leaves: list[Tensor] = []

    def visit(path: Path, value: Any) -> Any:
        if isinstance(value, Tensor):
            leaves.append(value)
        return value if path in objects else GO_ON

    rebuilt(batch, visit) if objects else leaves.extend(_tensors(batch))
    sizes = Counter(len(leaf) for leaf in leaves if leaf.dim() > 0)
    found = dict.fromkeys([*(count for _, count in objects.values()), *(size for size, _ in sizes.most_common())])
    if not found:
        raise ValueError(f"no tensor with a sample axis in a batch of type {type(batch).__name__}")
    return list(found)


def objects_in(batch: Any) -> dict[Path, tuple[Objects, int]]:
    """Parts of a batch that hold samples as objects, with their number."""
    found: dict[Path, tuple[Objects, int]] = {}

    def visit(path: Path, value: Any) -> Any:
        objects = objects_of(value)
        if objects is None:
            return GO_ON
        found[path] = objects, len(objects.split(value))
        return value

    rebuilt(batch, visit)
    return found


def rebuilt(value: Any, visit: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """A copy of a nested batch with other leaves.

    Args:
        value: The batch.
        visit: Takes the path and the value of everything in it; gives what to put there, or :data:`GO_ON`.
        path: Of the value.
    """
    found = visit(path, value)
    if found is not GO_ON:
        return found
    kind: Any = type(value)
    if isinstance(value, Mapping):
        items = {key: rebuilt(item, visit, (*path, key)) for key, item in value.items()}
        return defaultdict(value.default_factory, items) if isinstance(value, defaultdict) else kind(items)
    if isinstance(value, (list, tuple)):
        parts = [rebuilt(part, visit, (*path, i)) for i, part in enumerate(value)]
        return kind(*parts) if hasattr(value, "_fields") else kind(parts)
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in fields(value):
            part = rebuilt(getattr(value, field.name), visit, (*path, f".{field.name}"))
            object.__setattr__(copied, field.name, part)
        return copied
    return value


def is_plain_list(value: Any) -> bool:
    """It may hold one object for each sample."""
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and not isinstance(value, torch.Size)


def name_of(path: Path) -> str:
    """A leaf as users name it in ``batch_axes``: names and positions with dots between them."""
    return ".".join(str(step).removeprefix(".") for step in path)


def describe(path: Path) -> str:
    """A leaf as one would write it."""
    steps = (str(step) if isinstance(step, str) and step.startswith(".") else f"[{step!r}]" for step in path)
    return "batch" + "".join(steps)


def _length(value: Any, axis: int) -> int:
    """-1 where there is no such axis."""
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.shape[axis]) if value.ndim > axis else -1
    return len(value) if is_plain_list(value) else -1


def _tensors(value: Any) -> Iterator[Tensor]:
    leaves: list[Tensor] = []
    apply_to_collection(value, Tensor, leaves.append)
    return iter(leaves)
