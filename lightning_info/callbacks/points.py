"""One point: on which replica it is measured, how faults are handled, and where its values go."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda

from lightning_info.callbacks import messages
from lightning_info.callbacks.clock import Clock
from lightning_info.callbacks.error_policy import ErrorPolicy
from lightning_info.callbacks.member import Member
from lightning_info.callbacks.monitors import is_tolerant, monitors
from lightning_info.callbacks.processes import of_rank_zero
from lightning_info.callbacks.reference_collector import ReferenceCollector
from lightning_info.callbacks.session import Session, new_snapshot
from lightning_info.functional.units import Unit, in_unit
from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.quantities.checks import InvalidValues, curves_of, values_of
from lightning_info.quantities.quantity import Point, Quantity, Record
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.isolation import exits_are_errors
from lightning_info.replica.noise import DrawsNoise, Noise
from lightning_info.replica.predicted import NoPrediction, Skipped, WritesParameters
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.reference_samples import ReferenceSamples
from lightning_info.replica.sample_axis import needs_order
from lightning_info.replica.skipped import without_skipped
from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot, Unavailable
from lightning_info.reporting.explanations import Plugin
from lightning_info.reporting.figures import report_figure
from lightning_info.reporting.histograms import report_histogram
from lightning_info.reporting.scalars import report_scalars
from lightning_info.reporting.table import Curve

FIGURE_SHARE = 0.02
"""Figures are expensive: drawn at points 4, 8, 16, ... within this share of the run's time, and at the end of fit."""
MOST_BATCHES = 8
"""Number of batches that are checked if the samples' order may be the cause of a failure."""


