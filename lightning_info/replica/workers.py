"""``Workers``: the processes of a run share the work of a measurement; each does a part of it, and all get the whole.

Every collective is one *round*, in which each process tells what it has: a result, a fault, or that it is done. All
processes see the same, so they go on in the same way: a fault in one is raised in all, and none waits for another that
has left.
"""

from __future__ import annotations

import hashlib
import io
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_info.gradients.batches import num_samples, take, tensors
from lightning_info.gradients.contract import has_large_frozen
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.real import as_real

T = TypeVar("T")
COLLECTIVES = ("c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd")
"""Namespaces of the operators by which processes communicate."""
MOST_KNOWN = 8
"""Lists of samples whose fingerprints are kept."""


class InAnotherProcess(RuntimeError):
    """A fault in another process that cannot be sent; the message has its type and text."""


class OutOfStep(RuntimeError):
    """The processes do different things, as where the module differs between them."""


class _Told(NamedTuple):
    """What a process tells in a round.

    Attributes:
        has: ``"result"``, ``"fault"``, or ``"end"`` with the fault, if any, that ends its measurement.
        what: What the round is about.
        value: The result or the fault.
    """

    has: str
    what: str
    value: Any


class Workers:
    """The processes of a run; one that is alone does all of the work.

    Args:
        processes: How many there are.

    Attributes:
        number: Of this process.
        reason: Why every process does all of the work; empty if it is shared.
    """

    def __init__(self, processes: int = 1) -> None:
        is_usable = processes > 1 and distributed.is_available() and distributed.is_initialized()
        self.processes = distributed.get_world_size() if is_usable else 1
        self.number = distributed.get_rank() if is_usable else 0
        self.reason = ""
        self._is_open = self._shares = False
        self._left: Exception | None = None  # by which the measurement under way has ended
        self._known: dict[int, tuple[Any, str]] = {}  # lists of samples, with their fingerprints

    @contextmanager
    def together(self) -> Iterator[None]:
        """Measure inside in all processes; they end together, and what is raised in one is raised in all.

        If several raise something, it is that of the first of them.
        """
        if self.processes == 1:
            yield
            return
        self._is_open, self._shares, self._left = True, False, None
        try:
            try:
                yield
            except Exception as error:
                self._end(error)
                raise
            self._end(None)
        finally:
            self._is_open = self._shares = False

    def agree(self, module: nn.Module, groups: list[Any]) -> str:
        """Share the work from here on, if all processes have the same weights and samples.

        Buffers of the replica become those of the first process, as DDP makes them before a pass.

        Args:
            module: The replica.
            groups: The reference samples.

        Returns:
            Why the work is not shared; empty if it is, and of a single process.
        """
        if not self._is_open:
            return ""
        buffers = dict(module.named_buffers())
        own = self.reason, self._samples(groups), checksums(module.parameters()), checksums(buffers.values())
        told = self._round("result", "weights and samples", own)
        reason = next((mine for mine, *_ in told if mine), "")
        if any(samples != own[1] for _, samples, *_ in told):
            reason = reason or "the processes have different reference samples"
        if any(weights != own[2] for _, _, weights, _ in told):
            reason = reason or "the processes have different weights"
        if any(len(sums) != len(buffers) for *_, sums in told):
            reason = reason or "the module has other buffers in another process"
        if reason:
            return reason
        differ = [name for name, *sums in zip(buffers, *(sums for *_, sums in told), strict=True) if len(set(sums)) > 1]
        if differ:
            mine = [buffers[name].cpu() for name in differ] if self.number == 0 else []
            first = self._round("result", "buffers", mine)[0]
            with torch.no_grad():
                for name, value in zip(differ, first, strict=True):
                    buffers[name].copy_(value)
        self._shares = True
        return ""

    def part(self, size: int) -> slice:
        """Return which of so many things this process does; parts differ by one at most."""
        if not self._shares:
            return slice(0, size)
        return slice(self.number * size // self.processes, (self.number + 1) * size // self.processes)

    def part_of(self, groups: list[Any]) -> tuple[int, list[Any]]:
        """Return the reference samples of this process, and the number of the first of them.

        Samples that must stay in the order of their batch, or beside others, do.
        """
        if not self._shares:
            return 0, groups
        share, found, begin = self.part(sum(map(num_samples, groups))), [], 0
        first = -1
        for group in groups:
            size = num_samples(group)
            low, high = (_cut(group, edge - begin) for edge in (share.start, share.stop))
            if low < high:
                first = begin + low if first < 0 else first
                found.append(group if high - low == size else take(group, slice(low, high)))
            begin += size
        return max(first, 0), found

    def gather(self, what: str, make: Callable[[], T]) -> list[T]:
        """Return what each process makes, in their order; on the CPU, or on this process's device.

        Args:
            what: What it is, in words, the same in all processes.
            make: Makes this process's part; without another gather in it.

        Raises:
            Exception: What one of them raised; the measurement may go on, in all of them.
        """
        if not self._shares:
            return [make()]
        if self._left is not None:
            raise self._left
        try:
            told = _Told("result", what, make())
        except Exception as error:
            told = _Told("fault", what, error)
        return self._round(*told)

    def _round(self, has: str, what: str, value: Any) -> list[Any]:
        own = _Told(has, what, value)
        packed: list[Any] = [None] * self.processes
        try:
            distributed.all_gather_object(packed, _packed(own))
        except Exception as error:  # of the other process, say: it has gone
            self._left = error
            raise
        told = [own if i == self.number else _unpacked(one) for i, one in enumerate(packed)]
        faults = [(i, one) for i, one in enumerate(told) if one.has != "result" and isinstance(one.value, Exception)]
        if any(one.has == "end" for one in told):
            alike = all(one.has == "end" for one in told)
            self._left = None if alike and not faults else OutOfStep("the processes measure different things")
        elif len({one.what for one in told}) > 1:
            self._left = OutOfStep(f"the processes measure different things: {', '.join(one.what for one in told)}")
        if faults:
            number, first = faults[0]
            fault: Exception = first.value
            if isinstance(value, Exception) and (type(value), str(value)) == (type(fault), str(fault)):
                number, fault = self.number, value  # the same, with its own traceback
            if any(one.has == "end" for one in told):
                self._left = fault
            if number != self.number:
                fault.__cause__ = InAnotherProcess(f"in process {number}")
            raise fault
        if self._left is not None:
            raise self._left
        return [one.value for one in told]

    def _end(self, error: Exception | None) -> None:
        if self._left is not None:
            raise self._left
        self._round("end", "", error)

    def _samples(self, groups: list[Any]) -> str:
        """Return a fingerprint of reference samples, made once for each list of them."""
        if id(groups) not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            digest = hashlib.blake2b()
            for leaf in (leaf for group in groups for leaf in tensors(group)):
                digest.update(repr((leaf.shape, leaf.dtype)).encode())
                if leaf.layout == torch.strided:
                    digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._known[id(groups)] = groups, digest.hexdigest()
        return self._known[id(groups)][1]


def communicates(run: Callable[[], object]) -> bool:
    """Tell whether processes communicate in a call, which they then must make equally often."""
    watch = _Collectives()
    with watch:
        run()
    return watch.seen


class _Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether processes communicate inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or str(func.namespace) in COLLECTIVES
        return func(*args, **(kwargs or {}))


def _cut(group: Any, edge: int) -> int:
    """Return where a group may be cut that is nearest to an edge."""
    size = num_samples(group)
    layout = group.layout if isinstance(group, Batch) else None
    edge = min(max(edge, 0), size)
    if layout is not None and layout.ordered:
        return size if 2 * edge > size else 0
    fewest = 1 if layout is None else max(1, layout.fewest)
    if edge < size:
        edge -= edge % fewest
    return edge if size - edge in (0, size) or size - edge >= fewest else edge - fewest


def untrained_sums(module: nn.Module) -> list[int]:
    """Return checksums of the weights that are not trained where they are so many that a replica shares them."""
    return checksums(p for p in module.parameters() if not p.requires_grad) if has_large_frozen(module) else []


def checksums(values: Iterable[Tensor]) -> list[int]:
    """Return a checksum of each tensor: the sum of its memory, read as integers."""
    found = []
    for value in values:
        if value.layout != torch.strided or value.numel() == 0:
            found.append(torch.zeros((), dtype=torch.int64))
            continue
        flat = as_real(value.detach()).contiguous().reshape(-1)
        flat = flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8)
        found.append(flat.sum(dtype=torch.int64))
    return torch.stack([one.cpu() for one in found]).tolist() if found else []


def _packed(told: _Told) -> bytes:
    value = told.value
    if isinstance(value, Exception):
        return _bytes(told._replace(value=sendable(value)))
    try:
        return _bytes(told)
    except Exception as error:
        return _bytes(told._replace(has="fault", value=InAnotherProcess(f"a result cannot be sent: {error}")))


def sendable(error: Exception) -> Exception:
    """Return an exception as it comes out in another process, or where it cannot be sent one with its text."""
    try:
        copied = _unpacked(_bytes(error))
        if type(copied) is type(error) and str(copied) == str(error):
            return error
    except Exception:  # of whatever its class does
        pass
    return InAnotherProcess("".join(traceback.format_exception_only(error)).strip())


def _bytes(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(value: bytes) -> Any:
    def own(storage: Any, location: str) -> Any:
        return storage.cuda() if location.startswith("cuda") else storage

    return torch.load(io.BytesIO(value), map_location=own, weights_only=False)
