"""The frame of every callback: schedule, reference samples, isolation, error policy, history, reporting."""

from __future__ import annotations

import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info.callbacks import arguments
from lightning_info.callbacks.schedule import Schedule
from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.samples import num_samples, take
from lightning_info.probing.batch_norm import BatchNormStatistics, on_batch_statistics
from lightning_info.probing.inert import StandInTrainer
from lightning_info.probing.isolation import isolated
from lightning_info.probing.prediction import ADAPTER_LINES, Adapter, NoPrediction, Predictor
from lightning_info.probing.probe import Probe, Unavailable
from lightning_info.probing.reference import ReferenceSamples
from lightning_info.probing.replica import NotCopyable, replicate
from lightning_info.reporting.figures import report_figure
from lightning_info.reporting.layout import Chart, write_layout
from lightning_info.reporting.scalars import report_scalars
from lightning_info.reporting.table import summary_table

FIGURE_SHARE = 0.02
"""Figures are dear (0.2 s): at points 4, 8, 16, ... within this share of the run's time, and at the end of fit."""
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel", "XLAFSDP")


class InfoCallback(Callback, ABC):
    """What all callbacks of this package share; see the concrete ones for use.

    A point at step s describes the weights after s optimiser steps. It is measured in ``on_train_batch_start`` of the
    first batch of s, on a replica, over the reference samples.

    Attributes:
        history: ``tag -> [(step, value), ...]`` of everything measured, NaN where a point has no value.
    """

    tags: ClassVar[tuple[str, ...]]
    """Scalars that every measurement gives."""
    table: ClassVar[tuple[tuple[str, str | None], ...]]
    """Rows of the table at the end of fit: a tag and the tag of its standard error."""

    _prepared: bool  # the check before the first step is done
    _initial: Probe | None  # the module at s = 0, until the reference samples are complete
    _step: int | None  # of the last decision
    _measured: int | None  # step of the last point

    def __init__(
        self,
        *,
        every_n_epochs: int | None,
        every_n_train_steps: int | None,
        num_samples: int,
        reference: Dataset[Any] | Sequence[Tensor] | None,
        adapter: Adapter | None,
        seed: int,
        prefix: str | None,
        on_error: Literal["warn", "raise"],
        max_overhead: float | None,
        batch_norm: BatchNormStatistics,
        summary: bool,
    ) -> None:
        owner = type(self).__name__
        if every_n_epochs is not None and every_n_train_steps is not None:
            raise ValueError(
                f"{owner}: every_n_epochs={every_n_epochs} and every_n_train_steps={every_n_train_steps} exclude each "
                f"other; give one, for example every_n_epochs=1"
            )
        for name, interval in (
            ("every_n_epochs", every_n_epochs),
            ("every_n_train_steps", every_n_train_steps),
        ):
            if interval is not None:
                arguments.positive_integer(owner, name, interval, 1)
        arguments.positive_integer(owner, "num_samples", num_samples, 256)
        arguments.one_of(owner, "on_error", on_error, ("warn", "raise"))
        arguments.one_of(owner, "batch_norm", batch_norm, get_args(BatchNormStatistics))
        if max_overhead is not None:
            arguments.positive_number(owner, "max_overhead", max_overhead, 0.05)
        if adapter is not None and not callable(adapter):
            raise ValueError(
                f"{owner}: adapter must be a function (module, batch) -> (outputs, targets), got {adapter!r}"
            )
        self.num_samples, self.reference, self.adapter = num_samples, reference, adapter
        self.seed, self.prefix, self.on_error, self.summary = seed, prefix, on_error, summary
        self.batch_norm = batch_norm
        self.history: dict[str, list[tuple[int, float]]] = {}
        self._schedule = Schedule(every_n_epochs, every_n_train_steps, max_overhead)
        self._active = False
        self._restart()

    @abstractmethod
    def _prepare(self, probe: Probe) -> str:
        """Check before the first step that a module can be measured, on a few samples; say how, in a few words.

        Raises:
            NoPrediction: No usable predictive distribution.
            NotCovered: No exact gradients.
        """

    @abstractmethod
    def _measure(self, probe: Probe, generator: torch.Generator) -> dict[str, float]:
        """All values of a point, by tag without prefix."""

    def _charts(self) -> dict[str, Chart]:
        """Charts of several tags, by title."""
        return {}

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        """Figures by tag without prefix, drawn from the history."""
        return {}

    def _is_logged(self, tag: str) -> bool:
        """Whether a value goes to the loggers, or only to the history."""
        return True

    # ---- hooks

    @property
    def state_key(self) -> str:
        """Keeps two instances with different prefixes apart in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """History and position, as plain Python values."""
        return {
            "history": {tag: [list(point) for point in curve] for tag, curve in self.history.items()},
            "step": self._step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up history and position."""
        self.history = {tag: [(int(s), float(v)) for s, v in curve] for tag, curve in state_dict["history"].items()}
        self._step = state_dict["step"]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before anything is trained."""
        if stage != "fit":
            return
        strategy = type(trainer.strategy).__name__
        if strategy.startswith(_SHARDED):
            raise MisconfigurationException(
                f"{type(self).__name__}: {strategy} shards the parameters, so that no process can compute a sample's "
                f"gradient; train with strategy='ddp' or remove the callback"
            )
        twins = [c for c in trainer.callbacks if type(c) is type(self) and c.prefix == self.prefix]
        if len(twins) > 1:
            raise MisconfigurationException(
                f"{type(self).__name__}: {len(twins)} of them write the same tags; "
                f"give each a prefix, for example {type(self).__name__}(prefix='second')"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock; a run that starts at step 0 starts a new history."""
        self._active = not trainer.barebones
        if not self._active:
            return
        if _steps_taken(trainer) == 0:
            self.history.clear()
            self._restart()
        self._started = time.perf_counter()
        self._schedule.spent = 0.0
        if not trainer.loggers and not trainer.fast_dev_run:
            rank_zero_warn(
                f"{type(self).__name__}: the Trainer has no logger; values go to callback.history and "
                f"trainer.callback_metrics only"
            )
        ours = self._ours(trainer)
        if self is ours[0]:  # one layout for all
            try:
                write_layout(trainer, {c._tag(title): chart for c in ours for title, chart in c._charts().items()})
            except Exception as error:
                self._failed(error, "writing the chart layout")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Collect reference samples and measure if a point is due."""
        if not self._active:
            return
        with self._timed():
            step = _steps_taken(trainer)
            epochs = trainer.current_epoch if batch_idx == 0 and trainer.current_epoch > 0 else None
            if not self._samples.complete:
                self._collect(trainer, pl_module, batch, new_epoch=epochs is not None)
            if step == self._step:
                return
            self._step = step
            if not self._is_due(trainer, step, epochs):
                return
            if self._samples.complete:
                self._point(trainer, pl_module, step)
            elif step == 0:
                self._initial = self._probe(trainer, pl_module, [], snapshot=True)
            else:
                self._left_out.append(step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the end, draw the figures, print the table."""
        if not self._active or (not self._samples.complete and not self._samples.groups):
            return
        with self._timed():
            if not self._samples.complete:
                self._close_samples(trainer, pl_module)
            step = _steps_taken(trainer)
            if step != self._measured and not trainer.fast_dev_run:
                self._point(trainer, pl_module, step, last=True)
            elif self._measured is not None:
                self._draw(trainer, self._measured)
        self._print_table(trainer)

    # ---- reference samples

    def _collect(self, trainer: Any, pl_module: Any, batch: Any, new_epoch: bool) -> None:
        first = not self._prepared
        if first:
            self._chunk = max(1, num_samples(batch))
            self._samples.size = math.ceil(self.num_samples / (trainer.world_size if self.reference is None else 1))
            if self.reference is not None:
                with isolated(pl_module.device):
                    self._samples.fill(self.reference)
            self._preflight(trainer, pl_module, self._samples.groups[0] if self._samples.complete else batch)
            self._prepared = True
        if self._samples.complete:
            return
        if first or not new_epoch:
            self._samples.add(batch)
        full = self._samples.full or bool(trainer.fast_dev_run)
        if trainer.world_size > 1:
            full = trainer.strategy.reduce_boolean_decision(full, all=True)
        if full or (new_epoch and not first):
            self._close_samples(trainer, pl_module)

    def _close_samples(self, trainer: Any, pl_module: Any) -> None:
        self._samples.close(trainer.world_size)
        if self._initial is not None:
            self._initial.groups = self._samples.groups
            self._point(trainer, pl_module, 0, probe=self._initial)
            self._initial = None
        if self._left_out:
            rank_zero_info(
                f"{type(self).__name__}: the points due at steps {', '.join(map(str, self._left_out))} were left out, "
                f"because the {len(self._samples)} reference samples were not complete; a smaller num_samples, or "
                f"reference=..., has them"
            )

    def _preflight(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        """Refuse, before the first step, a module that cannot be measured."""
        owner, module = type(self).__name__, type(pl_module).__name__
        try:
            with isolated(pl_module.device):
                probe = self._probe(trainer, pl_module, [take(batch, slice(0, CHECK_SAMPLES))])
                try:
                    prediction = probe.predictor(probe.module, probe.to_device(probe.groups[0]))
                except (NoPrediction, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    source = "the adapter" if self.adapter else f"{module}.training_step"
                    raise NoPrediction(
                        f"{source} fails on a copy of the module: {type(error).__name__}: {error}"
                    ) from error
                how = self._prepare(probe)
        except NoPrediction as error:
            raise MisconfigurationException(
                f"{owner}: {error}. Tell it what the module predicts:\n\n{ADAPTER_LINES.format(callback=owner)}"
            ) from error
        except NotCopyable as error:
            raise MisconfigurationException(
                f"{owner} measures on a copy of the module, but {error}. Leave it out of the copy by deleting it in "
                f"{module}.__getstate__"
            ) from error
        except NotCovered as error:
            raise MisconfigurationException(
                f"{owner}: no engine gives exact per-sample gradients of {module}: {error}"
            ) from error
        except Exception as error:
            self._failed(error, "the check before the first step")
            return
        rank_zero_info(
            f"{owner}: {prediction.likelihood} outputs {tuple(prediction.outputs.shape[1:])} a sample; {how}"
        )
        if probe.batch_norms and self.batch_norm == "running":
            rank_zero_info(
                f"{owner}: BatchNorm is measured with its running statistics, which lag behind the weights in the "
                f"first steps; batch_norm='reference' takes those of the reference samples instead"
            )
        if abs(prediction.extra_loss) > 1e-5:
            rank_zero_info(
                f"{owner}: the loss of {module}.training_step holds {prediction.extra_loss:.4g} beyond the likelihood "
                f"(penalties, a scale); only the predictive distribution is measured"
            )

    # ---- measuring

    def _is_due(self, trainer: Any, step: int, epochs: int | None) -> bool:
        if step == 0 or trainer.fast_dev_run:
            return step == 0
        if not self._schedule.falls_on(step, epochs):
            return False
        if self._schedule.budget is None:
            return True
        due = self._schedule.affords(time.perf_counter() - self._started)
        return bool(trainer.strategy.broadcast(due)) if trainer.world_size > 1 else due

    def _probe(self, trainer: Any, pl_module: Any, groups: list[Any], snapshot: bool = False) -> Probe:
        stand_in = StandInTrainer(trainer)
        replica = replicate(pl_module, snapshot=snapshot, trainer=trainer, stand_in=stand_in)
        batch_norms: list[Any] = [replica.get_submodule(name) for name in on_batch_statistics(pl_module)]
        predictor = Predictor(stand_in, self.adapter)
        return Probe(replica, predictor, groups, self._chunk, pl_module.device, batch_norms)

    def _point(
        self,
        trainer: Any,
        pl_module: Any,
        step: int,
        probe: Probe | None = None,
        last: bool = False,
    ) -> None:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed((1_000_003 * self.seed + step) % 2**63)
        try:
            with isolated(pl_module.device):
                probe = probe or self._probe(trainer, pl_module, self._samples.groups)
                if self.batch_norm == "reference":
                    probe.use_reference_statistics()
                values = self._measure(probe, generator)
        except Unavailable as error:
            self._warn_once(f"{type(self).__name__}: no value at step {step} (NaN): {error}", key=str(type(error)))
            values = self._no_values()
        except Exception as error:
            self._failed(error, f"the measurement at step {step}")
            values = self._no_values()
        values = {self._tag(tag): value for tag, value in values.items()}
        for tag, value in values.items():
            self.history.setdefault(tag, []).append((step, value))
        self._measured = step
        self._points += 1
        logged = {tag: value for tag, value in values.items() if self._is_logged(tag)}
        for refusal in report_scalars(trainer, logged, step):
            self._failed(refusal, f"writing to a logger at step {step}")
        self._schedule.last = time.perf_counter() - started
        doubled = self._points >= 4 and self._points & (self._points - 1) == 0
        if last or (doubled and self._drawing <= FIGURE_SHARE * (started - self._started)):
            self._draw(trainer, step)

    def _draw(self, trainer: Any, step: int) -> None:
        started = time.perf_counter()
        try:
            for tag, draw in self._figures().items():
                report_figure(trainer, self._tag(tag), draw(), step)
        except Exception as error:
            self._failed(error, f"drawing a figure at step {step}")
        self._drawing += time.perf_counter() - started

    def _no_values(self) -> dict[str, float]:
        head = self._tag("")
        known = (tag.removeprefix(head) for tag in self.history)
        return dict.fromkeys((*self.tags, *known), math.nan)

    def _failed(self, error: Exception, where: str) -> None:
        """A fault never ends the run, unless the user asked for it: one warning."""
        if self.on_error == "raise":
            raise error
        trace = "".join(traceback.format_exception(error))
        self._warn_once(
            f"{type(self).__name__}: {where} failed and training goes on; later failures of this kind are not shown.\n"
            f"{trace}",
            key=f"{type(error).__name__}",
        )

    def _warn_once(self, message: str, key: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            rank_zero_warn(message)

    # ---- small things

    def _restart(self) -> None:
        self._samples = ReferenceSamples(self.num_samples)
        self._prepared = False
        self._initial = None
        self._left_out: list[int] = []
        self._step = None
        self._measured = None
        self._points = 0
        self._drawing = 0.5  # seconds spent on figures; the first one is expected to take half a second
        self._warned: set[str] = set()

    def _tag(self, tag: str) -> str:
        return f"{self.prefix}/{tag}" if self.prefix else tag

    @staticmethod
    def _ours(trainer: Any) -> list[InfoCallback]:
        return [c for c in trainer.callbacks if isinstance(c, InfoCallback)]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._schedule.spent += time.perf_counter() - started

    def _print_table(self, trainer: Any) -> None:
        """The last of our callbacks prints one table for all."""
        ours = [c for c in self._ours(trainer) if c.summary]
        if not ours or self is not ours[-1] or not trainer.is_global_zero:
            return
        history = {tag: curve for c in ours for tag, curve in c.history.items()}
        rows = [
            (c._tag(tag), error and c._tag(error)) for c in ours for tag, error in c.table if c._tag(tag) in c.history
        ]
        print("\n" + summary_table(history, rows))


def _steps_taken(trainer: Any) -> int:
    """Batches after which the optimisers stepped; two optimisers count once, accumulated batches do not."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)
