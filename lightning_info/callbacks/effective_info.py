"""``EffectiveInfoCallback``: information in the activations on the scale that the weights set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_info import validation as arguments
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.clock import seconds
from lightning_info.callbacks.error_policy import Refused
from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.functional.distortion import DistortionLevel, quadratic_level, quadratic_power
from lightning_info.functional.effective_information import (
    EffectiveInformation,
    effective_information,
    running_maximum,
)
from lightning_info.functional.standard_error import standard_error
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import flat
from lightning_info.quantities.effective_information.conditional_gaussian import find_linear_layers, linear_noises
from lightning_info.quantities.effective_information.noise_calibration import PASSES, POWER_PASSES, SHARES, find_level
from lightning_info.quantities.effective_information.noisy_activations import (
    NoisyActivations,
    NoisyFeatures,
    noisy_activations,
)
from lightning_info.quantities.effective_information.relative_curvature import (
    NoiseName,
    TooLarge,
    choose_relative_curvature,
    measure_relative_curvature,
)
from lightning_info.quantities.information_plane.features import TARGETS, LayerFeatures, padding_row
from lightning_info.quantities.information_plane.labels import Labels, describe_targets, labels_of
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.quantities.weight_information.curvature import CurvaturePlan, run_plan
from lightning_info.quantities.weight_information.noisy_loss import mean_loss
from lightning_info.replica.activations import Layer
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.layer_selection import LayerNames, find_layers
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import lost_since

FURTHEST_START = 8
"""Factor between the level of a quadratic loss and the first that is tried, at most."""
MOST_UNITS = 512
"""Wider layers become so many random combinations, of which the information is a lower bound too."""
BINS = 30
"""Intervals that continuous targets are cut into, as in InfoPlaneCallback."""
TRIAL_SAMPLES = 64
"""For the forecast of what the estimates cost, which grows with their square."""
_NOISE = {"diagonal": "the diagonal of F", "low_rank": "F, by the exact rows", "full": "all elements of F"}
"""What the user is told of it."""


class EffectiveInfoCallback(InfoCallback):
    r"""Logs the effective information I(X;Z), I(Z;Y) of layers: under the weight noise that the task itself tolerates.

    A deterministic layer keeps all of its input, and bins measure the bins. Here the weights are drawn from
    ``N(w, Σ*)``, ``Σ* = β (N F + diag(β/λ²))⁻¹`` with the Fisher information F or its diagonal and ``λ_i = |w_i|`` for
    each weight, and z is what the layer gives under these draws: every layer is on the one noise scale at which the
    loss rises by a stated **distortion**. The result does not change where layers of a ReLU network are rescaled. A
    weight that is exactly 0, such as a bias at the start, has no noise.

    The estimates are **lower bounds**, from Gaussians fitted to some of the draws and evaluated on others, with their
    standard error (:func:`~lightning_info.functional.effective_information`). Layers are taken
    before their activation function where that is invertible (the same information); of layers with positions the mean
    over them, as in :class:`~lightning_info.InfoPlaneCallback`. Source: Achille, Paolini & Soatto, Definition 3.1.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured), in
    nats; of the first distortion (or of ``beta``):

    - ``effective_info/I_XZ/<layer>``, ``effective_info/I_ZY/<layer>``: at most log N and H(Y); the latter where a
      sample has one target.
    - ``effective_info_stderr/I_XZ/<layer>``, ``effective_info_stderr/I_ZY/<layer>``: standard error over draws and of
      the level that was searched for, without that of the choice of samples.
    - ``effective_info/beta``, ``effective_info/noisy_loss`` (each with ``_stderr``: of the level as that of the
      distortion, 0 for ``beta``; over draws at the level in use), ``effective_info/loss``: the level, and the mean loss
      of a sample with and without noise.
    - ``effective_info/crossing``: by how much a layer's bound lies below that of a later one, at most. Of layers
      through which everything passes the true information cannot; so much the bounds are loose.
    - ``effective_info/overhead``: share of the run's time that this callback took so far.
    - figure ``effective_info/plane``.

    Further distortions have ``effective_info_<distortion>/...``. A distortion that no level reaches is NaN, and said.

    Args:
        layers: As for :class:`~lightning_info.InfoPlaneCallback`, with the same choice by default, so that the curves
            can be laid over each other.
        beta: A level to use at all points, instead of distortions.
        distortion: Rise of the expected loss, nats a sample, at which to measure; one or several. The story depends on
            it. The level is searched in 22 passes over the samples (and eight for its error), from the last point's
            on, at first from that of a quadratic loss.
        draws: Weights drawn for a half of them; ``2 · draws`` in all.
        noise: What stands for F in ``Σ*``: its ``"diagonal"``; ``"low_rank"``, F itself of as many reference samples as
            there is memory for their rows (128 of ten classes, up to 100,000 weights); or ``"full"``, that of all
            reference samples, up to 2048 weights. The diagonal does not know that errors of weights may cancel.
        every_n_epochs: Measure at s = 0 and after epochs n, 2n, ...
        every_n_train_steps: Measure at optimiser steps 0, n, 2n, ... Without an interval: 0, 1, 2, 4, 8, ..., and the
            end of every epoch, as far as ``max_overhead`` allows.
        num_samples: Reference samples: the first that pass in training, kept on the CPU; with several processes an
            equal number from each, which every process then measures.
        reference: Reference samples to use instead (the first ``num_samples`` of them): a Dataset, or tensors such as
            ``(x, y)``; they must look like the batches that ``training_step`` gets.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)``, where the
            ``training_step`` hides them.
        seed: Of the draws; training's random numbers are never touched.
        prefix: Put in front of every tag, ``prefix/effective_info/beta``.
        on_error: A measurement that fails becomes one warning and NaN (``"warn"``), or ends the run (``"raise"``).
        max_overhead: Largest share of the run's time; by default 0.05 without an interval and no limit with one.
        batch_norm: BatchNorm layers use their ``"running"`` statistics, or those of the ``"reference"`` samples at the
            measured weights; the same under the weight noise.
        summary: Print the table at the end of fit, and which layers say nothing.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: sharded strategy, no likelihood or no targets found, layers
            that are not there, module without exact per-sample gradients, too many weights for ``noise``.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import EffectiveInfoCallback

        trainer = Trainer(callbacks=[EffectiveInfoCallback()])
    """

    family = "effective_info"
    moves_weights = True

    _plan: CurvaturePlan | None
    _reader: NoisyFeatures
    _linear: dict[str, str]  # label of a layer -> name of the nn.Linear that gives it
    _has_targets: bool
    _facts: TrainingSetup | None  # of the trainer at the point
    _levels: dict[str, float]  # family -> the last level found
    _last: dict[str, dict[str, EffectiveInformation]]  # family -> layer -> the last point's

    def __init__(
        self,
        layers: str | list[str] | None = None,
        beta: float | None = None,
        distortion: float | Sequence[float] = (0.05, 0.5),
        draws: int = 64,
        noise: Literal["diagonal", "low_rank", "full"] = "diagonal",
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
        if beta is not None:
            arguments.positive_number(owner, "beta", beta, 0.1)
        wanted = [distortion] if isinstance(distortion, (int, float)) else list(distortion)
        for one in wanted:
            arguments.positive_number(owner, "distortion", one, 0.05)
        if not wanted or len({f"{one:g}" for one in wanted}) < len(wanted):
            raise ValueError(f"{owner}: distortion={distortion!r}; give one or several different ones, such as 0.05")
        arguments.positive_integer(owner, "draws", draws, 64)
        if draws < 2:
            raise ValueError(f"{owner}: draws={draws}; a half needs at least 2, and 64 for a tight bound")
        arguments.one_of(owner, "noise", noise, get_args(NoiseName))
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
        self.layers, self.beta, self.distortion, self.draws, self.noise = layers, beta, tuple(wanted), draws, noise
        names = [self.family, *(f"{self.family}_{one:g}" for one in wanted[1:])]
        self._targets = {self.family: None} if beta is not None else dict(zip(names, wanted, strict=True))
        self.tags: tuple[str, ...] = ()
        self.table: tuple[tuple[str, str | None], ...] = ()

    # ---- before the first step

    def _prepare(self, snapshot: ModelSnapshot) -> Mapping[str, str]:
        mean_loss(snapshot)  # needs targets
        names: LayerNames | None = self.layers
        batch = snapshot.to_device(snapshot.groups[0])
        layers, left_out = find_layers(snapshot.module, snapshot.predictor, batch, names)
        layers, left_out = self._continuous(layers, left_out)
        self._reader = NoisyFeatures(tuple(layers), MOST_UNITS, self.seed)
        narrow = [layer for layer in layers if layer.units <= self.draws]
        self._linear = find_linear_layers(snapshot, narrow) if self.noise == "diagonal" else {}
        targets = self._read_targets(snapshot)
        self._has_targets = targets is not None
        try:
            self._plan = plan = self._choose(snapshot)
        except TooLarge as error:
            raise Refused(f"{type(self).__name__}: {error}") from error
        kinds = ("I_XZ", "I_ZY") if self._has_targets else ("I_XZ",)
        labels = [layer.label for layer in layers]
        names_of_a_level = ("beta", "beta_stderr", "noisy_loss", "noisy_loss_stderr", "loss", "crossing")
        self.tags = tuple(
            tag
            for family in self._targets
            for tag in (
                *(f"{family}/{name}" for name in names_of_a_level),
                *(
                    f"{part}/{kind}/{label}"
                    for part in (family, f"{family}_stderr")
                    for kind in kinds
                    for label in labels
                ),
            )
        )
        self.table = tuple((f"{self.family}/I_XZ/{label}", f"{self.family}_stderr/I_XZ/{label}") for label in labels)
        level = (
            f"at beta = {self.beta:g}"
            if self.beta is not None
            else f"where the loss rises by {' and '.join(f'{one:g}' for one in self.distortion)} nats a sample"
        )
        rows = {
            "measures": f"lower bounds of {', '.join(kinds)} in nats under weight noise, {level}; {2 * self.draws} "
            f"draws; lambda_i = |w_i|",
            "layers": "; ".join(f"{layer.label} ({layer.units} units)" for layer in layers),
            "labels": describe_targets(targets, BINS),
            "noise": f"from {_NOISE[self.noise]} of {plan.samples} samples",
        }
        padding, enters = padding_row(layers, snapshot.predictor(snapshot.module, batch))
        if padding:
            rows["padding"] = padding
        if enters:
            self._faults.warn_once(padding, "padding")
        if left_out:
            rows["left out"] = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        return rows

    def _continuous(self, layers: list[Layer], left_out: dict[str, str]) -> tuple[list[Layer], dict[str, str]]:
        """Without layers that give integers, and with why; refused if they were named."""
        why = "it gives integers, and the bounds come from Gaussians; InfoPlaneCallback measures them exactly"
        discrete = {layer.label: why for layer in layers if layer.is_discrete}
        if discrete and self.layers is not None:
            raise Refused(f"{type(self).__name__}: layer {next(iter(discrete))!r} cannot be measured here: {why}")
        return [layer for layer in layers if not layer.is_discrete], left_out | discrete

    def _cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        assert self._plan is not None
        plan = self._plan
        few = replace(snapshot, groups=[take(snapshot.groups[0], slice(0, snapshot.chunk))], statistics=[], _read={})
        generator = torch.Generator().manual_seed(0)
        curvature = seconds(lambda: measure_relative_curvature(plan, few, generator, _sizes(few)), snapshot.device)
        drawing = seconds(lambda: few.read(self._reader), snapshot.device)
        draws = len(self._targets) * (2 * self.draws + (0 if self.beta else PASSES + POWER_PASSES))
        passes = samples / num_samples(few.groups[0]) * (curvature + draws * drawing)
        wide = [min(layer.units, MOST_UNITS) for layer in self._reader.layers]
        trials = [torch.randn(2 * self.draws, TRIAL_SAMPLES, units, generator=generator) for units in wide]
        estimating = seconds(lambda: [effective_information(z) for z in trials], torch.device("cpu"))
        return passes + len(self._targets) * (samples / TRIAL_SAMPLES) ** 2 * estimating

    def _choose(self, snapshot: ModelSnapshot) -> CurvaturePlan:
        samples = len(self._samples) if self._samples.complete else self.num_samples
        return choose_relative_curvature(snapshot, samples, self.noise)

    # ---- a point

    def _point(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._facts = TrainingSetup.of(trainer, self._collector.chunk)
        super()._point(trainer, *args, **kwargs)

    def _measure(self, snapshot: ModelSnapshot, step: int, generator: Generator) -> dict[str, float]:
        assert self._facts is not None
        prior = _sizes(snapshot)
        self._plan, curvature = run_plan(
            self._plan,
            lambda: self._choose(snapshot),
            lambda plan: measure_relative_curvature(plan, snapshot, generator, prior),
        )
        n = self._facts.samples_or(snapshot.size, self._faults)
        h = n * curvature.spectrum.eigenvalues
        loss, labels = mean_loss(snapshot), self._labels(snapshot)
        values = dict.fromkeys(self.tags, math.nan)
        seeds = torch.randint(2**62, (2 * self.draws + PASSES * SHARES // 2,), generator=generator).tolist()

        def noise(seed: int, beta: float) -> Tensor:  # made anew for each use: all draws at once are many times the net
            z = torch.randn(len(prior), generator=torch.Generator().manual_seed(seed))
            return prior * curvature.noise(z, n)(beta, 1.0)

        for family, distortion in self._targets.items():
            values[f"{family}/loss"] = loss
            if distortion is None:
                assert self.beta is not None
                level = DistortionLevel(self.beta, math.nan, 0, is_reached=True, relative_error=0.0)
            else:
                quadratic = quadratic_level(h, torch.ones_like(h), n, distortion)
                last = self._levels.get(family, quadratic)
                # where the loss hardly depends on the weights, as at the start, any level may have been the last
                start = min(max(last, quadratic / FURTHEST_START), quadratic * FURTHEST_START)
                level = find_level(snapshot, noise, iter(seeds[2 * self.draws :]), distortion, start, loss)
            if not level.is_reached:
                self._faults.warn_once(
                    f"no value at step {step} (NaN): no level was found at which weight noise raises the loss by "
                    f"{distortion:g} nats; after {level.evaluations} evaluations beta = {level.beta:.3g} raises it by "
                    f"{level.rise:.3g}. A fixed beta measures all the same",
                    f"{family} not reached",
                )
                continue
            self._levels[family] = level.beta
            noises = (noise(seed, level.beta) for seed in seeds[: 2 * self.draws])
            linear = {}
            if self._linear:  # the noise is independent, and that of z = 1 its deviation
                deviations = prior * curvature.noise(torch.ones(len(prior)), n)(level.beta, 1.0)
                linear = linear_noises(snapshot.module, self._linear.values(), deviations)
            noisy = noisy_activations(snapshot, self._reader, noises, linear)
            variance_error = level.relative_error * quadratic_power(h, torch.ones_like(h), level.beta) / level.power
            values |= self._informations(noisy, family, level, variance_error, labels, step)
        return {tag: value for tag, value in values.items() if tag in self.tags}

    def _informations(
        self,
        noisy: NoisyActivations,
        family: str,
        level: DistortionLevel,
        variance_error: float,
        labels: Labels | None,
        step: int,
    ) -> dict[str, float]:
        values = {
            f"{family}/beta": level.beta,
            f"{family}/beta_stderr": level.beta_stderr,
            f"{family}/noisy_loss": noisy.losses.mean().item(),
            f"{family}/noisy_loss_stderr": standard_error(noisy.losses.cpu()),
        }
        self._last[family] = {}
        for layer in self._reader.layers:
            name, z = layer.label, noisy.units.get(layer.label)
            if z is None or not z.isfinite().all():
                what = "did not run for all samples" if z is None else "has activations that are not finite under noise"
                self._faults.warn_once(f"layer {name!r} {what} at step {step} (NaN)", f"{what} {name}")
                continue
            chosen = slice(None) if labels is None or labels.known is None else labels.known
            y = None if labels is None else labels.y[chosen]
            given = noisy.given_below.get(self._linear.get(name, ""))
            below = None if given is None else (given.mean[:, chosen], given.variance[:, chosen])
            searched = variance_error != 0
            found = effective_information(z[:, chosen], y, below, with_slopes=searched).at_level(variance_error)
            self._last[family][name] = found
            values[f"{family}/I_XZ/{name}"] = found.I_XZ
            values[f"{family}_stderr/I_XZ/{name}"] = found.I_XZ_stderr
            values[f"{family}/I_ZY/{name}"] = found.I_ZY
            values[f"{family}_stderr/I_ZY/{name}"] = found.I_ZY_stderr
        bounds = [found.I_XZ for found in self._last[family].values()]
        values[f"{family}/crossing"] = running_maximum(bounds)[1] if bounds else math.nan
        return values

    def _read_targets(self, snapshot: ModelSnapshot) -> Tensor | None:
        return replace(snapshot, statistics=[], whole=None, _read={}).read(LayerFeatures((), 1, self.seed)).get(TARGETS)

    def _labels(self, snapshot: ModelSnapshot) -> Labels | None:
        targets = self._read_targets(snapshot) if self._has_targets else None
        labels = None if targets is None else labels_of(targets, BINS)
        if targets is not None and labels is None:
            self._faults.warn_once(
                "targets are not finite, or more than half of the samples have one like no other's: no I(Z;Y) (NaN)",
                "targets",
            )
        return labels

    # ---- what is shown

    def _charts(self) -> dict[str, Chart]:
        charts: dict[str, Chart] = {}
        for kind, title in (("I_XZ", "I(X;Z)"), ("I_ZY", "I(Z;Y)")):
            tags = [self._tag(tag) for tag in self.tags if tag.startswith(f"{self.family}/{kind}/")]
            if tags:
                charts[f"{title} by layer, nats (effective information)"] = ("Multiline", tags)
        return charts

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        return {f"{family}/plane": partial(self._plane, family) for family in self._last}

    def _plane(self, family: str) -> Figure:
        curves = []
        for layer in self._reader.layers:
            x, y = (
                dict(self.history.get(self._tag(f"{family}/{kind}/{layer.label}"), ())) for kind in ("I_XZ", "I_ZY")
            )
            last = self._last[family].get(layer.label)
            points = [(step, x[step], y.get(step, math.nan)) for step in sorted(x)]
            curves.append(PlaneCurve(layer.label, points, last is not None and last.is_saturated))
        distortion = self._targets[family]
        level = f"beta = {self.beta:g}" if distortion is None else f"distortion {distortion:g} nats"
        found = list(self._last[family].values())
        return information_plane(
            curves,
            title=f"Effective information, {level}, {2 * self.draws} draws (lower bounds)",
            ceiling_x=found[0].ceiling if found else math.inf,
            ceiling_y=found[0].label_entropy if found else math.inf,
            epochs=self._epochs,
            unit="nats",
            symbol="Z",
        )

    def _closing_text(self) -> str:
        lines = []
        for family, found in self._last.items():
            if lost_since(self.history[self._tag(f"{family}/beta")]) is not None:
                continue
            for what, names in (
                (
                    "at their ceiling log N, so that how much more they hold is not seen (more samples show it)",
                    [name for name, one in found.items() if one.is_saturated],
                ),
                (
                    "at H(Y), which says no more than that the samples are told apart",
                    [name for name, one in found.items() if one.label_is_ceiling],
                ),
            ):
                if names:
                    lines.append(f"{family}: {', '.join(names)} at the end {what}.")
        return "\n".join(lines)

    # ---- state

    def _defining(self) -> Mapping[str, object]:
        return {
            "beta": self.beta and float(self.beta),
            "distortion": float(self.distortion[0]),
            "draws": self.draws,
            "noise": self.noise,
            "seed": self.seed,
        }

    def _state(self) -> dict[str, Any]:
        """What every callback keeps, and the levels that the search goes on from."""
        return {**super()._state(), "levels": dict(self._levels)}

    def _take_up(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_state` gave."""
        super()._take_up(state)
        with self._faults.guard("taking up the levels of the checkpoint"):
            if not self._changes:
                self._levels = {str(family): float(beta) for family, beta in state["levels"].items()}

    def _restart(self) -> None:
        super()._restart()
        self._plan = self._facts = None
        self._reader, self._has_targets = NoisyFeatures((), MOST_UNITS, self.seed), False
        self._linear, self._levels, self._last = {}, {}, {}


def _sizes(snapshot: ModelSnapshot) -> Tensor:
    """``|w|``, the standard deviations of the prior, ``(k,)`` float64; of a complex weight that of each part."""
    return torch.cat([flat(p.detach()) for p in trainable(snapshot.module).values()]).abs().double()
