"""One measurement's view of the run: a replica, its predictions, and the reference samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_info.gradients.batches import map_tensors, num_samples, take
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.replica.activations import Activation, Layer, LayerCapture
from lightning_info.replica.alone import Alone, NotItsOwn
from lightning_info.replica.batch_norm import use_statistics_of
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.workers import Workers, sendable

TARGETS = "targets"
"""Name of rows that are as long as the longest sample of their part."""
LONG = "long/"
"""First part of the names of others."""


class Unavailable(Exception):
    """A point that has no value (outputs not finite, say); reported as NaN with the message, never an error."""


T = TypeVar("T")


class ForwardStatistic(Protocol):
    """Takes from a forward pass what a measurement needs; hashable, so that equal ones read once.

    One with an attribute ``everywhere = True`` gets the activations at all positions too (:attr:`Activation.rows`).
    """

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers whose activations it needs."""

    def __call__(self, prediction: Prediction, activations: Mapping[str, Activation]) -> dict[str, Tensor]:
        """A few numbers a sample.

        Args:
            prediction: For a batch of N samples.
            activations: By the layers' labels; of layers that did not run there is none.

        Returns:
            Tensors ``(N, ...)`` without a graph, by any names.
        """


@dataclass
class Audit:
    """One reference sample goes through the replica alone as well, to see that what is read for it is its own.

    Attributes:
        spot: Which one, as a share of the pool; another one at every point.
        done: Once is enough.
        mixed: Labels of layers that gave it another sample's activations, or some that depend on the others.
    """

    spot: float = 0.0
    done: bool = False
    mixed: set[str] = field(default_factory=set)


@dataclass
class _Part:
    """What a pass over a part of the samples gives.

    Attributes:
        rows: What each statistic read, by name.
        failed: What was raised by some of them, by their place.
        looked: Whether a sample was looked at alone.
        mixed: See :class:`Audit`.
    """

    rows: list[dict[str, list[Tensor]]]
    failed: dict[int, Exception] = field(default_factory=dict)
    looked: bool = False
    mixed: set[str] = field(default_factory=set)

    def __getstate__(self) -> dict[str, Any]:
        """Return what can be sent to another process."""
        return {**vars(self), "failed": {place: sendable(error) for place, error in self.failed.items()}}


