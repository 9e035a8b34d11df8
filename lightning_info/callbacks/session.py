"""What the callbacks of one Trainer share: the schedule, replicas and their pass, the chart layout, the table."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch

from lightning_info.callbacks.budget import Budget
from lightning_info.callbacks.member import Member
from lightning_info.gradients.batches import num_samples, take, tensors, without_samples
from lightning_info.gradients.contract import has_large_frozen
from lightning_info.replica.batch_norm import on_batch_statistics
from lightning_info.replica.kept_state import KeptState
from lightning_info.replica.noise import Noise
from lightning_info.replica.outputs_only import OutputsOnly
from lightning_info.replica.prediction import Adapter, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.sample_axis import Layouts
from lightning_info.replica.sample_store import LARGEST_STORE, SampleStore
from lightning_info.replica.sharded import WholeParameters
from lightning_info.replica.snapshot import Audit, ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer
from lightning_info.replica.workers import Workers
from lightning_info.reporting.closing_table import WIDTH, closing_table, within_width
from lightning_info.reporting.explanations import Plugin, reading_guide, report_explanations, report_text
from lightning_info.reporting.layout import Chart, write_layout

GUIDE, RESULT = "lightning_info/how_to_read", "lightning_info/result"
"""Tags of the texts that TensorBoard shows."""
GOLDEN = (5**0.5 - 1) / 2
"""Golden ratio; its multiples spread evenly, so other samples are checked from point to point."""


def new_snapshot(
    trainer: Any,
    pl_module: Any,
    groups: list[Any],
    *,
    adapter: Adapter | None,
    chunk: int,
    private: bool,
    frozen_too: bool = True,
    at_once: int = 0,
    needs_likelihood: bool = True,
    noise: Noise | None = None,
    start: dict[str, Any] | None = None,
    known: dict[Hashable, Any] | None = None,
    workers: Workers | None = None,
    whole: WholeParameters | None = None,
) -> ModelSnapshot:
    """Build a snapshot with its own replica.

    Args:
        trainer: The trainer.
        pl_module: The user's module.
        groups: The samples.
        adapter: See :class:`~.Predictor`.
        chunk: See :class:`~.ModelSnapshot`.
        private: See :func:`~.replicate`.
        frozen_too: See :func:`~.replicate`.
        at_once: See :class:`~.ModelSnapshot`.
        needs_likelihood: If False, a module whose loss is not known gives outputs only, unless there is an adapter.
        noise: Noise that passes over the replica draw.
        start: See :class:`~.KeptState`.
        known: See :class:`~.ModelSnapshot`.
        workers: See :class:`~.ModelSnapshot`.
        whole: See :func:`~.replicate`.
    """
    stand_in, shares_frozen = StandInTrainer(trainer), not frozen_too and has_large_frozen(pl_module)
    replica = replicate(
        pl_module, private=private, frozen_too=frozen_too, trainer=trainer, stand_in=stand_in, whole=whole
    )
    device = pl_module.device
    if device.type == "mps":  # has no float64
        device = torch.device("cpu")
        replica = replica.to(device)
    batch_norms: list[Any] = [replica.get_submodule(name) for name in on_batch_statistics(pl_module)]
    kind = Predictor if needs_likelihood or adapter is not None else OutputsOnly
    predictor = kind(stand_in, adapter, not private, noise or Noise(), KeptState(start), shares_frozen)
    audit = Audit((trainer.global_step + 1) * GOLDEN % 1)
    found = {} if known is None else known
    return ModelSnapshot(
        replica,
        predictor,
        groups,
        chunk,
        device,
        batch_norms,
        audit=audit,
        at_once=at_once,
        known=found,
        workers=workers or Workers(),
    )


class Session:
    """One run of one Trainer: the snapshots of the current step, and what is reported once for all callbacks.

    Attributes:
        members: The callbacks, in the order of the Trainer.
        budget: The part of the run's time that those without an interval may take.
        layouts: Where the samples of a batch are, by a key that agrees if two callbacks find the same.
        known: What else was found before the first step, by the same key; see :meth:`~.ModelSnapshot.once`.
        store: The reference samples of all callbacks.
        workers: The processes of the run, which share the work of a point.
        whole: Sharded parameters, gathered for the batch under way.
    """

    _of_trainers: ClassVar[WeakKeyDictionary[Any, Session]] = WeakKeyDictionary()

    def __init__(self, members: Sequence[Member], processes: int = 1) -> None:
        self.members = members
        self.layouts: Layouts = {}
        self.known: defaultdict[Hashable, dict[Hashable, Any]] = defaultdict(dict)
        self.budget = Budget()
        self.workers = Workers(processes)
        self.whole: WholeParameters = {}
        # every process gets the samples of all, and then none of them are shared
        readers = 1 if processes == 1 else processes * len(members)
        self.store = SampleStore(LARGEST_STORE // readers, max((c.num_samples for c in members), default=0))
        self._charts: dict[str, Chart] = {}  # as written
        self._guide = ""  # as written
        self._explained: set[tuple[Plugin, str]] = set()
        self._told: dict[str, str] = {}  # text -> the callback that printed it first
        self._joined: list[Member] = []
        self._through: list[Member] = []  # callbacks that are done with the current batch
        self._ended: list[Member] = []
        self._snapshots: list[tuple[Hashable, ModelSnapshot]] = []
        self._initial: dict[Hashable, ModelSnapshot] = {}
        self._begins: dict[tuple[int, int], bool] = {}

    @classmethod
    def join(cls, trainer: Any, member: Member) -> Session:
        """Return the session of the run that starts; the first callback that joins opens it."""
        session = cls._of_trainers.get(trainer)
        if session is None or member in session._joined:
            session = cls([c for c in trainer.callbacks if isinstance(c, Member)], trainer.world_size)
            cls._of_trainers[trainer] = session
        session._joined.append(member)
        session.budget.open(member.account)
        return session

    @property
    def is_new(self) -> bool:
        """Whether only one callback has joined, which then says what is said once for all."""
        return len(self._joined) == 1

    def drop(self, member: Member) -> None:
        """Remove a callback that no longer takes part."""
        self.members = [c for c in self.members if c is not member]
        member.account.is_open = False
        if len(self._through) >= len(self.members):
            self.clear()

    def due(self, trainer: Any, batch_idx: int) -> list[Member]:
        """Return the callbacks that measure at this batch."""
        return [c for c in self.members if c.is_ready and c.is_due(trainer, batch_idx)]

    def leave_batch(self, member: Member) -> None:
        """Note that a callback is done with the batch; once all are, nothing is kept and training goes on."""
        self._through.append(member)
        if len(self._through) >= len(self.members):
            self._through.clear()
            if self._snapshots or self._initial or self.whole:
                self.clear()

    def ends(self, member: Member) -> bool:
        """Note that a callback has ended; True for the last one."""
        self._ended.append(member)
        return len(self._ended) == len(self.members)

    def beside(self, member: Member, step: int) -> dict[str, float]:
        """Return what the callbacks before one measured at a step, by tag without prefix; NaN if they did not.

        Args:
            member: The callback; only those with the same prefix count.
            step: Step of its point.
        """
        before = self.members[: self.members.index(member)] if member in self.members else ()
        found: dict[str, float] = {}
        for other in before:
            if other.is_prepared and other.prefix == member.prefix:
                last = {tag.removeprefix(other.tagged("")): curve[-1] for tag, curve in other.last_curves().items()}
                found |= dict.fromkeys(other.quantity.tags, math.nan)
                found |= {tag: value for tag, (at, value) in last.items() if at == step}
        return found

    # ---- what is reported once for all

    def first_to_say(self, owner: str, text: str) -> str:
        """Return the class that said this first: the owner, unless another did before."""
        return self._told.setdefault(text.replace(owner, ""), owner)

    def explain(self, trainer: Any, member: Member, tags: Iterable[str], plugin: Plugin, step: int) -> list[Exception]:
        """Tell the loggers what tags mean, before the first value of each.

        Args:
            trainer: The trainer.
            member: The callback that the tags belong to.
            tags: The tags, without prefix.
            plugin: Where they are shown.
            step: Step of the first value.

        Returns:
            Exceptions raised by loggers.
        """
        new = [tag for tag in tags if (plugin, member.tagged(tag)) not in self._explained]
        self._explained.update((plugin, member.tagged(tag)) for tag in new)
        found = {member.tagged(tag): member.describe(tag) for tag in new}
        texts = {tag: known.text for tag, known in found.items() if known}
        return report_explanations(trainer, texts, plugin, step)

    def write_layout(self, trainer: Any) -> list[Exception]:
        """Write the chart layout once every callback knows its own charts.

        Returns:
            Exceptions raised by loggers.
        """
        if len(self._joined) < len(self.members) or not all(c.is_prepared for c in self.members):
            return []
        refusals = self._write_charts(trainer)
        before, self._guide = self._guide, reading_guide([(c.report(), c.guide()) for c in self.members])
        return refusals if self._guide == before else refusals + report_text(trainer, GUIDE, self._guide, 0)

    def _write_charts(self, trainer: Any) -> list[Exception]:
        charts = {title: chart for c in self.members for title, chart in c.charts().items()}
        if charts == self._charts:
            return []
        gone, self._charts = self._charts.keys() - charts.keys(), charts
        return write_layout(trainer, charts, gone)

    def closing_lines(self, told: Sequence[Member]) -> list[str]:
        """Return one table for all, and what each callback says below it."""
        curves = {tag: curve for c in told for tag, curve in c.last_curves().items()}
        rows = [row for c in told for row in c.rows(curves)]
        taken = ", ".join(f"{what} {share:.1%}" for what, share in (c.time_taken() for c in told))
        time = textwrap.wrap(f"Share of the run's time (points): {taken}", WIDTH)
        said = "\n".join(line for c in told for line in c.closing_lines()).splitlines()
        return [*closing_table(rows).splitlines(), *time, *(part for line in said for part in within_width(line))]

    def close(self, trainer: Any) -> list[Exception]:
        """Print the table for those that want it, and pass it to the loggers that accept texts.

        Returns:
            Exceptions raised by loggers.
        """
        prepared = [c for c in self.members if c.is_prepared]
        if any(c.summary for c in prepared):
            for line in ["", *self.closing_lines([c for c in prepared if c.summary])]:
                print(line)  # line by line: rich in Jupyter fails on a text of several lines
        if not prepared:
            return []
        step = max((c.last_step or 0 for c in prepared), default=0)
        refusals = self._write_charts(trainer)  # some charts are of curves that are known only now
        return refusals + report_text(trainer, RESULT, "\n".join(["```", *self.closing_lines(prepared), "```"]), step)

    # ---- snapshots of the present step

    def initial(self, key: Hashable, make: Callable[[], ModelSnapshot]) -> ModelSnapshot:
        """Return a snapshot without samples that keeps the weights of this step, shared by all with this key."""
        if key not in self._initial:
            self._initial[key] = make()
        return self._initial[key].on([])

    def snapshot(
        self, member: Member, due: Sequence[Member], make: Callable[[list[Any]], ModelSnapshot]
    ) -> ModelSnapshot:
        """Return a snapshot for a callback; the first of those that can share one makes it, for all that are due.

        Args:
            member: The callback.
            due: All callbacks that measure at this step.
            make: Makes a snapshot with the given samples.
        """
        key, own = member.sharing_key, member.groups
        found = self._find(key, own, member.chunk)
        if found is not None:
            return found
        alike = [c for c in due if c.sharing_key == key and self._begins_with(c.groups, own)]
        pool = max((c.groups for c in alike), key=lambda groups: sum(map(num_samples, groups)), default=own)
        snapshot = make(pool)
        for c in due:
            if c.sharing_key == key and self._begins_with(pool, c.groups):
                snapshot.statistics += c.statistics()
        self._snapshots.append((key, snapshot))
        return self._find(key, own, member.chunk) or snapshot

    def _find(self, key: Hashable, groups: list[Any], chunk: int) -> ModelSnapshot | None:
        """Return a kept snapshot whose samples begin with these; this one then reads from its pass."""
        for other, snapshot in self._snapshots:
            if other == key and snapshot.chunk <= chunk and self._begins_with(snapshot.groups, groups):
                return snapshot.beginning(groups)
        return None

    def _begins_with(self, pool: list[Any], groups: list[Any]) -> bool:
        """Tell whether a pool begins with these samples, by their content, which is compared once."""
        if pool is groups:
            return True
        known = (id(pool), id(groups))
        if known not in self._begins:
            self._begins[known] = _begins(pool, groups)
        return self._begins[known]

    def discard(self, snapshot: ModelSnapshot) -> None:
        """Stop offering a snapshot, and the one it reads from, as something failed in it, perhaps in its samples."""
        self._begins.clear()
        self._snapshots = [kept for kept in self._snapshots if kept[1].module is not snapshot.module]

    def clear(self) -> None:
        """Release everything that belongs to the current batch."""
        self._through.clear()
        self._snapshots.clear()
        self._initial.clear()
        self.whole = {}


def _begins(pool: list[Any], groups: list[Any]) -> bool:
    if len(groups) > len(pool):
        return False
    for i, (larger, smaller) in enumerate(zip(pool, groups, strict=False)):
        size, whole = num_samples(smaller), i < len(groups) - 1
        if size > num_samples(larger) or (whole and size != num_samples(larger)):
            return False
        first = take(larger, slice(0, size))
        rest = without_samples(smaller)
        if rest is None or rest != without_samples(first):
            return False
        if not all(map(torch.equal, tensors(first), tensors(smaller))):
            return False
    return True
