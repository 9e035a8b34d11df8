"""The frame of every callback: schedule, reference samples, isolation, error policy, history, reporting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info import validation
from lightning_info.callbacks import messages
from lightning_info.callbacks.budget import Account
from lightning_info.callbacks.clock import Clock
from lightning_info.callbacks.error_policy import ErrorPolicy, NoRoom, Refused, WrongArgument
from lightning_info.callbacks.forecast import Forecast
from lightning_info.callbacks.hyperparameters import LogsHyperparameters
from lightning_info.callbacks.monitors import monitors
from lightning_info.callbacks.options import ARGUMENTS, MARK, check_common_options, show_common_options
from lightning_info.callbacks.preflight import refuse_sharding
from lightning_info.callbacks.preparing import MOST_SKIPPED
from lightning_info.callbacks.processes import in_any_process
from lightning_info.callbacks.progress import progress
from lightning_info.callbacks.reference_collector import ReferenceCollector
from lightning_info.callbacks.resuming import steps_taken
from lightning_info.callbacks.schedule import Schedule
from lightning_info.callbacks.session import Session
from lightning_info.functional.units import Unit
from lightning_info.quantities.checks import check_quantity
from lightning_info.quantities.quantity import Quantity
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.declared_samples import Collate, DeclaredSamples, Split
from lightning_info.replica.isolation import isolated
from lightning_info.replica.noise import Noise
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.replicate import with_whole_parameters
from lightning_info.replica.user_warning import warn
from lightning_info.replica.workers import untrained_sums
from lightning_info.reporting.table import last_values


class InfoCallback(LogsHyperparameters):
    """Measures a quantity during training: decides when, on which samples, and where the values go.

    The callbacks of this package build on it; use it directly for a :class:`~.Quantity` of your own, see
    ``docs/quantities.md``.

    A point at step s describes the weights after s optimiser steps. It is measured in ``on_train_batch_start`` of the
    first batch of s, on a replica, over the reference samples. Between points only a comparison of counters runs.

    Attributes:
        history: ``tag -> [(step, value), ...]`` of everything measured, NaN where a point has no value; with several
            processes each of them holds that of the first.

    Args:
        quantity: The quantity to measure; each callback needs its own instance.
        num_samples: Number of reference samples: the first that training uses.
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: Before the first step, if the quantity returns what cannot be shown; and with
            ``on_error="raise"`` (else a warning, and the callback is off) if something cannot be measured.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import InfoCallback

        trainer = Trainer(callbacks=[InfoCallback(WeightNorm(), every_n_epochs=1)])
    """

    _off = ""  # why nothing is measured in this run
    _decision: tuple[tuple[int, int, int], bool] | None  # epoch, batch and step of the last, and if a point is due

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
        split: Split | None = None,
        collate: Collate | None = None,
        batch_axes: dict[str, int | None] | dict[int, int | None] | None = None,
        seed: int = 0,
        prefix: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        max_overhead: float | None = None,
        batch_norm: BatchNormStatistics = "reference",
        unit: Unit | None = None,
        summary: bool = True,
        verbose: bool = False,
        prog_bar: bool = False,
        log_hyperparams: bool = False,
        save_samples: bool = True,
    ) -> None:
        owner = type(self).__name__
        check_quantity(owner, quantity)
        validation.positive_integer(owner, "num_samples", num_samples, 256)
        check_common_options(
            owner,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            adapter=adapter,
            seed=seed,
            prefix=prefix,
            on_error=on_error,
            max_overhead=max_overhead,
            batch_norm=batch_norm,
            unit=unit,
        )
        self.quantity = quantity
        self.num_samples, self.reference, self.adapter = num_samples, reference, adapter
        self.split, self.collate, self.batch_axes = split, collate, batch_axes
        self._declared = DeclaredSamples(owner, split, collate, batch_axes)
        self.seed, self.prefix, self.on_error, self.summary = seed, prefix or None, on_error, summary
        self.verbose, self.prog_bar, self.unit, self._asked_unit = verbose, prog_bar, unit, unit
        self.batch_norm, self.save_samples, self.log_hyperparams = batch_norm, save_samples, log_hyperparams
        self.history = {}
        self._schedule = Schedule(every_n_epochs, every_n_train_steps, max_overhead)
        self._active = False
        self._trainer: int | None = None  # identity of the trainer of the last run
        self._restart()

    if not TYPE_CHECKING:  # every attribute would exist for them

        def __getattr__(self, name: str) -> Any:
            """Return an attribute of the quantity: its arguments, and what it offers."""
            if name.startswith("_") or "quantity" not in vars(self):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self.quantity, name)

    @property
    def family(self) -> str:
        """First part of the tags, without prefix."""
        return self.quantity.name

    @property
    def tags(self) -> tuple[str, ...]:
        """Scalars of every measurement, without prefix; known from the first batch on."""
        return self.quantity.tags

    @property
    def _kind(self) -> dict[str, str]:
        return {"quantity": self.quantity.name} if type(self) is InfoCallback else {}

    def report(self) -> str:
        """Tell what is measured, on which samples, when, by which engine and why, with all values and warnings."""
        if not self._summary:
            return f"{type(self).__name__}: nothing is known before the first batch of fit"
        overhead = self.tagged(f"{self.family}/overhead")
        history = {tag: curve for tag, curve in self.history.items() if tag != overhead}
        return "\n\n".join(filter(None, [self._summary, last_values(history), *self._error_policy.told]))

    # ---- hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before anything is trained."""
        if stage != "fit":
            return
        self._off = ""
        with self._or_off():
            refuse_sharding(type(self).__name__, trainer.strategy)
        ours = [c for c in trainer.callbacks if isinstance(c, InfoCallback)]
        if sum(c.quantity is self.quantity for c in ours) > 1:
            raise WrongArgument(
                f"{type(self).__name__}: two callbacks share one {type(self.quantity).__name__}, which keeps what it "
                f"has measured; give each an instance of its own"
            )
        self.unit = next(filter(None, (c._asked_unit for c in (self, *ours))), None)  # given once for all
        alike = [c for c in ours if c.family == self.family and c.prefix == self.prefix]
        if len(alike) > 1:
            names = ", ".join(sorted({type(c).__name__ for c in alike}))
            last = type(alike[-1]).__name__
            own = f"{type(alike[-1].quantity).__name__}(), " if last == "InfoCallback" else ""
            raise WrongArgument(
                f"{type(self).__name__}: {len(alike)} of them write the same tags ({names}: {self.family}/...); "
                f"give each a prefix, for example {last}({own}prefix='second')"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock; a run that starts at step 0 starts a new history."""
        self._active = not trainer.barebones and not self._off
        if not self._active:
            return
        goes_on = self._resumed or (self._trainer == id(trainer) and steps_taken(trainer) > 0)
        if not goes_on:
            self.history.clear()
            self._restart()
        self._trainer = id(trainer)
        self._clock = Clock(self._clock.elapsed_before, self._clock.spent) if self._resumed else Clock()
        self.account.clock, self.account.is_open, self.account.before = self._clock, True, self._clock.spent
        for tag, curve in {**self._ended, **self.history}.items():  # monitors need not wait for the next point
            finite = [value for _, value in curve if math.isfinite(value)]
            if finite and self._is_logged(tag):
                trainer.callback_metrics[tag] = torch.tensor(finite[-1] if tag in monitors(trainer) else curve[-1][1])
        if self.quantity.needs_start and trainer.fit_loop.epoch_loop._batches_that_stepped == 0:
            with self._clock.spending(), self._error_policy.guard("keeping the initial weights"):
                self.quantity.start(with_whole_parameters(pl_module, trainer))
        self._decision = None
        self._session = Session.join(trainer, self)
        self._write_layout(trainer)  # of another fit of the same trainer
        if self._session.is_new and not trainer.loggers and not trainer.fast_dev_run and not self._offline:
            warn(
                f"{type(self).__name__}: the Trainer has no logger; values go to callback.history and "
                f"trainer.callback_metrics only"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Collect reference samples and measure if a point is due."""
        if not self._active:
            return
        try:
            is_idle = self._samples.complete and not self.is_due(trainer, batch_idx)
        except Exception:
            is_idle = False  # reported below, by the same error
        if not is_idle:
            shown = progress(trainer, type(self).__name__, steps_taken(trainer), self.account.point)
            with self._or_off(trainer), self._clock.spending(), self._error_policy.guard("its bookkeeping"), shown:
                self._act(trainer, pl_module, batch, batch_idx)
        if self._active:
            self._see_training(trainer, pl_module, batch, batch_idx)
            self._session.leave_batch(self)

    def _act(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._prepared or self.is_due(trainer, batch_idx):
            self._gather_weights(pl_module)
        if not self._samples.complete:
            with isolated(pl_module.device):
                self._collect(trainer, pl_module, batch, batch_idx)
        if self.is_due(trainer, batch_idx):
            with isolated(pl_module.device):
                self._take(trainer, pl_module, batch_idx)
            self._show_headline()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the end, draw the figures, print the table."""
        if not self._active:
            return
        if self._prepared:
            self._end(trainer, pl_module)
        elif 0 < self._skipped < MOST_SKIPPED:
            self._error_policy.warn_once(messages.skipped(self._skipped), "skipped")
        self._session.leave_batch(self)
        if self._session.ends(self) and trainer.is_global_zero:
            with self._error_policy.guard("printing the table"), isolated(pl_module.device):
                for refusal in self._session.close(trainer):
                    self._error_policy.report(refusal, "writing to a logger")

    def _end(self, trainer: Any, pl_module: Any) -> None:
        shown = progress(trainer, type(self).__name__, steps_taken(trainer), self.account.point)
        with self._clock.spending(), self._error_policy.guard("its bookkeeping"), isolated(pl_module.device), shown:
            if not self._samples.complete:
                if not in_any_process(trainer, bool(self._samples.groups)):
                    return
                self._close_samples(trainer, pl_module)
            self._end_first_epoch()
            step = self._step = steps_taken(trainer)
            if step != self._measured and not trainer.fast_dev_run and self._ends_with_point(trainer):
                self._gather_weights(pl_module)
                due = [c for c in self._session.members if c.is_ready and c.last_step != step]
                self._measure_and_log(trainer, pl_module, step, due)
            if self._measured is not None:
                self._report_end(trainer)
        self.account.is_open = False

    def _ends_with_point(self, trainer: Any) -> bool:
        if self._points or self._affords(trainer, self.account.ending):
            return True
        self._error_policy.warn_once(messages.no_room(self.account.point), "budget")
        return False

    @contextmanager
    def _or_off(self, trainer: Any = None) -> Iterator[None]:
        """Switch this callback off if something is refused inside; training goes on, or ends with ``on_error="raise"``.

        Args:
            trainer: The trainer, once training has started.
        """
        try:
            yield
        except Refused as error:
            if isinstance(error, WrongArgument) or (self.on_error == "raise" and not isinstance(error, NoRoom)):
                raise
            owner = type(self).__name__
            self._active, self._off = False, error.brief
            self._summary = f"{owner} is off: {error}"
            self._initial = None
            if trainer is not None:
                self._session.drop(self)
                self._write_layout(trainer)  # if the others were waiting for it
            if isinstance(error, NoRoom):
                warn(f"{owner} is off: {error}")
                return
            alike = owner if trainer is None else self._session.first_to_say(owner, self._off)
            warn(messages.refused(owner, self._off, alike))

    # ---- measuring

    @property
    def is_prepared(self) -> bool:
        """Whether the module is checked."""
        return self._prepared

    @property
    def is_ready(self) -> bool:
        """Whether the module is checked and the reference samples are complete."""
        return self._prepared and self._samples.complete

    @property
    def last_step(self) -> int | None:
        """Step of the last point; None before the first."""
        return self._measured

    def is_due(self, trainer: Any, batch_idx: int) -> bool:
        """Tell whether a point falls on this batch; decided once, for the first of our callbacks that asks."""
        step = steps_taken(trainer)
        now = (trainer.current_epoch, batch_idx, step)  # with dataloader_iter, the number of the batch comes twice
        if self._decision is None or self._decision[0] != now:
            epochs = trainer.current_epoch if batch_idx == 0 and trainer.current_epoch > 0 else None
            # an epoch that was ended early has its last step twice: again as the first of the next epoch
            if step == self._measured or (step == self._step and epochs is None):
                self._decision = now, False
            else:
                self._step = step
                self._decision = now, self._falls_due(trainer, step, epochs)
        return self._decision[1]

    def _falls_due(self, trainer: Any, step: int, epochs: int | None) -> bool:
        if trainer.fast_dev_run:
            return step == 0
        if not self._schedule.falls_on(step, epochs):
            return False
        account = self.account
        if account.limit is None:
            return True
        self._session.budget.expect(trainer, account, step)
        return self._affords(trainer, account.next_point + account.ending, self._schedule.is_early(step))

    def _take(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """Measure the point that is due at this batch, if its samples are there."""
        assert self._step is not None
        if self._samples.complete:
            self._measure_and_log(trainer, pl_module, self._step, self._session.due(trainer, batch_idx))
        elif self._step == 0:
            with self._error_policy.guard("keeping the initial weights"):
                make = partial(self._new_snapshot, trainer, pl_module, [], private=True)
                self._initial = self._session.initial(self.adapter, make)
                self._frozen = untrained_sums(self._initial.module)
        elif self._step not in self._left_out:
            self._left_out.append(self._step)

    # ---- small things

    def _restart(self) -> None:
        self.quantity.reset()
        self._new_sets()
        self._error_policy = ErrorPolicy(type(self).__name__, self.on_error)
        self._collector = ReferenceCollector(self.num_samples, self.reference, self._error_policy, self._declared)
        self._clock = Clock()
        self.account = Account(self._clock, self._schedule.budget)
        self._chunk, self._at_once = self._collector.chunk, 0
        self._prepared = False
        self._skipped = 0
        self._summary = ""
        self._noise, self._start = Noise(self.seed), {}
        self._private, self._writes, self._normalises = self.quantity.moves_weights, False, True
        self._initial, self._frozen = None, []
        self._finished, self._known, self._epochs = set(), set(), {}
        self._resumed = False
        self._saved = None
        self._changes, self._ended = {}, {}
        self._left_out: list[int] = []
        self._step = self._measured = None
        self._points = self._cheapened = 0
        self._drawing = 0.0
        self._rows = {}
        self._forecast = Forecast(math.nan, 0.0, math.nan, "")


InfoCallback.__doc__ = (InfoCallback.__doc__ or "").replace(MARK, ARGUMENTS)