class Points(Member):
    """Measures points of a quantity and reports them; ``base`` decides when.

    Attributes:
        quantity: The quantity that is measured.
        history: ``tag -> [(step, value), ...]`` of everything measured.
    """

    quantity: Quantity
    history: dict[str, list[tuple[int, float]]]
    adapter: Adapter | None
    num_samples: int
    seed: int
    prefix: str | None
    batch_norm: BatchNormStatistics
    unit: Unit | None
    prog_bar: bool
    log: Callable[..., None]  # of Lightning's callbacks

    _error_policy: ErrorPolicy
    _collector: ReferenceCollector
    _clock: Clock
    _session: Session  # of the run; what the callbacks of the trainer share
    _chunk: int  # number of samples that go through a replica at once
    _at_once: int  # the same for passes without a backward pass
    _noise: Noise  # noise that passes over replicas draw
    _start: dict[str, Any]  # state that they keep on the module, by name
    _private: bool  # replicas must not share the trained weights
    _writes: bool  # nor the others, as the module writes to its weights when it runs
    _normalises: bool  # BatchNorm layers train on batch statistics
    _measured: int | None  # step of the last point
    _points: int  # how many there are
    _drawing: float  # seconds spent on figures
    _epochs: dict[int, float]  # epochs passed at the measured steps
    _finished: set[str]  # tags of the quantity's ``finish``, without prefix
    _known: set[str]  # tags of the points of this run, without prefix

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which belongs to no run."""
        return {name: value for name, value in vars(self).items() if name not in ("_session", "_joined")}

    # ---- replicas

    def _new_snapshot(
        self,
        trainer: Any,
        pl_module: Any,
        groups: list[Any],
        private: bool = False,
        known: dict[Hashable, Any] | None = None,
    ) -> ModelSnapshot:
        return new_snapshot(
            trainer,
            pl_module,
            groups,
            adapter=self.adapter,
            chunk=self._chunk,
            at_once=self._at_once,
            private=private or self._private,
            frozen_too=self._writes,
            needs_likelihood=self.quantity.needs_likelihood,
            noise=self._noise,
            start=self._start,
            known=known,
            workers=self._session.workers,
            whole=self._session.whole,
        )

    @property
    def sharing_key(self) -> tuple[Any, ...]:
        """Key of replicas: callbacks with the same key can measure on the same replica."""
        statistics = (self.batch_norm, len(self._samples) if self.batch_norm == "reference" else 0)
        return (
            self.adapter,
            (self._private, self._writes),
            statistics if self._normalises else None,
            self._noise.seed if self._noise.draws else None,
        )

    @property
    def groups(self) -> list[Any]:
        """Reference samples, as batches on the CPU."""
        return self._samples.groups

    @property
    def chunk(self) -> int:
        """Number of samples that go through a replica at once."""
        return self._chunk

    def _snapshot(self, trainer: Any, pl_module: Any, due: Sequence[Member]) -> ModelSnapshot:
        def make(groups: list[Any]) -> ModelSnapshot:
            snapshot = self._new_snapshot(trainer, pl_module, groups)
            if self.batch_norm == "reference":
                snapshot.use_reference_statistics()
            return snapshot

        return self._session.snapshot(self, due, make)

    def statistics(self) -> list[ForwardStatistic]:
        """Return what the quantity reads from the forward pass; a fault in it does not affect the others."""
        with self._error_policy.guard("listing its statistics"):
            return list(dict.fromkeys(self.quantity.statistics()))  # they must be hashable
        return []

    # ---- measuring

    def _measure_and_log(
        self,
        trainer: Any,
        pl_module: Any,
        step: int,
        due: Sequence[Member] = (),
        initial: ModelSnapshot | None = None,
    ) -> None:
        self._clock.wait_for(pl_module.device)
        started = self._clock.elapsed
        values = self._values(trainer, pl_module, step, due, initial)
        lost = sorted(self._known - values.keys() - self.quantity.ended)  # for example, its parameters are frozen now
        self._keep_and_report(trainer, step, dict.fromkeys(lost, math.nan) | values, started)

    def _keep_and_report(self, trainer: Any, step: int, values: dict[str, float], started: float) -> None:
        """Keep and report a point's values; its measurement began at ``started`` on the clock."""
        is_gap = not any(map(math.isfinite, values.values()))
        values[f"{self.quantity.name}/overhead"] = self._clock.overhead
        scaled = {self.tagged(tag): value * self._factor(tag) for tag, value in values.items()}
        values = of_rank_zero(trainer, scaled)
        for tag, value in values.items():
            self.history.setdefault(tag, []).append((step, value))
        self._known.update(map(self._untagged, values))
        self._measured = step
        self._points += 1
        self._epochs[step] = _epoch(trainer, step)
        self._report_values(trainer, values, step)
        if trainer.is_global_zero and not is_gap:  # they keep the values of the last point that had any
            histograms = self.quantity.histograms()
            self._explain(trainer, histograms, "histograms", step)
            for tag, shown in histograms.items():
                for refusal in report_histogram(trainer, self.tagged(tag), shown, step):
                    self._error_policy.report(refusal, "writing a histogram to a logger", step)
        self.account.took(self._clock.elapsed - started)
        doubled = self._points >= 4 and self._points & (self._points - 1) == 0
        if doubled and self._affords(trainer, self.account.figures + self.account.ending, early=False):
            self._draw(trainer, step, FIGURE_SHARE * self._clock.elapsed)

    def _values(
        self, trainer: Any, pl_module: Any, step: int, due: Sequence[Member], initial: ModelSnapshot | None
    ) -> dict[str, float]:
        """Measure the point's values, in chunks as small as memory needs; NaN if it has none."""
        while True:
            point = self._point_at(trainer, step)
            snapshot = initial
            try:
                with self._session.workers.together(), exits_are_errors("the measurement"):
                    if snapshot is None:
                        snapshot = self._snapshot(trainer, pl_module, due)
                    else:
                        snapshot.chunk, snapshot.at_once = self._chunk, self._at_once
                        if self.batch_norm == "reference":
                            snapshot.use_reference_statistics()
                    if reason := snapshot.share():
                        self._error_policy.warn_once(messages.not_shared(reason), "not shared")
                    return values_of(self.quantity, self.quantity.measure(snapshot, point))
            except Unavailable as error:
                self._error_policy.warn_once(f"no value at step {step} (NaN): {error}", kind="no value")
                break
            except InvalidValues as error:
                if self._error_policy.on_error == "raise":
                    raise
                self._error_policy.warn_once(f"no value at step {step} (NaN): {error}", kind="invalid values")
                break
            except Skipped as error:
                assert snapshot is not None
                self._session.discard(snapshot)
                others = [c for c in due if isinstance(c, Points)]
                if not sum(c._leave_out_skipped(snapshot) for c in dict.fromkeys((self, *others))):
                    self._error_policy.warn_once(
                        f"no value at step {step} (NaN): {error} for the reference samples", kind="no value"
                    )
                    break
                if initial is not None:
                    initial = initial.on(self._samples.groups)
                continue
            except Exception as error:
                if snapshot is not None:
                    self._session.discard(snapshot)
                if isinstance(error, DrawsNoise):
                    self._noise.draws = True
                    continue
                if isinstance(error, WritesParameters) and not self._writes:
                    self._private = self._writes = True  # it did not in the check before the first step
                    continue
                if snapshot is not None and not is_out_of_memory(error) and self._must_keep_order(snapshot):
                    if initial is not None:
                        initial.groups = self._samples.groups
                    continue
                if not is_out_of_memory(error) or self._chunk == 1:
                    if isinstance(error, NoPrediction) and self._error_policy.on_error == "warn":
                        self._error_policy.warn_once(
                            f"no value at step {step} (NaN): {error}. If training uses another loss now, say "
                            f"what the module predicts: {type(self).__name__}(adapter=...)",
                            kind="no prediction",
                        )
                    else:
                        self._error_policy.report(error, "the measurement", step)
                    break
            self._chunk, self._at_once = self._chunk // 2, 0
            self._error_policy.warn_once(messages.smaller_chunks(step, self._chunk), kind="memory")
            garbage_collection_cuda()
        known = [tag for tag in map(self._untagged, self.history) if tag not in self._finished | self.quantity.ended]
        return dict.fromkeys((*self.quantity.tags, *known), math.nan)

    def _must_keep_order(self, snapshot: ModelSnapshot) -> bool:
        """Tell whether a measurement failed because the samples' order was changed; from now on it is kept."""
        samples = self._samples
        if samples.layout is None or samples.layout.ordered or not samples.complete:
            return False
        batches = (snapshot.to_device(batch) for batch in samples.apart()[:MOST_BATCHES])
        if not needs_order(snapshot.module, snapshot.predictor, batches):
            return False
        samples.keep_order()
        return True

    def _leave_out_skipped(self, snapshot: ModelSnapshot) -> bool:
        """Remove the samples for which ``training_step`` returns None from the pool; False if it is none, or all."""
        groups = [g for group in self._samples.groups if (g := without_skipped(snapshot, group)) is not None]
        before, after = len(self._samples), sum(map(num_samples, groups))
        if after in (0, before):
            return False
        self._samples.keep(groups)
        self._error_policy.warn_once(
            f"{before - after} of {before} reference samples are left out: training_step returns None for them, so "
            f"that the module is not trained on them",
            kind="skipped",
        )
        return True

    # ---- reporting

    def _report_values(self, trainer: Any, values: Mapping[str, float], step: int) -> None:
        logged = {tag: value for tag, value in values.items() if self._is_logged(tag)}
        kept = self._kept_for_monitors(trainer, logged, step)
        self._explain(trainer, map(self._untagged, logged), "scalars", step)
        for refusal in report_scalars(trainer, logged, step, kept):
            self._error_policy.report(refusal, "writing to a logger", step)

    def _show_headline(self) -> None:
        """Log the first row of the table for the progress bar alone, if that is wanted."""
        headline = self.tagged(self.quantity.table[0][0]) if self.prog_bar and self.quantity.table else None
        if headline in self.history:
            self.log(headline, self.history[headline][-1][1], prog_bar=True, logger=False)

    def _explain(self, trainer: Any, tags: Iterable[str], plugin: Plugin, step: int) -> None:
        """Tell the loggers what tags without prefix mean, at the step of their first value."""
        with self._error_policy.guard("explaining its numbers"):
            for refusal in self._session.explain(trainer, self, tags, plugin, step):
                self._error_policy.report(refusal, "writing to a logger")

    def _kept_for_monitors(self, trainer: Any, values: Mapping[str, float], step: int) -> set[str]:
        """Return tags whose value in ``callback_metrics`` is kept, if any, as a NaN would end or change the run."""
        kept = set()
        for tag, who in monitors(trainer).items():
            if math.isfinite(values.get(tag, 0.0)):
                continue
            finite = [s for s, value in self.history.get(tag, ()) if math.isfinite(value) and s < step]
            if finite and tag in trainer.callback_metrics:
                kept.add(tag)
                self._error_policy.warn_once(messages.monitored_gap(who, tag, step, finite[-1]), f"gap of {tag}")
            elif all(map(is_tolerant, who)) or tag in trainer.callback_metrics:
                kept.add(tag)
        return kept

    def _report_end(self, trainer: Any) -> None:
        """Report what is known only at the end of fit."""
        assert self._measured is not None
        self._write_end(trainer)
        if self._affords(trainer, self.account.figures):
            self._draw(trainer, self._measured)

    def _write_end(self, trainer: Any) -> None:
        curves: Mapping[str, Curve] = {}
        with self._error_policy.guard("looking back at the end"):
            found = self.quantity.finish(self.record(), self._point_at(trainer, self._measured or 0))
            curves = curves_of(self.quantity, found)
        curves = of_rank_zero(trainer, curves)
        self._finished.update(curves)
        by_step: dict[int, dict[str, float]] = {}
        for tag, native in curves.items():
            curve = [(step, value * self._factor(tag)) for step, value in native]
            last = max((step for step, _ in curve), default=-1)  # of the points that have values
            curve = [*curve, *((step, math.nan) for step in sorted(self._epochs) if step > last)]
            self.history[self.tagged(tag)] = curve
            for step, value in curve:
                by_step.setdefault(step, {})[self.tagged(tag)] = value
        for step in sorted(by_step):
            self._report_values(trainer, by_step[step], step)

    def _affords(self, trainer: Any, seconds: float, early: bool = True) -> bool:
        """Tell whether the run's budget has so many seconds left for this callback; decided by the first process."""
        return of_rank_zero(trainer, self._session.budget.affords(self.account, seconds, early))

    def _draw(self, trainer: Any, step: int, most: float = math.inf) -> None:
        """Draw the figures, unless the run's figures would then have taken more than ``most`` seconds."""
        if not trainer.is_global_zero or self._drawing + self.account.figures > most:
            return
        started = self._clock.elapsed
        with self._error_policy.guard("drawing a figure"):
            figures = self.quantity.figures(self.record())
            self._explain(trainer, figures, "images", step)
            for tag, draw in figures.items():
                for refusal in report_figure(trainer, self.tagged(tag), draw(), step):
                    self._error_policy.report(refusal, "writing a figure to a logger", step)
        self.account.figures = self._clock.elapsed - started
        self._drawing += self.account.figures

    # ---- small things

    def _point_at(self, trainer: Any, step: int) -> Point:
        generator = torch.Generator().manual_seed((1_000_003 * self.seed + step) % 2**63)
        samples = len(self._samples) if self._samples.complete else self.num_samples
        setup = TrainingSetup.of(trainer, self._collector.chunk)
        beside = self._session.beside(self, step)
        return Point(step, generator, setup, samples, self._error_policy.warn_once, beside=beside)

    def record(self) -> Record:
        """Record of what was measured so far, without prefix."""
        curves = {}
        for tag, curve in self.history.items():
            factor = self._factor(self._untagged(tag))
            curves[self._untagged(tag)] = [(step, value / factor) for step, value in curve]
        return Record(curves, self._epochs, self.unit)

    def _factor(self, tag: str) -> float:
        """Return the factor that converts values of the quantity to the chosen unit."""
        known = self.quantity.describe(tag)
        return in_unit(known.unit, self.unit)[1] if known else 1.0

    def _is_logged(self, tag: str) -> bool:
        name = self._untagged(tag)
        return name != f"{self.quantity.name}/overhead" and self.quantity.is_logged(name)

    @property
    def _samples(self) -> ReferenceSamples:
        return self._collector.samples

    def _untagged(self, tag: str) -> str:
        return tag.removeprefix(self.tagged(""))


def _epoch(trainer: Any, step: int) -> float:
    """Return the epochs passed after so many steps; whole ones if their length is not known."""
    batches = trainer.num_training_batches
    if not batches or not math.isfinite(batches):
        return float(trainer.current_epoch if step else 0)
    return float(step * trainer.accumulate_grad_batches / batches)
