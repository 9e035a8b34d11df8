"""The first batch and the reference samples: the checks before a callback measures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info.callbacks import messages
from lightning_info.callbacks.budget import FLOOR
from lightning_info.callbacks.error_policy import NoRoom, Refused, WrongArgument
from lightning_info.callbacks.evaluating import Evaluating
from lightning_info.callbacks.first_batch import findings
from lightning_info.callbacks.forecast import Forecast, forecast
from lightning_info.callbacks.monitors import monitors
from lightning_info.callbacks.preflight import STATISTICS, gather_weights, summary_text
from lightning_info.callbacks.processes import in_all_processes, in_any_process, of_rank_zero
from lightning_info.callbacks.resuming import steps_taken
from lightning_info.callbacks.schedule import Schedule
from lightning_info.gradients.batches import num_samples, take
from lightning_info.quantities.checks import prepared
from lightning_info.replica.batch_norm import on_batch_statistics
from lightning_info.replica.declared_samples import DoesNotFit
from lightning_info.replica.predicted import WritesParameters
from lightning_info.replica.reference_samples import LARGEST_STATE
from lightning_info.replica.sample_pool import bytes_of
from lightning_info.replica.samples_at_once import samples_at_once
from lightning_info.replica.sharded import bytes_of_whole
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.workers import communicates, untrained_sums

SAID = ("unmeasured", "not", "mask", "weights", "padding", "left out", "targets", "parameters")
"""Rows of the summary that are always printed before the first step: what is not measured, or approximated."""
MOST_HALVINGS = 20
LEAST_SAMPLES = 64
"""Smallest number of reference samples to which the run's budget may reduce them."""
MOST_SKIPPED = 10
"""Largest number of batches for which ``training_step`` returns None that are skipped before one can be checked."""


