"""Batches that hold the rows of all their samples in one flat tensor, beside a tensor that tells whose rows they are.

Graphs (nodes, edges and the number of each node's graph) and texts of different length (tokens and offsets) come so.
What tells may be the number of the sample of each row, where each sample begins, or how many rows each has. Integers
that point at rows (the ends of an edge, together or apart) are counted anew within each sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_info.gradients.layout import GO_ON, Layout, Path, by_length, rebuilt
from lightning_info.gradients.sample_objects import Objects, deep_mapped

Role = Literal["rows", "numbers", "begins", "bounds", "pointers", "pairs"]
"""One row for each row of the family; the number of its sample; where each sample begins, ``(N,)``, and where it ends
too, ``(N + 1,)``; numbers of rows of the family, ``(R,)``; pairs of them, ``(2, R)``."""


@dataclass(frozen=True)
class Part:
    """What a leaf is.

    Attributes:
        role: Its role.
        rows: Number of the family whose rows it has; for ``"begins"`` and ``"bounds"``, that it tells of.
        to: Number of the family that pointers and pairs point at.
    """

    role: Role
    rows: int
    to: int = 0


@dataclass(frozen=True)
class Ragged:
    """How a batch falls into samples.

    Attributes:
        axes: Leaves with the samples on axis 0.
        parts: Leaves with rows of the samples, or that tell whose they are.
        tellers: For each family what tells: the leaf, and as what; of ``"lengths"`` a leaf with an entry a sample.
    """

    axes: frozenset[Path]
    parts: Mapping[Path, Part]
    tellers: tuple[tuple[Path, str], ...]

    def split(self, batch: Any) -> list[Any]:
        """One batch for each sample.

        Raises:
            ValueError: Rows of a sample are not beside one another, or point at those of another one.
        """
        leaves = _leaves(batch)
        count = self._count(leaves)
        starts: list[list[int]] = []
        for path, told in self.tellers:
            starts.append(_starts(told, leaves[path], count, self._length(len(starts), leaves), starts))

        def sample(i: int) -> Any:
            def visit(path: Path, value: Any) -> Any:
                if path in self.axes:
                    return value[i : i + 1]
                part = self.parts.get(path)
                return GO_ON if part is None else _piece(part, value, starts, i)

            return rebuilt(batch, visit)

        return [sample(i) for i in range(count)]

    def collate(self, samples: list[Any]) -> Any:
        """One batch again."""
        leaves = [_leaves(sample) for sample in samples]
        lengths = [[self._length(family, one) for one in leaves] for family in range(len(self.tellers))]
        starts = [[0, *itertools.accumulate(family)] for family in lengths]
        columns: dict[Path, list[Any]] = {path: [] for path in (*self.axes, *self.parts)}

        def collect(path: Path, value: Any) -> Any:
            if path not in columns:
                return GO_ON
            columns[path].append(value)
            return value

        for sample in samples:
            rebuilt(sample, collect)

        def put(path: Path, value: Any) -> Any:
            if path in self.parts:
                return _joined(self.parts[path], columns[path], starts)
            if path not in self.axes:
                return GO_ON
            if isinstance(value, Tensor):
                return torch.cat(columns[path])
            if isinstance(value, np.ndarray):
                return np.concatenate(columns[path])
            return type(value)(item for part in columns[path] for item in part)

        return rebuilt(samples[0], put)

    def _count(self, leaves: Mapping[Path, Tensor]) -> int:
        for path in self.axes:
            if path in leaves:
                return len(leaves[path])
        path, told = self.tellers[0]
        if told == "numbers":
            return int(leaves[path].max()) + 1
        return len(leaves[path]) - (told == "bounds")

    def _length(self, family: int, leaves: Mapping[Path, Tensor]) -> int:
        for path, part in self.parts.items():
            if part.rows == family and part.role not in ("begins", "bounds"):
                return leaves[path].shape[1 if part.role == "pairs" else 0]
        return 0


def ragged_layouts(batch: Any, size: int) -> Iterator[Layout]:
    """Ways in which a batch may hold so many samples with rows in flat tensors; one for each leaf that may tell."""
    leaves = _leaves(batch)
    base = by_length(batch, size)
    if base.objects or size < 1:
        return
    rows = [path for path in leaves if path not in base.axes and leaves[path].dim() > 0]
    lengths = list(dict.fromkeys(len(leaves[path]) for path in rows))
    telling = {length: list(_tellers(leaves, rows, size, length)) for length in lengths}
    found = [[(length, *one) for one in ones] for length, ones in telling.items() if ones]
    for chosen in itertools.product(*found) if found else ():
        ragged = _with_parts(leaves, base, size, chosen)
        if ragged is not None:
            objects = {(): Objects(ragged.split, ragged.collate, deep_mapped)}
            yield replace(base, axes={}, shared=frozenset(), objects=objects)


def _leaves(batch: Any) -> dict[Path, Tensor]:
    found: dict[Path, Tensor] = {}

    def visit(path: Path, value: Any) -> Any:
        if isinstance(value, Tensor):
            found[path] = value
        return GO_ON

    rebuilt(batch, visit)
    return found


def _tellers(leaves: Mapping[Path, Tensor], rows: list[Path], size: int, length: int) -> Iterator[tuple[Path, str]]:
    """Leaves that may tell whose rows those of the flat tensors with this length are."""
    flat = [path for path in rows if len(leaves[path]) == length]
    vectors = {path: leaf for path, leaf in leaves.items() if leaf.dim() == 1 and len(leaf) and _is_integer(leaf)}
    for path, leaf in vectors.items():
        if path in flat and len(flat) > 1 and _is_sorted(leaf) and int(leaf[0]) >= 0 and int(leaf[-1]) == size - 1:
            yield path, "numbers"
    for path, leaf in vectors.items():
        if len(leaf) == size + 1 != length and int(leaf[0]) == 0 and int(leaf[-1]) == length and _is_sorted(leaf):
            yield path, "bounds"
    for path, leaf in vectors.items():
        if len(leaf) == size != length and int(leaf.min()) >= 0 and int(leaf.sum()) == length:
            yield path, "lengths"
    for path, leaf in vectors.items():
        is_begin = len(leaf) == size != length and int(leaf[0]) == 0 and size <= int(leaf[-1]) <= length
        if is_begin and _is_sorted(leaf):  # below its size it may be the number of each sample
            yield path, "begins"


def _with_parts(
    leaves: Mapping[Path, Tensor], base: Layout, size: int, chosen: tuple[tuple[int, Path, str], ...]
) -> Ragged | None:
    """All that follows from what tells; None if there are no rows."""
    tellers = [(path, told) for _, path, told in chosen]
    starts: list[list[int]] = []
    for length, path, told in chosen:
        starts.append(_starts(told, leaves[path], size, length, starts))
    parts: dict[Path, Part] = {}
    for family, begins in enumerate(starts):
        counts = {chosen[family][1]} if chosen[family][2] == "lengths" else set()
        parts |= {path: Part(role, family) for path, role in _telling(leaves, begins).items() if path not in counts}
    rest = {path: leaf for path, leaf in leaves.items() if path not in parts and path not in base.axes and leaf.dim()}
    families = [_numbers(begins) for begins in starts]
    for family, numbers in enumerate(families):
        parts |= _rows(rest, numbers, family)
    for path, leaf in rest.items():
        for family, numbers in enumerate(families):
            owners = _owners(leaf, numbers) if path not in parts else None
            if owners is not None:
                parts[path] = Part("pairs" if leaf.dim() == 2 else "pointers", len(tellers), family)
                alike = {other: values for other, values in rest.items() if other not in parts}
                parts |= _rows(alike, owners, len(tellers)) | _pointers(alike, owners, numbers, len(tellers), family)
                tellers.append((path, f"points {family}"))
    if not any(part.role in ("rows", "pointers") for part in parts.values()):
        return None
    return Ragged(frozenset(path for path in base.axes if path not in parts), parts, tuple(tellers))


def _telling(leaves: Mapping[Path, Tensor], starts: list[int]) -> dict[Path, Role]:
    """Leaves that tell what is known already."""
    bounds = torch.tensor(starts)
    told: list[tuple[Role, Tensor]] = [("numbers", _numbers(starts)), ("bounds", bounds), ("begins", bounds[:-1])]
    return {
        path: role
        for path, leaf in leaves.items()
        for role, values in told
        if leaf.dim() == 1 and _is_integer(leaf) and torch.equal(values, leaf.cpu().long())
    }


def _rows(leaves: Mapping[Path, Tensor], numbers: Tensor, family: int) -> dict[Path, Part]:
    """Leaves with as many rows as a family."""
    found = {}
    for path, leaf in leaves.items():
        if len(leaf) == len(numbers):
            points = leaf.dim() == 1 and _is_within(leaf, numbers) and torch.equal(numbers[leaf.cpu().long()], numbers)
            found[path] = Part("pointers" if points else "rows", family, family)
    return found


def _pointers(leaves: Mapping[Path, Tensor], owners: Tensor, numbers: Tensor, family: int, to: int) -> dict[Path, Part]:
    """Leaves with as many numbers of rows of another family, each of the same sample."""
    return {
        path: Part("pointers", family, to)
        for path, leaf in leaves.items()
        if leaf.shape == owners.shape and _is_within(leaf, numbers) and torch.equal(numbers[leaf.cpu().long()], owners)
    }


def _owners(leaf: Tensor, numbers: Tensor) -> Tensor | None:
    """The sample of each row, or pair of rows, of a family; None if a leaf does not point at such."""
    if leaf.dim() > 2 or (leaf.dim() == 2 and len(leaf) != 2) or not _is_within(leaf, numbers):
        return None
    first, second = numbers[leaf.cpu().long().expand(2, -1)]
    return first if torch.equal(first, second) and _is_sorted(first) else None


def _starts(told: str, teller: Tensor, count: int, length: int, known: list[list[int]]) -> list[int]:
    """Where the rows of each sample begin, and where those of the last end."""
    values = teller.cpu().long()
    if told.startswith("points"):
        values = _numbers(known[int(told.removeprefix("points "))])[values.reshape(-1, values.shape[-1])[0]]
        told = "numbers"
    if told != "lengths" and not _is_sorted(values):
        raise ValueError("the rows of its samples do not follow one another")
    if told == "numbers":
        return torch.searchsorted(values.contiguous(), torch.arange(count + 1)).tolist()
    if told == "bounds":
        return list(values.tolist())
    return [0, *values.cumsum(0).tolist()] if told == "lengths" else [*values.tolist(), length]


def _numbers(starts: list[int]) -> Tensor:
    """The number of the sample of each row."""
    bounds = torch.tensor(starts)
    return torch.repeat_interleave(torch.arange(len(starts) - 1), bounds.diff())


def _piece(part: Part, value: Tensor, starts: list[list[int]], i: int) -> Tensor:
    first, last = starts[part.rows][i], starts[part.rows][i + 1]
    if part.role == "begins":
        return torch.zeros_like(value[:1])
    if part.role == "bounds":
        return torch.tensor([0, last - first]).to(value)
    if part.role == "numbers":
        return torch.zeros_like(value[first:last])
    if part.role == "rows":
        return value[first:last]
    begin, end = starts[part.to][i], starts[part.to][i + 1]
    inside = (value[:, first:last] if part.role == "pairs" else value[first:last]) - begin
    if inside.numel() and not 0 <= int(inside.min()) <= int(inside.max()) < end - begin:
        raise ValueError(f"rows of sample {i} point at those of another sample")
    return inside


def _joined(part: Part, pieces: list[Tensor], starts: list[list[int]]) -> Tensor:
    if part.role in ("begins", "bounds"):
        bounds = starts[part.rows]
        return torch.tensor(bounds if part.role == "bounds" else bounds[:-1]).to(pieces[0])
    if part.role == "numbers":
        pieces = [piece + i for i, piece in enumerate(pieces)]
    elif part.role in ("pointers", "pairs"):
        pieces = [piece + start for piece, start in zip(pieces, starts[part.to], strict=False)]
    return torch.cat(pieces, 1 if part.role == "pairs" else 0)


def _is_within(values: Tensor, numbers: Tensor) -> bool:
    """Whether integers may be numbers of rows."""
    return _is_integer(values) and values.numel() > 0 and int(values.min()) >= 0 and int(values.max()) < len(numbers)


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def _is_sorted(tensor: Tensor) -> bool:
    return bool((tensor.diff() >= 0).all())