@dataclass
class ModelSnapshot:
    """What a measurement works with.

    Attributes:
        module: The replica.
        predictor: Maps the replica and a batch to its prediction.
        groups: The reference samples; batches on the CPU.
        chunk: Samples that go through the replica at once: the user's own batch size.
        at_once: The same where nothing goes backward, which may be more.
        device: The replica's device.
        batch_norms: The replica's layers that training uses with batch statistics.
        statistics: What measurements at this step will read; one pass serves all.
        whole: The snapshot of a larger pool that begins with these samples, if its pass serves this one too.
        audit: What is looked at besides.
        known: What was found before the first step, for all callbacks that measure alike; see :meth:`once`.
        workers: The processes that share the work.
    """

    module: nn.Module
    predictor: Predictor
    groups: list[Any]
    chunk: int
    device: torch.device
    batch_norms: list[_BatchNorm] = field(default_factory=list)
    statistics: list[ForwardStatistic] = field(default_factory=list)
    whole: ModelSnapshot | None = None
    audit: Audit = field(default_factory=Audit)
    at_once: int = 0
    known: dict[Hashable, Any] = field(default_factory=dict)
    workers: Workers = field(default_factory=Workers)
    _read: dict[ForwardStatistic, dict[str, Tensor] | Exception] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Of the pool."""
        return sum(map(num_samples, self.groups))

    def share(self) -> str:
        """Share the work of this point among the processes; return why it cannot be, see :meth:`~.Workers.agree`."""
        return self.workers.agree(self.module, (self.whole or self).groups)

    def on(self, groups: list[Any], audit: Audit | None = None) -> ModelSnapshot:
        """The same replica with other samples: nothing that was read before is taken for theirs.

        Args:
            groups: The samples.
            audit: What is looked at besides; None: as before.
        """
        audit = self.audit if audit is None else audit
        return replace(self, groups=groups, statistics=[], whole=None, audit=audit, _read={})

    def first(self, samples: int) -> ModelSnapshot:
        """The same replica with the first samples of the first group."""
        return self.on([take(self.groups[0], slice(0, samples))])

    def beginning(self, groups: list[Any]) -> ModelSnapshot:
        """The same replica with samples that the pool begins with; a pass over the pool serves them too."""
        return replace(self, groups=groups, whole=self)

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """What is found on these samples before the first step; found once for all callbacks that measure alike.

        Args:
            what: Which question; the answer does not depend on the replica.
            find: Gives the answer; what it raises is not kept.
        """
        if what not in self.known:
            self.known[what] = find()
        answer: T = self.known[what]
        return answer

    def read(self, reader: ForwardStatistic) -> dict[str, Tensor]:
        """What a reader takes from the reference samples, ``(P, ...)`` on the CPU in their order.

        The first call makes a forward pass over all samples, for all :attr:`statistics` at once. What one gives for
        some of the samples only (a layer that runs for some) is left out.

        Raises:
            Unavailable: There are no samples.
            Exception: Whatever this reader raised; that of another one is its own affair.
        """
        if self.whole is not None:
            return {name: rows[: self.size] for name, rows in self.whole.read(reader).items()}
        if reader not in self._read:
            self._pass([wanted for wanted in dict.fromkeys([reader, *self.statistics]) if wanted not in self._read])
        found = self._read[reader]
        if isinstance(found, Exception):
            raise found
        return found

    def _pass(self, statistics: list[ForwardStatistic]) -> None:
        """Read from a pass over all samples, of which each process makes its part."""
        what = f"a pass for {', '.join(type(reader).__name__ for reader in statistics)}"
        found = self.workers.gather(what, partial(self._pass_over_part, statistics))
        for part in found:
            self.audit.done |= part.looked
            self.audit.mixed |= part.mixed
        for place, reader in enumerate(statistics):
            fault = next((part.failed[place] for part in found if place in part.failed), None)
            self._read[reader] = self._joined([part.rows[place] for part in found]) if fault is None else fault

    def _joined(self, parts: list[dict[str, list[Tensor]]]) -> dict[str, Tensor] | Exception:
        names = dict.fromkeys(name for part in parts for name in part)
        columns = {name: [rows for part in parts for rows in part.get(name, ())] for name in names}
        try:
            whole = {
                name: torch.cat(_as_long(rows) if name.startswith((TARGETS, LONG)) else rows)
                for name, rows in columns.items()
            }
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return error
        return {name: rows for name, rows in whole.items() if len(rows) == self.size}

    def _pass_over_part(self, statistics: list[ForwardStatistic]) -> _Part:
        layers = dict.fromkeys(layer for reader in statistics for layer in reader.layers)
        everywhere = any(getattr(reader, "everywhere", False) for reader in statistics)
        part = _Part([defaultdict(list) for _ in statistics])

        def keep(place: int, prediction: Prediction, seen: LayerCapture) -> None:
            reader = statistics[place]
            if reader.layers and seen.error is not None:
                raise seen.error
            for name, values in reader(prediction, seen.activations).items():
                part.rows[place][name].append(values.cpu())

        start, groups = self.workers.part_of(self.groups)
        looked_at = -1 if self.audit.done or not layers else int(self.audit.spot * self.size) - start
        for batch in self.parts(max(self.chunk, self.at_once), groups):
            seen = LayerCapture(self.module, layers, num_samples(batch), everywhere=everywhere)
            with seen if layers else nullcontext():  # a pass without layers is left alone
                prediction = self.predictor(self.module, batch)
            seen.take_outputs(prediction)
            if 0 <= looked_at < num_samples(batch):
                self._look_alone(Alone(batch, looked_at), prediction, seen.activations, layers)
            looked_at -= num_samples(batch)
            for label in self.audit.mixed:
                seen.activations.pop(label, None)
            for place in range(len(statistics)):
                try:
                    if place not in part.failed:
                        keep(place, prediction, seen)
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    part.failed[place] = error
        part.looked, part.mixed = self.audit.done, self.audit.mixed
        return part

    def _look_alone(
        self, one: Alone, whole: Prediction, activations: Mapping[str, Activation], layers: Collection[Layer]
    ) -> None:
        if num_samples(one.batch) == 1:
            return
        self.audit.done = True
        with LayerCapture(self.module, layers, len(one.index)) as seen:
            prediction = self.predictor(self.module, one.part)
        seen.take_outputs(prediction)
        try:
            one.compare_outputs(prediction, whole)
        except NotItsOwn as error:
            raise Unavailable(str(error)) from error
        self.audit.mixed |= one.others(seen.activations, activations)

    def to_device(self, batch: Any) -> Any:
        """The batch as the replica takes it: on its device, half precision upcast as the replica's weights are."""
        return map_tensors(
            batch,
            lambda leaf: (
                leaf.to(self.device, torch.float32)
                if leaf.dtype in (torch.float16, torch.bfloat16)
                else leaf.to(self.device)
            ),
        )

    def outputs(self, module: nn.Module, batch: Any) -> Tensor:
        """The form of the predictor that the gradient engines take."""
        return self.predictor(module, batch).outputs

    def first_chunk(self) -> Any:
        """The first samples, as many as go through the replica at once, on its device."""
        return self.to_device(take(self.groups[0], slice(0, self.chunk)))

    def predict(self) -> Prediction:
        """The prediction for the first samples."""
        return self.predictor(self.module, self.first_chunk())

    def use_reference_statistics(self) -> None:
        """Give the BatchNorm layers of the replica the statistics of the reference samples."""
        use_statistics_of(self.batch_norms, lambda part: self.predictor(self.module, part), self.parts())

    def in_larger_chunks(self) -> ModelSnapshot:
        """For passes that nothing goes back from, :attr:`at_once` samples at a time; nothing is read yet."""
        return replace(self.on(self.groups), chunk=max(self.chunk, self.at_once))

    def parts(self, chunk: int | None = None, groups: list[Any] | None = None) -> Iterator[Any]:
        """All reference samples, at most a chunk at a time, on the replica's device.

        Args:
            chunk: By default :attr:`chunk`.
            groups: Some of the samples instead.

        Raises:
            Unavailable: There are none.
        """
        if not self.groups:
            raise Unavailable("no reference samples could be kept")
        for group in self.groups if groups is None else groups:
            size = num_samples(group)
            for index in torch.tensor_split(
                torch.arange(size), math.ceil(size / (chunk or self.chunk))
            ):  # equal size: none of one
                yield self.to_device(take(group, index))

    def drawn(self, numbers: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Some reference samples, at most a chunk at a time, and their places among the numbers.

        Args:
            numbers: ``(D,)``, counted through all groups; any order, any of them more than once.
        """
        offset = 0
        for group in self.groups:
            size = num_samples(group)
            places = ((numbers >= offset) & (numbers < offset + size)).nonzero().squeeze(1)
            if isinstance(group, Batch) and group.layout.ordered:
                places = places[numbers[places].argsort(stable=True)]
            chunks = torch.split(places, self.chunk)
            if isinstance(group, Batch) and group.layout.fewest > 1:  # of equal size: none of one
                chunks = torch.tensor_split(places, max(1, math.ceil(len(places) / self.chunk)))
            for some in chunks if len(places) else ():
                yield self.to_device(take(group, numbers[some] - offset)), some
            offset += size


def _as_long(parts: list[Tensor]) -> list[Tensor]:
    """With 0 behind the rows of parts that are shorter, as in the place of what a loss leaves out."""
    width = max(part.shape[1] if part.dim() == 2 else 0 for part in parts)
    return [F.pad(part, (0, width - part.shape[1])) if part.dim() == 2 else part for part in parts]