class Preparing(Evaluating):
    """Checks the module at the first batch, and collects the reference samples."""

    reference: Dataset[Any] | Sequence[Tensor] | None
    on_error: Literal["warn", "raise"]
    verbose: bool

    _schedule: Schedule
    _offline: bool  # measured without a Trainer
    _summary: str
    _prepared: bool  # the check before the first step is done
    _skipped: int  # batches before it for which training_step returned None
    _rows: dict[str, str]  # rows of the summary
    _forecast: Forecast  # of a point
    _cheapened: int  # how often the quantity was asked to measure less
    _initial: ModelSnapshot | None  # the module at s = 0, until the reference samples are complete
    _frozen: list[int]  # checksums of its untrained weights, which it may share
    _left_out: list[int]  # steps that were due before they were

    def _collect(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._prepared:
            if self._skipped >= MOST_SKIPPED:
                return
            self._prepared = self._begin(trainer, pl_module, batch)
            if not self._prepared:
                return
            self._write_layout(trainer)
        if not self._samples.complete and self._collector.add(trainer, batch, batch_idx):
            self._close_samples(trainer, pl_module)

    def _begin(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        """See in the first batch what there is to measure, and refuse what cannot be measured.

        Returns:
            False if ``training_step`` returns None for it in some process; the next batch is then checked.
        """
        refusal, seen = None, True
        if self.account.limit is not None and not self._offline and not trainer.fast_dev_run:
            samples = 2 * self.quantity.least_passes * min(LEAST_SAMPLES, self.num_samples)  # first and last point
            if of_rank_zero(trainer, self._session.budget.never_affords(samples)):
                raise NoRoom(messages.never_fits(samples / 2 * self._session.budget.sample_pass))
        try:
            with self._error_policy.guard("looking at the first batch"):
                if self.reference is None:
                    batch = self._laid(batch)
                if self._skipped == 0:
                    self._collector.start(trainer, batch, self._saved, self._session.store)
                    self._restore_sets(batch)
                self._chunk = self._collector.chunk
                seen = self._look(trainer, pl_module, batch)
        except Refused as error:
            refusal = error
        if in_any_process(trainer, refusal is not None):  # all processes end, or none
            raise refusal or Refused(f"{type(self).__name__}: refused by another process")
        if in_any_process(trainer, not seen):
            self._skipped += 1
            if self._skipped == MOST_SKIPPED:  # steps may have been taken, so the run is not ended
                self._initial, reason = None, messages.skipped(self._skipped)
                if self.on_error == "raise":
                    raise Refused(f"{type(self).__name__}: {reason}")
                self._error_policy.warn_once(reason, "skipped")
            return False
        self._collector.agree(trainer)
        if in_all_processes(trainer, bool(self._rows)):  # the check did not fail
            self._fit_to_budget(trainer)
            self._summary = summary_text(
                f"{type(self).__name__}{f'(prefix={self.prefix!r})' if self.prefix else ''}", self._rows
            )
            if not self._offline:
                rank_zero_info(self._brief(self._rows))
        if self._changes:
            self._end_curves(trainer)
        elif self._resumed:
            if not self.history:
                self._left_out.append(0)
            elif not self._collector.same and (self.reference is None or self._saved is not None):
                self._error_policy.warn_once(messages.other_samples(self.save_samples), "samples")
        self._resumed, self._saved, self._changes = False, None, {}
        if self._schedule.budget is not None:
            warning = messages.monitored(monitors(trainer), map(self.tagged, self.quantity.tags), self._schedule.budget)
            if warning:
                self._error_policy.warn_once(warning, "monitor")
        return True

    def _gather_weights(self, pl_module: Any) -> None:
        if not self._session.whole:  # once for the batch
            self._session.whole = gather_weights(type(self).__name__, pl_module)

    def _laid(self, batch: Any) -> Any:
        """Return a batch with what the user says about its samples."""
        try:
            return self._declared.laid(batch)
        except DoesNotFit as error:
            raise WrongArgument(f"{type(self).__name__}: {error}") from error

    def _look(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        """Check a batch; False if ``training_step`` returns None for the samples."""
        if self._samples.complete:
            try:
                if self._preflight(trainer, pl_module, take(self._samples.groups[0], slice(0, self._chunk))):
                    return True
                raise Refused(f"{type(self).__name__}: training_step returned None for the reference samples")
            except Refused:
                if not self._collector.same or self.reference is not None:
                    raise
                self._collector.start_anew()
        return self._preflight(trainer, pl_module, batch)

    def _close_samples(self, trainer: Any, pl_module: Any) -> None:
        if not self._samples.close(trainer.world_size):
            self._error_policy.warn_once(
                "batches cannot be sent; the samples are those of the first process only", "sending"
            )
        self._chunk = self._collector.chunk
        if self._initial is not None and untrained_sums(self._initial.module) != self._frozen:
            self._error_policy.warn_once(messages.FROZEN_CHANGED, "frozen")
            self._initial = None
        if self._initial is not None:
            self._initial.groups = self._samples.groups
            self._measure_and_log(trainer, pl_module, 0, initial=self._initial)
            self._initial = None
        if self._left_out:
            told = messages.left_out(self._left_out, len(self._samples))
            self._error_policy.told.append(told)
            if self._schedule.budget is None:  # an interval was given
                rank_zero_info(f"{type(self).__name__}: {told}")

    def _preflight(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        """Refuse a module that cannot be measured, before the first step; otherwise say how it will be measured.

        Returns:
            False if ``training_step`` returns None for all of the samples.
        """
        owner = type(self).__name__
        with self._error_policy.guard("the check before the first step"):
            key = id(self.adapter), id(self.reference), self._samples.complete, self._declared.key
            make = partial(self._new_snapshot, trainer, pl_module, private=True)
            prepare = partial(prepared, self.quantity, point=self._point_at(trainer, steps_taken(trainer)))
            make = partial(make, known=self._session.known[(key, self.quantity.needs_likelihood)])
            look = partial(findings, owner, pl_module, make, prepare, batch, self._session.layouts, key)
            try:
                found = look()
            except WritesParameters:  # to those that are not trained
                self._writes = True
                found = look()
            if found is None:
                return False
            self._collector.lay(found.whole.layout)
            if not self._samples.complete:
                self._chunk = self._collector.chunk = len(found.whole)
            self._private, self._writes = self.quantity.moves_weights or found.writes, found.writes
            if trainer.world_size > 1 and communicates(found.snapshot.predict):
                self._session.workers.reason = "the module's own code has the processes communicate"
            size = self._expect(trainer, found.whole)
            at_once = partial(samples_at_once, found.snapshot, size)
            self._at_once = found.snapshot.at_once = found.snapshot.once(("at once", size), at_once)
            rows = {
                "measures": found.rows.pop("measures"),
                "samples": f"{self._samples_row(size, found.whole)}: {self._collector.origin}; eval mode",
                "steps": str(self._schedule),
                **found.rows,
            }
            if self._session.whole:
                rows["parameters"] = messages.gathered(bytes_of_whole(pl_module))
            self._normalises = bool(on_batch_statistics(pl_module))
            if self._normalises:
                rows["BatchNorm"] = STATISTICS[self.batch_norm]
            copying = partial(self._new_snapshot, trainer, pl_module, [])
            normalised = size if self._normalises and self.batch_norm == "reference" else 0
            cost = partial(self.quantity.cost, samples=size)
            self._forecast = forecast(found.snapshot, copying, cost, normalised)
            rows["cost"] = self._forecast.text
            if self._offline:
                del rows["steps"]
                if self.reference is None:
                    rows["samples"] = f"the first {size} samples of the data, or all where it holds fewer; eval mode"
            self._rows = rows
        return True

    def _brief(self, rows: Mapping[str, str]) -> str:
        """Return the printed part of the summary; in its verbose form, what differs from other callbacks' summaries."""
        owner, parts = self.tagged(type(self).__name__), []
        if not self.verbose:
            said = [f"{title} {rows[title]}" for title in SAID if title in rows]
            if self._normalises and self.batch_norm == "running":
                said.append(f"BatchNorm {rows['BatchNorm']}")
            measured, samples = rows["measures"].partition("; ")[0], rows["samples"].partition(": ")[0]
            few = samples if " of " in samples else samples.partition(" (")[0]  # fewer than asked for, and why
            few = few.replace("reference samples", "samples")
            cost = f"in the time budget {rows['less']}" if "less" in rows else rows["cost"].partition(",")[0]
            late = rows["cost"].partition("; ")[2]
            return "; ".join(filter(None, [f"{owner}: {measured}, {few}", *said, cost, late]))
        for title in ("samples", "steps", *SAID, "less", "BatchNorm", "cost"):
            text = rows.get(title, "")
            if text and self._session.first_to_say(owner, f"{title} {text}") == owner:
                parts.append(text if title == "samples" or text.startswith("about") else f"{title} {text}")
        text = f"{owner}: {rows['measures']}; {'; '.join(parts)}. More in report()"
        return textwrap.fill(text, 116, subsequent_indent="  ")

    def _expect(self, trainer: Any, batch: Any) -> int:
        """Return the number of reference samples, expected if not complete: all like a batch's, from enough data."""
        if self._samples.complete:
            return len(self._samples)
        each = bytes_of(batch) // max(1, num_samples(batch))
        self._collector.expected = max(1, self._session.store.limit // max(1, each))
        return min(self.num_samples, self._collector.expected * int(trainer.world_size))

    def _samples_row(self, size: int, batch: Any) -> str:
        """Say how many reference samples like those of a batch there are, and the memory that they take."""
        memory = bytes_of(batch) * size // max(1, num_samples(batch))
        saved = self.save_samples and memory <= LARGEST_STATE
        told = ("" if saved else ", not in checkpoints") if memory >= 1 << 20 else None
        took = "" if told is None else f" ({memory / 2**20:.3g} MiB of host memory{told})"
        if self._samples.complete or size >= self.num_samples:
            return f"{size} reference samples{took}"
        limit = self._session.store.limit >> 20
        return f"{size} of {self.num_samples} reference samples{took}, as those of all callbacks may take {limit} MiB"

    def _fit_to_budget(self, trainer: Any) -> None:
        """Measure with fewer draws and samples if the first and the last point would not fit, and say so."""
        account, budget, step = self.account, self._session.budget, steps_taken(trainer)
        account.point, account.checked = self._forecast.seconds, account.clock.spent - account.before
        if account.limit is None or self._offline:
            return
        if math.isfinite(self._forecast.plain) and math.isnan(budget.sample_pass):
            budget.expect(trainer, account, step, self._forecast.plain * trainer.accumulate_grad_batches)
            budget.sample_pass = self._forecast.plain / self._chunk
        less: dict[str, None] = {}
        statistics = self._forecast.statistics  # fewer draws make nothing of it cheaper
        if self._resumed:  # as before
            again, self._cheapened = self._cheapened, 0
            for _ in range(again):
                less[self._cheaper(trainer.world_size)[0]] = None
        for _ in range(MOST_HALVINGS):
            if self._affords(trainer, account.next_point + account.ending):
                break
            words, part, fewer_samples = self._cheaper(trainer.world_size)
            if not words:
                break
            less[words] = None
            rest = account.point - statistics
            statistics *= part if fewer_samples else 1.0
            account.point = statistics + rest * part
        self._rows["steps"] += messages.within_budget(budget.limit, FLOOR, budget.expected)
        if less:
            self._rows["less"] = f"{messages.joined(less)} (about {account.point:.2g} s a point)"
        if not self._affords(trainer, account.next_point + account.ending):
            self._rows["cost"] += "; no point fits into the time budget of the run so far"

    def _cheaper(self, processes: int) -> tuple[str, float, bool]:
        """Return what is reduced from now on, the remaining share of its cost, and whether it is the samples."""
        words = ""
        with self._error_policy.guard("measuring less"):
            words = self.quantity.cheaper()
        if words:
            self._cheapened += 1
            return words, 0.5, False
        before = len(self._samples) if self._samples.complete else self._samples.size
        after = max(min(LEAST_SAMPLES, before), before // 2)
        if after == before:
            return "", 1.0, True
        self._samples.shrink(after)
        return f"{after * processes} samples instead of {before * processes}", after / before, True

    def _write_layout(self, trainer: Any) -> None:
        with self._error_policy.guard("writing the chart layout"):
            for refusal in self._session.write_layout(trainer):
                self._error_policy.report(refusal, "writing the chart layout")
