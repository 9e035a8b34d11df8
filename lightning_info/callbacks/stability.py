"""``StabilityCallback``: what training owes to one sample, told by a twin in lockstep that trains without it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_info import validation as arguments
from lightning_info.callbacks import twins
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.clock import seconds
from lightning_info.callbacks.error_policy import Refused
from lightning_info.figures.stability_paths import stability_paths
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import NotCovered
from lightning_info.quantities.stability.loss_landscape import LossLandscape, picture_of_ends
from lightning_info.quantities.stability.weight_change import (
    fisher_distance,
    flat_weights,
    length,
    mean_output_kl,
    prediction_change,
    sample_loss,
    weight_change,
)
from lightning_info.quantities.stability.weight_trajectory import WeightTrajectory
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.quantities.weight_information.curvature import fisher_products
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.left_out import saves_left_out
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.side_effects import Guard, SideEffectRefused
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.reporting.layout import Chart
from lightning_info.twin import NotSupported, Twin

AGREE = (0.8, 1.25)
"""Output KL by ``½ δᵀFδ``, where the second is a fair account of the first."""
FIGURE_SECONDS, FIGURE_SHARE = 3.0, 0.05
"""What the losses in the figure may take, in seconds or as a share of the run's time."""


class StabilityCallback(InfoCallback):
    r"""Logs how much one training sample changes what is learned: a twin trains in lockstep with it replaced.

    The twin is a second real Trainer, in a thread of its own: the same initial weights, batches, random numbers,
    optimiser, scheduler, precision; but wherever the sample ``index`` appears, the twin gets the sample
    ``replacement``. The user's run is bit-identical to one without, and takes about twice the time and the memory of
    one more model with its optimiser.

    With w the run's weights, w' the twin's, ``δ = w' - w``, N training samples and F the Fisher information at w:

    - ``stability/param_distance``: ``‖δ‖``; ``stability/relative_distance``: ``‖δ‖ / ‖w - w_0‖``.
    - ``stability/fisher_distance``: ``½ δᵀFδ``, nats a sample, over the reference samples.
    - ``stability/output_kl``: the mean of ``KL(p_w(y|x) ‖ p_w'(y|x))``, nats a sample, which the one before is to
      second order; ``stability/kl_ratio``: it by the one before. Outside 0.8-1.25 the change is not small (ReLU
      networks have kinks), and a warning says so.
    - ``stability/loss_gap``: the twin's loss on the replaced sample minus the run's, nats.
    - ``stability/unique_information``: ``N δᵀFδ / (2 beta)``, nats: what the weights know of this sample only.
    - ``stability/overhead``, ``stability/twin_overhead``: share of the run's time that the points, and the twin's
      training, took so far.
    - figure ``stability/paths``, at the end: both paths in the plane of where they start and end.

    Until the replaced sample appears first, the twin must be equal to the run, bit by bit, which is checked at every
    step. That certifies the twin up to there; from there on what could part them for another reason is refused before
    the first step, or found when it happens. A twin that is lost is NaN, with the reason. ``replacement == index``
    replaces nothing and certifies a whole run: every distance is exactly 0.

    With ``num_twins`` of several samples, ``stability/...`` is the mean over the twins, ``stability_stderr/...`` its
    standard error, and ``stability_twin1/...``, ``stability_twin2/...`` are theirs. Source: Achille, Paolini & Soatto,
    section 2.3 and figure 2.

    Args:
        index: The sample to replace, as the training data set numbers it; None: drawn by ``seed``.
        replacement: The sample of the data set in its place; None: drawn by ``seed``.
        beta: Level of the task for ``unique_information``.
        num_twins: How many twins, each with a sample of its own.
        every_n_epochs: Measure at s = 0 and after epochs n, 2n, ...
        every_n_train_steps: Measure at optimiser steps 0, n, 2n, ... Without an interval: 0, 1, 2, 4, 8, ..., and the
            end of every epoch, as far as ``max_overhead`` allows.
        num_samples: Reference samples: the first that pass in training, kept on the CPU. Distances in the weights need
            none and do not wait for them.
        reference: Reference samples to use instead (the first ``num_samples`` of them): a Dataset, or tensors such as
            ``(x, y)``; they must look like the batches that ``training_step`` gets.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)``, where the
            ``training_step`` hides them.
        seed: Of the drawn samples, and of the random augmentation of the replacement.
        prefix: Put in front of every tag, ``prefix/stability/output_kl``.
        on_error: A measurement that fails becomes one warning and NaN (``"warn"``), or ends the run (``"raise"``).
        max_overhead: Largest share of the run's time that the points may take, the twin's training apart; by default
            0.05 without an interval and no limit with one.
        batch_norm: BatchNorm layers use their ``"running"`` statistics, the twin its own, or those of the
            ``"reference"`` samples at the measured weights.
        summary: Print the table at the end of fit.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: what no twin can follow (several processes, callbacks that
            can edit weights, schedulers that follow a metric, data without indices), with every reason; no likelihood
            found; a sample that is not there.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import StabilityCallback

        trainer = Trainer(callbacks=[StabilityCallback(index=7)])
    """

    family = "stability"

    _has_targets: bool
    _no_products: str  # why there is no product with F; empty if there is
    _facts: TrainingSetup | None  # of the trainer at the point
    _snapshots: WeightTrajectory  # of the run and the first twin
    _samples_alone: dict[int, Any]  # twin's number -> a batch of the sample it lacks
    _twin_seconds: float  # that the twins trained so far
    _run: Any  # the trainer, while it trains
    _loss_is_shown: bool  # there was a point since the last twin was lost
    _ending: bool  # training is over, and the twins are still there

    def __init__(
        self,
        index: int | None = None,
        replacement: int | None = None,
        beta: float = 1.0,
        num_twins: int = 1,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        num_samples: int = 256,
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
        for name, sample in (("index", index), ("replacement", replacement)):
            if sample is not None:
                arguments.integer(owner, name, sample, 0)
                if sample < 0:
                    raise ValueError(f"{owner}: {name}={sample}; samples are numbered from 0, for example {name}=0")
        arguments.positive_number(owner, "beta", beta, 1.0)
        arguments.positive_integer(owner, "num_twins", num_twins, 4)
        if num_twins > 1 and index is not None and replacement is not None:
            raise ValueError(
                f"{owner}: num_twins={num_twins} with index={index} and replacement={replacement} are twins of the "
                f"same sample; leave out one of the two, which is then drawn for each twin"
            )
        super().__init__(
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            num_samples=num_samples,
            reference=reference,
            adapter=adapter,
            seed=seed,
            prefix=prefix,
            on_error=on_error,
            max_overhead=max_overhead,
            batch_norm=batch_norm,
            summary=summary,
        )
        self.index, self.replacement, self.beta = index, replacement, beta
        self.twins = tuple(Twin(index, replacement, seed, number) for number in range(num_twins))
        self.tags: tuple[str, ...] = ()
        names = ("param_distance", "relative_distance", "output_kl", "unique_information")
        self.table = tuple(
            (f"stability/{name}", f"stability_stderr/{name}" if num_twins > 1 else None) for name in names
        )

    # ---- the twins' life

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what no twin can follow; have the training loader tell which samples it gives."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._each(lambda twin: twin.install(trainer))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the twins from the weights that training starts from."""
        super().on_train_start(trainer, pl_module)
        if self._active:
            self._run = trainer
            self._each(lambda twin: twin.start(trainer, pl_module))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The twins start the epoch too."""
        self._each(lambda twin: twin.epoch_start(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The twins have the weights of this step; measure if a point is due."""
        self._each(lambda twin: twin.batch_start(trainer, pl_module, batch))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The twins train on the batch."""
        self._each(lambda twin: twin.batch_end(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The twins end the epoch too."""
        self._each(lambda twin: twin.epoch_end(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the end, and end the twins."""
        self._each(lambda twin: twin.finish(trainer, pl_module))
        self._ending = True
        super().on_train_end(trainer, pl_module)
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the twins."""
        self._stop()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the twins."""
        self._stop()

    def _stop(self) -> None:
        for twin in self.twins:
            twin.stop()
        self._run, self._ending = None, False

    def _each(self, act: Callable[[Twin], None]) -> None:
        """Have every twin do its part; without one that trains it is nothing. The time counts as the twins'."""
        started = time.perf_counter()
        try:
            for twin in self.twins:
                act(twin)
        except NotSupported as error:
            raise Refused(f"{type(self).__name__}: {error}") from error
        finally:
            self._twin_seconds += time.perf_counter() - started
        for call in (call for twin in self.twins for call in twin.left_out):
            self._faults.warn_once(
                f"the twin does not save what the module saves while it trains, so that the files hold the run's: "
                f"{call} is left out, and so is all that the twin would save, print or log",
                "left out",
            )

    # ---- before the first step

    def _prepare(self, snapshot: ModelSnapshot) -> Mapping[str, str]:
        try:
            fisher_products(snapshot).check()
            self._no_products = ""
        except NotCovered as error:
            self._no_products = str(error)
        self._has_targets = (
            snapshot.predictor(snapshot.module, snapshot.to_device(snapshot.groups[0])).targets is not None
        )
        names = ["param_distance", "relative_distance", "output_kl"]
        names += ["loss_gap"] if self._has_targets else []
        names += [] if self._no_products else ["fisher_distance", "unique_information"]
        families = ["stability"]
        if len(self.twins) > 1:
            families += ["stability_stderr", *map(twins.family_of, range(len(self.twins)))]
        self.tags = ("stability/twin_overhead", *(f"{family}/{name}" for family in families for name in names))
        rows = {
            "measures": f"{', '.join(names)} (information in nats, beta = {self.beta:g})",
            "twins": f"{len(self.twins)}, trained in lockstep with the run: each takes about the run's time once more, "
            f"and the memory of one more model and optimiser",
            "replaced": "; ".join(map(twins.replaced, self.twins)),
        }
        if self._no_products:
            rows["left out"] = f"fisher_distance, unique_information: {self._no_products}"
        return rows

    def _cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        few = replace(snapshot, groups=[take(snapshot.groups[0], slice(0, snapshot.chunk))])
        cost = seconds(lambda: mean_output_kl(few, few), snapshot.device)
        if not self._no_products:
            weights = flat_weights(snapshot.module).float()
            cost += seconds(lambda: fisher_distance(few, weights), snapshot.device)
        return len(self.twins) * cost * samples / num_samples(few.groups[0])

    # ---- a point

    def _point(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._facts = TrainingSetup.of(trainer, self._collector.chunk)
        super()._point(trainer, *args, **kwargs)

    def _take(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """Distances in the weights do not wait for the reference samples."""
        if self._samples.complete:
            super()._take(trainer, pl_module, batch_idx)
            return
        assert self._step is not None
        started = self._clock.elapsed
        values = dict.fromkeys(("stability/param_distance", "stability/relative_distance"), math.nan)
        with self._faults.guard("the distance in the weights"):
            try:
                found = [self._values_of(number, pl_module, None) for number in range(len(self.twins))]
                values |= twins.together(found)
            except Unavailable as error:
                values = dict.fromkeys(self.tags, math.nan)
                self._faults.warn_once(f"no value at step {self._step} (NaN): {error}", kind="no value")
        self._record(trainer, self._step, values | self._twin_overhead, started)

    def _is_due(self, trainer: Any, step: int, epochs: int | None) -> bool:
        """The first step at which no twin is left is a point too, so that no curve ends in an earlier value."""
        is_due = super()._is_due(trainer, step, epochs)
        if not trainer.fast_dev_run and all(twin.reason is not None for twin in self.twins):
            is_due, self._loss_is_shown = is_due or not self._loss_is_shown, True
        return is_due

    def _preflight(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        try:
            with self._harmless():
                return super()._preflight(trainer, pl_module, batch)
        except Unavailable as error:
            raise Refused(f"{type(self).__name__}: {error}") from error

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """What the user's code does in replicas, of the twin too, saves nothing."""
        guard = Guard("a measurement")
        try:
            with saves_left_out(), guard.acting():
                yield
        except SideEffectRefused as error:
            raise Unavailable(str(error)) from error
        finally:
            guard.clean_up()

    def _measure(self, snapshot: ModelSnapshot, step: int, generator: Generator) -> dict[str, float]:
        with self._harmless():
            found = [self._values_of(number, snapshot.module, snapshot) for number in range(len(self.twins))]
        values = dict.fromkeys(self.tags, math.nan) | self._twin_overhead | twins.together(found)
        ratios = [one["kl_ratio"] for one in found if "kl_ratio" in one]
        worst = max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-300))), default=1.0)
        if not AGREE[0] <= worst <= AGREE[1]:
            self._faults.warn_once(
                f"at step {step} the measured output KL is {worst:.3g} times its second-order form ½δᵀFδ: the two are "
                f"not near enough for fisher_distance and unique_information to tell what the outputs do (a ReLU "
                f"network has kinks, BatchNorm statistics of its own). Logged as stability/kl_ratio; said once",
                "ratio",
            )
        return values

    def _values_of(self, number: int, module: Any, snapshot: ModelSnapshot | None) -> dict[str, float]:
        """What tells one twin from the run, by name; without a snapshot only what needs no samples."""
        twin = self.twins[number]
        if twin.error is not None and self.on_error == "raise":
            raise RuntimeError(twin.reason) from twin.error
        if twin.reason is not None:
            if len(self.twins) == 1:
                raise Unavailable(twins.lost(twin))
            self._faults.warn_once(f"twin {number + 1}: {twins.lost(twin)}", f"lost {number}")
            return {}
        other = twin.weights()
        change = weight_change(module, other)
        if number == 0:
            assert self._step is not None
            self._snapshots.add(self._step, module, other)
        distance = length(change)
        values = {"param_distance": distance, "relative_distance": self._relative(distance, module)}
        if twin.first_difference_step is None:  # equal bit by bit, which the twin has checked at this step
            rest = {name for tag in self.tags for family, name in [tag.split("/")] if family == "stability"}
            return dict.fromkeys(rest - {"twin_overhead"}, 0.0) | values
        if snapshot is not None:
            values |= self._predictions(number, snapshot, other, change)
        return values

    def _predictions(self, number: int, snapshot: ModelSnapshot, twin: Any, change: Tensor) -> dict[str, float]:
        assert self._facts is not None
        other = self._new_snapshot(twin.trainer, twin, snapshot.groups)
        if self.batch_norm == "reference":
            other.use_reference_statistics()
        n = self._facts.samples_or(snapshot.size, self._faults)
        values = prediction_change(snapshot, other, change, n, self.beta, has_products=not self._no_products)
        if self._has_targets:
            if number not in self._samples_alone:
                self._samples_alone[number] = self._samples.laid(self.twins[number].replaced_sample(self._run))
            sample = self._samples_alone[number]
            values["loss_gap"] = sample_loss(other, sample) - sample_loss(snapshot, sample)
        return values

    def _relative(self, distance: float, module: Any) -> float:
        relative = self._snapshots.relative(distance, module)
        if relative is None:
            self._faults.warn_once(
                "no relative_distance (NaN): the weights at the start are not known, as the run goes on from a "
                "checkpoint without them, or other parameters are trained now",
                "start",
            )
        return math.nan if relative is None else relative

    @property
    def _twin_overhead(self) -> dict[str, float]:
        return {"stability/twin_overhead": self._twin_seconds / self._clock.elapsed}

    # ---- what is shown

    def _charts(self) -> dict[str, Chart]:
        if self._no_products:
            return {}
        tags = [self._tag(f"stability/{name}") for name in ("output_kl", "fisher_distance")]
        return {"Output KL and ½ δᵀFδ, nats a sample": ("Multiline", tags)}

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        """The paths of the first twin, when they have an end."""
        twin = self.twins[0]
        if not self._ending or twin.reason is not None or self._snapshots.last_step != self._step:
            return {}
        try:
            with self._harmless():
                picture = self._picture(twin)
            return {"stability/paths": partial(self._paths, picture)}
        except (ValueError, Unavailable) as error:  # no weight has moved, say
            self._faults.warn_once(f"no figure of the paths: {error}", "figure")
            return {}

    def _picture(self, twin: Twin) -> LossLandscape:
        assert self._facts is not None
        snapshot = self._new_snapshot(self._run, self._run.lightning_module, self._samples.groups, private=True)
        if self.batch_norm == "reference":
            snapshot.use_reference_statistics()
        n = self._facts.samples_or(snapshot.size, self._faults)
        most = max(FIGURE_SECONDS, FIGURE_SHARE * self._clock.elapsed)
        return picture_of_ends(snapshot, twin.weights(), self._snapshots, self.beta, n, most)

    def _paths(self, found: LossLandscape) -> Figure:
        twin, steps = self.twins[0], found.paths.steps
        title = f"Training with sample {twin.index}, and with sample {twin.replacement} in its place"
        return stability_paths(found, title=f"{title}; steps {steps[0]} to {steps[-1]}", caption=f"β = {self.beta:g}")

    def _closing_text(self) -> str:
        lines = [f"stability: {twins.replaced(twin)}{twins.since(twin)}." for twin in self.twins]
        return "\n".join(lines)

    # ---- state

    def _defining(self) -> Mapping[str, object]:
        settings = {"index": self.index, "replacement": self.replacement, "num_twins": len(self.twins)}
        return {**settings, "beta": float(self.beta)}

    def _state(self) -> dict[str, Any]:
        """What every callback keeps, points of the paths, and the twins."""
        return {
            **super()._state(),
            "snapshots": self._snapshots.state_dict(),
            "twin_seconds": self._twin_seconds,
            "twins": [twin.state_dict() for twin in self.twins],
        }

    def _take_up(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_state` gave."""
        super()._take_up(state)
        with self._faults.guard("taking up the twins of the checkpoint"):
            self._snapshots.load_state_dict(state["snapshots"])
            self._twin_seconds = float(state["twin_seconds"])
            for twin, kept in zip(self.twins, state["twins"], strict=False):
                twin.load_state_dict(kept)

    def _restart(self) -> None:
        super()._restart()
        self._snapshots = WeightTrajectory(self.seed)
        self._has_targets, self._no_products = False, ""
        self._facts = self._run = None
        self._ending = False
        self._samples_alone = {}
        self._twin_seconds = 0.0
        self._loss_is_shown = False
