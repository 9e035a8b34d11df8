"""The frame of every callback: schedule, reference samples, isolation, error policy, history, reporting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info import validation
from lightning_info.callbacks import messages
from lightning_info.callbacks.clock import Clock
from lightning_info.callbacks.error_policy import ErrorPolicy, Refused
from lightning_info.callbacks.first_batch import findings
from lightning_info.callbacks.monitors import monitors
from lightning_info.callbacks.options import ARGUMENTS, MARK, show_common_options
from lightning_info.callbacks.preflight import STATISTICS, cost_row, refuse_sharding, summary_text
from lightning_info.callbacks.processes import in_any_process, of_rank_zero
from lightning_info.callbacks.reference_collector import ReferenceCollector
from lightning_info.callbacks.resuming import Resuming, steps_taken
from lightning_info.callbacks.schedule import Schedule
from lightning_info.callbacks.session import SharedSnapshots
from lightning_info.gradients.batches import take
from lightning_info.quantities.checks import check_quantity, prepared
from lightning_info.quantities.quantity import Quantity
from lightning_info.replica.batch_norm import BatchNormStatistics, on_batch_statistics
from lightning_info.replica.isolation import isolated
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.reporting.layout import write_layout
from lightning_info.reporting.table import summary_table

MOST_SKIPPED = 10
"""Batches for which ``training_step`` returns None that are waited out before there is one to look at."""


class InfoCallback(Resuming):
    """Measures a quantity during training: says when, on which samples, and where the values go.

    The callbacks of this package are made of it; for a :class:`~.Quantity` of your own it is used as it is, see
    ``docs/quantities.md``.

    A point at step s describes the weights after s optimiser steps. It is measured in ``on_train_batch_start`` of the
    first batch of s, on a replica, over the reference samples. Between points nothing runs but a comparison of
    counters.

    Attributes:
        history: ``tag -> [(step, value), ...]`` of everything measured, NaN where a point has no value; with several
            processes that of the first in each of them.

    Args:
        quantity: What is measured; an instance for each callback.
        num_samples: Reference samples: the first that pass in training.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: sharded strategy, a module that cannot be measured, a quantity
            that gives what cannot be shown.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import InfoCallback

        trainer = Trainer(callbacks=[InfoCallback(WeightNorm(), every_n_epochs=1)])
    """

    _prepared: bool  # the check before the first step is done
    _skipped: int  # batches before it for which training_step returned None
    _initial: ModelSnapshot | None  # the module at s = 0, until the reference samples are complete
    _decision: tuple[tuple[int, int], bool] | None  # epoch and batch of the last decision, and whether a point is due
    _offline = False  # measured without a Trainer

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show in signature and docstring the arguments that ``**common`` stands for."""
        super().__init_subclass__(**kwargs)
        cls.__doc__ = (cls.__doc__ or "").replace(MARK, ARGUMENTS)
        if "__init__" in vars(cls):
            show_common_options(cls.__init__, InfoCallback.__init__)

    def __init__(
        self,
        quantity: Quantity,
        *,
        num_samples: int = 256,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        # LightningCLI cannot build a subclass of Dataset[Any]
        reference: Dataset | Sequence[Tensor] | None = None,  # type: ignore[type-arg]
        adapter: Adapter | None = None,
        seed: int = 0,
        prefix: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        max_overhead: float | None = None,
        batch_norm: BatchNormStatistics = "running",
        summary: bool = True,
    ) -> None:
        owner = type(self).__name__
        check_quantity(owner, quantity)
        validation.intervals(owner, every_n_epochs, every_n_train_steps)
        validation.positive_integer(owner, "num_samples", num_samples, 256)
        validation.integer(owner, "seed", seed, 0)
        validation.one_of(owner, "on_error", on_error, ("warn", "raise"))
        validation.one_of(owner, "batch_norm", batch_norm, get_args(BatchNormStatistics))
        if max_overhead is not None:
            validation.positive_number(owner, "max_overhead", max_overhead, 0.05)
        if prefix:
            validation.path(owner, "prefix", prefix, "run1")
        if adapter is not None and not callable(adapter):
            raise ValueError(
                f"{owner}: adapter must be a function (module, batch) -> (outputs, targets), got {adapter!r}"
            )
        self.quantity = quantity
        self.num_samples, self.reference, self.adapter = num_samples, reference, adapter
        self.seed, self.prefix, self.on_error, self.summary = seed, prefix or None, on_error, summary
        self.batch_norm = batch_norm
        self.history = {}
        self._schedule = Schedule(every_n_epochs, every_n_train_steps, max_overhead)
        self._active = False
        self._trainer: int | None = None  # identity of the trainer of the last run
        self._restart()

    if not TYPE_CHECKING:  # for which every attribute would exist

        def __getattr__(self, name: str) -> Any:
            """What the quantity has: its arguments, and what it tells."""
            if name.startswith("_") or "quantity" not in vars(self):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self.quantity, name)

    @property
    def family(self) -> str:
        """First part of the tags, without prefix."""
        return self.quantity.name

    @property
    def tags(self) -> tuple[str, ...]:
        """Scalars that every measurement gives, without prefix; known from the first batch on."""
        return self.quantity.tags

    @property
    def _kind(self) -> dict[str, str]:
        return {"quantity": self.quantity.name} if type(self) is InfoCallback else {}

    def report(self) -> str:
        """What is measured, on which samples, when, and who computes what and why: as said before the first step."""
        return self._summary or f"{type(self).__name__}: nothing is known before the first batch of fit"

    # ---- hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before anything is trained."""
        if stage != "fit":
            return
        refuse_sharding(type(self).__name__, type(trainer.strategy).__name__)
        ours = self._ours(trainer)
        if sum(c.quantity is self.quantity for c in ours) > 1:
            raise Refused(
                f"{type(self).__name__}: two callbacks share one {type(self.quantity).__name__}, which keeps what it "
                f"has measured; give each an instance of its own"
            )
        alike = [c for c in ours if c.family == self.family and c.prefix == self.prefix]
        if len(alike) > 1:
            names = ", ".join(sorted({type(c).__name__ for c in alike}))
            last = type(alike[-1]).__name__
            own = f"{type(alike[-1].quantity).__name__}(), " if last == "InfoCallback" else ""
            raise Refused(
                f"{type(self).__name__}: {len(alike)} of them write the same tags ({names}: {self.family}/...); "
                f"give each a prefix, for example {last}({own}prefix='second')"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock; a run that starts at step 0 starts a new history."""
        self._active = not trainer.barebones
        if not self._active:
            return
        goes_on = self._resumed or (self._trainer == id(trainer) and steps_taken(trainer) > 0)
        if not goes_on:
            self.history.clear()
            self._restart()
        self._trainer = id(trainer)
        self._clock = Clock(self._clock.elapsed_before, self._clock.spent) if self._resumed else Clock()
        for tag, curve in {**self._ended, **self.history}.items():  # monitors need not wait for the next point
            finite = [value for _, value in curve if math.isfinite(value)]
            if finite and self._is_logged(tag):
                trainer.callback_metrics[tag] = torch.tensor(finite[-1] if tag in monitors(trainer) else curve[-1][1])
        if self.quantity.needs_start and trainer.fit_loop.epoch_loop._batches_that_stepped == 0:
            with self._clock.spending(), self._error_policy.guard("keeping the initial weights"):
                self.quantity.start(pl_module)
        self._decision = None
        ours = self._ours(trainer)
        self._is_last = self is ours[-1]
        if self._is_last and self._prepared:  # another fit of the same trainer
            self._write_layout(trainer)
        if self is not ours[0]:  # the first speaks for all
            return
        bench = SharedSnapshots()
        for callback in ours:
            callback._bench = bench
        if not trainer.loggers and not trainer.fast_dev_run and not self._offline:
            rank_zero_warn(
                f"{type(self).__name__}: the Trainer has no logger; values go to callback.history and "
                f"trainer.callback_metrics only"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Collect reference samples and measure if a point is due."""
        if not self._active:
            return
        with self._clock.spending(), self._error_policy.guard("its bookkeeping"):
            if not self._samples.complete:
                with isolated(pl_module.device):
                    self._collect(trainer, pl_module, batch, batch_idx)
            if self._decide(trainer, batch_idx):
                with isolated(pl_module.device):
                    self._take(trainer, pl_module, batch_idx)
        if self._is_last:
            self._bench.clear()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the end, draw the figures, print the table."""
        if self._active and 0 < self._skipped < MOST_SKIPPED and not self._prepared:
            self._error_policy.warn_once(messages.skipped(self._skipped), "skipped")
        if not self._active or not self._prepared:
            return
        with self._clock.spending(), self._error_policy.guard("its bookkeeping"), isolated(pl_module.device):
            if not self._samples.complete:
                if not in_any_process(trainer, bool(self._samples.groups)):
                    return
                self._close_samples(trainer, pl_module)
            step = self._step = steps_taken(trainer)
            if step != self._measured and not trainer.fast_dev_run:
                due = [c for c in self._ours(trainer) if c._can_measure and c._measured != step]
                self._measure_and_log(trainer, pl_module, step, due)
            if self._measured is not None:
                self._report_end(trainer)
        with self._error_policy.guard("printing the table"), isolated(pl_module.device):
            self._print_table(trainer)
        if self._is_last:
            self._bench.clear()

    # ---- without a Trainer: what ``lightning_info.measure`` calls in the place of the hooks

    @property
    def is_ready(self) -> bool:
        """The module is checked and the reference samples are complete."""
        return self._can_measure

    def go_offline(self) -> None:
        """Forget everything measured; from now on there is no Trainer, and no summary is printed."""
        self.history, self._offline = {}, True
        self._restart()

    def take_samples(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep reference samples of a batch until they are complete; check the module at the first one.

        What fails here is raised whatever ``on_error`` says, as nothing can be measured without it.
        """
        if self._can_measure:
            return
        self._error_policy.on_error = "raise"
        self._collect(trainer, pl_module, batch, batch_idx)
        self._error_policy.on_error = self.on_error

    def take_point(self, trainer: Any, pl_module: Any, due: Sequence[InfoCallback]) -> None:
        """Measure at the present step, whatever the schedule says.

        Args:
            trainer: What stands for one.
            pl_module: The module.
            due: All callbacks that are measured at this step; they share a replica and a pass.
        """
        self._step = steps_taken(trainer)
        self._measure_and_log(trainer, pl_module, self._step, due)

    def let_go(self) -> None:
        """Keep nothing of the present step."""
        self._bench.clear()

    def look_back(self, trainer: Any) -> None:
        """Add to the history what is known only when the last point is."""
        self._write_end(trainer)

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """The figures of what was measured, by tag; each is drawn when it is called."""
        return {self._tag(tag): draw for tag, draw in self.quantity.figures(self.record()).items()}

    def tagged(self, tag: str) -> str:
        """A tag with this callback's prefix."""
        return self._tag(tag)

    # ---- reference samples

    def _collect(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._prepared:
            if self._skipped >= MOST_SKIPPED:
                return
            self._prepared = self._begin(trainer, pl_module, batch)
            if not self._prepared:
                return
        if not self._samples.complete and self._collector.add(trainer, batch, batch_idx):
            self._close_samples(trainer, pl_module)

    def _begin(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        """The first batch: see what there is to measure, and refuse what cannot be measured.

        Returns:
            False if ``training_step`` returns None for it in some process, so that the next one is to be looked at.
        """
        refusal, seen = None, True
        try:
            with self._error_policy.guard("looking at the first batch"):
                if self._skipped == 0:
                    self._collector.start(trainer, batch, self._saved)
                self._chunk = self._collector.chunk
                seen = self._look(trainer, pl_module, batch)
        except Refused as error:
            refusal = error
        if in_any_process(trainer, refusal is not None):  # all processes end, or none
            raise refusal or Refused(f"{type(self).__name__}: refused by another process")
        if in_any_process(trainer, not seen):
            self._skipped += 1
            if self._skipped == MOST_SKIPPED:  # steps may have been taken: no reason to end the run
                self._initial, reason = None, messages.skipped(self._skipped)
                if self.on_error == "raise":
                    raise Refused(f"{type(self).__name__}: {reason}")
                self._error_policy.warn_once(reason, "skipped")
            return False
        self._collector.agree(trainer)
        if self._changes:
            self._end_curves(trainer)
        elif self._resumed:
            if not self.history:
                self._left_out.append(0)
            elif not self._collector.same:
                self._error_policy.warn_once("the curve goes on with other reference samples than before", "samples")
        self._resumed, self._saved, self._changes = False, None, {}
        if self._schedule.budget is not None:
            warning = messages.monitored(monitors(trainer), map(self._tag, self.quantity.tags), self._schedule.budget)
            if warning:
                self._error_policy.warn_once(warning, "monitor")
        if self._is_last:
            self._write_layout(trainer)
        return True

    def _look(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        """False if ``training_step`` returns None for the samples."""
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
        if self._initial is not None:
            self._initial.groups = self._samples.groups
            self._measure_and_log(trainer, pl_module, 0, initial=self._initial)
            self._initial = None
        if self._left_out:
            rank_zero_info(f"{type(self).__name__}: {messages.left_out(self._left_out, len(self._samples))}")

    def _preflight(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        """Refuse, before the first step, a module that cannot be measured; say how another one will be.

        Returns:
            False if ``training_step`` returns None for all of the samples.
        """
        owner = type(self).__name__
        with self._error_policy.guard("the check before the first step"):
            key = id(self.adapter), id(self.reference), self._samples.complete
            make = partial(self._new_snapshot, trainer, pl_module, private=True)
            prepare = partial(prepared, self.quantity, point=self._point_at(trainer, steps_taken(trainer)))
            found = findings(owner, pl_module, make, prepare, batch, self._bench.layouts, key)
            if found is None:
                return False
            self._collector.lay(found.whole.layout)
            if not self._samples.complete:
                self._chunk = self._collector.chunk = len(found.whole)
            self._private = self.quantity.moves_weights or found.writes
            size = len(self._samples) if self._samples.complete else self.num_samples
            rows = {
                "measures": found.rows.pop("measures"),
                "samples": f"{size} reference samples: {self._collector.origin}; eval mode",
                "steps": str(self._schedule),
                **found.rows,
            }
            if on_batch_statistics(pl_module):
                rows["BatchNorm"] = STATISTICS[self.batch_norm]
            copying = partial(self._new_snapshot, trainer, pl_module, [])
            rows["cost"] = cost_row(found.snapshot, copying, partial(self.quantity.cost, found.snapshot, size))
            if self._offline:
                del rows["steps"]
                if self.reference is None:
                    rows["samples"] = f"the first {size} samples of the data, or all where it holds fewer; eval mode"
            self._summary = summary_text(f"{owner}{f'(prefix={self.prefix!r})' if self.prefix else ''}", rows)
            if not self._offline:
                rank_zero_info(self._summary)
        return True

    # ---- measuring

    @property
    def _can_measure(self) -> bool:
        return self._prepared and self._samples.complete

    def _decide(self, trainer: Any, batch_idx: int) -> bool:
        """Whether a point falls on this batch; decided once, by whichever of our callbacks asks first."""
        now = (trainer.current_epoch, batch_idx)
        if self._decision is None or self._decision[0] != now:
            step = steps_taken(trainer)
            epochs = trainer.current_epoch if batch_idx == 0 and trainer.current_epoch > 0 else None
            # an epoch that was ended early has its last step twice: again as the first of the next epoch
            if step == self._measured or (step == self._step and epochs is None):
                self._decision = now, False
            else:
                self._step = step
                self._decision = now, self._is_due(trainer, step, epochs)
        return self._decision[1]

    def _is_due(self, trainer: Any, step: int, epochs: int | None) -> bool:
        if step == 0 or trainer.fast_dev_run:
            return step == 0
        if not self._schedule.falls_on(step, epochs):
            return False
        if self._schedule.budget is None:
            return True
        return of_rank_zero(
            trainer, self._schedule.affords(self._point_seconds, self._clock.spent, self._clock.elapsed)
        )

    def _take(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """The point that is due at this batch, if its samples are there."""
        assert self._step is not None
        if self._samples.complete:
            due = [c for c in self._ours(trainer) if c is self or (c._can_measure and c._decide(trainer, batch_idx))]
            self._measure_and_log(trainer, pl_module, self._step, due)
        elif self._step == 0:
            with self._error_policy.guard("keeping the initial weights"):
                make = partial(self._new_snapshot, trainer, pl_module, [], private=True)
                self._initial = self._bench.initial(self.adapter, make)
        elif self._step not in self._left_out:
            self._left_out.append(self._step)

    def _write_layout(self, trainer: Any) -> None:
        with self._error_policy.guard("writing the chart layout"):
            charts = {
                c._tag(title): (kind, [c._tag(tag) for tag in tags])
                for c in self._ours(trainer)
                for title, (kind, tags) in c.quantity.charts().items()
            }
            for refusal in write_layout(trainer, charts):
                self._error_policy.report(refusal, "writing the chart layout")

    # ---- small things

    def _restart(self) -> None:
        self.quantity.reset()
        self._error_policy = ErrorPolicy(type(self).__name__, self.on_error)
        self._collector = ReferenceCollector(self.num_samples, self.reference, self._error_policy)
        self._clock = Clock()
        self._chunk = self._collector.chunk
        self._prepared = False
        self._skipped = 0
        self._summary = ""
        self._private = self.quantity.moves_weights
        self._initial = None
        self._finished = set()
        self._epochs = {}
        self._known = set()
        self._resumed = False
        self._saved = None
        self._changes, self._ended = {}, {}
        self._left_out: list[int] = []
        self._step = None
        self._measured = None
        self._points = 0
        self._point_seconds = 0.0
        self._drawing = 0.5  # what the first figure is expected to take

    @staticmethod
    def _ours(trainer: Any) -> list[InfoCallback]:
        return [c for c in trainer.callbacks if isinstance(c, InfoCallback)]

    def _print_table(self, trainer: Any) -> None:
        """The last of our callbacks prints one table for all."""
        ours = [c for c in self._ours(trainer) if c.summary]
        if not ours or self is not ours[-1] or not trainer.is_global_zero:
            return
        history = {tag: curve for c in ours for tag, curve in c.history.items() if curve[-1][0] == c._measured}
        rows = [
            (c._tag(tag), error and c._tag(error))
            for c in ours
            for tag, error in c.quantity.table
            if c._tag(tag) in history
        ]
        print("\n" + summary_table(history, rows))
        for c in ours:
            print(messages.time_taken(c._tag(c.family), c._points, c._clock.overhead, c._clock.elapsed))
            if text := c.quantity.closing_text(c.record()):
                print(text)


InfoCallback.__doc__ = (InfoCallback.__doc__ or "").replace(MARK, ARGUMENTS)
