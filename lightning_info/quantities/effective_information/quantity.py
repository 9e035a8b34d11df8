"""``EffectiveInformationOfLayers``: I(X;Z), I(Z;Y) of layers under weight noise at a stated distortion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from lightning_info import validation
from lightning_info.functional.distortion import DistortionLevel, quadratic_level, quadratic_power
from lightning_info.functional.effective_information import (
    EffectiveInformation,
    crossed,
    effective_information,
    running_maximum,
)
from lightning_info.functional.standard_error import standard_error
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import flat
from lightning_info.quantities.effective_information import pictures
from lightning_info.quantities.effective_information.ceilings import at_ceilings
from lightning_info.quantities.effective_information.conditional_gaussian import find_linear_layers, linear_noises
from lightning_info.quantities.effective_information.cost_forecast import (
    seconds_of_curvature,
    seconds_of_estimates,
    seconds_of_passes,
)
from lightning_info.quantities.effective_information.descriptions import DESCRIPTIONS
from lightning_info.quantities.effective_information.label_axis import LabelAxis
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
from lightning_info.quantities.information_plane.features import rows_of_layers
from lightning_info.quantities.information_plane.labels import Labels, describe_targets, labels_of
from lightning_info.quantities.quantity import NotMeasurable, Point, Quantity, Record
from lightning_info.quantities.weight_information.curvature import CurvaturePlan
from lightning_info.quantities.weight_information.loss_rise import LossRise
from lightning_info.quantities.weight_information.noisy_loss import has_loss, mean_loss
from lightning_info.quantities.weight_information.run_plan import run_plan
from lightning_info.replica.activations import Layer
from lightning_info.replica.layer_selection import LayerNames, find_layers
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import lost_since

FURTHEST_START = 8
"""Largest factor between the level of a quadratic loss and the first level that is tried."""
MOST_UNITS = 512
"""Number of random combinations to which wider layers are reduced; their information is a lower bound too."""
BINS = 30
"""Number of intervals for continuous targets, as in InfoPlaneCallback."""
FEWEST_DRAWS = 8
"""Smallest number of draws (half of all) to which a point is reduced to be cheaper."""
LabelInformation = Literal["noisy", "decoder"]
_NOISE = {"diagonal": "the diagonal of F", "low_rank": "F, by its exact factor", "full": "all elements of F"}
"""Text for the user, by kind of noise."""


class EffectiveInformationOfLayers(Quantity):
    """See :class:`~.EffectiveInfoCallback` for the arguments and values."""

    name = "effective_info"
    unit = "nats"
    descriptions = DESCRIPTIONS
    moves_weights = True

    def __init__(
        self,
        layers: str | list[str] | None,
        beta: float | None,
        distortion: float | Sequence[float],
        draws: int,
        noise: NoiseName,
        label_information: LabelInformation,
        seed: int,
    ) -> None:
        self.layers, self.beta, self.draws, self.noise, self.seed = layers, beta, draws, noise, seed
        self.label_information = label_information
        self.distortion = (distortion,) if isinstance(distortion, (int, float)) else tuple(distortion)
        searched = 0 if beta is not None else PASSES + POWER_PASSES
        levels = 1 if beta is not None else len(self.distortion)
        self.least_passes = levels * (2 * FEWEST_DRAWS + searched) / 3  # forward passes are a third of whole ones
        self.reset()

    @override
    def check(self, owner: str) -> None:
        validation.layers(owner, self.layers)
        if self.beta is not None:
            validation.positive_number(owner, "beta", self.beta, 0.1)
        for one in self.distortion:
            validation.positive_number(owner, "distortion", one, 0.05)
        if not self.distortion or len({f"{one:g}" for one in self.distortion}) < len(self.distortion):
            raise ValueError(
                f"{owner}: distortion={self.distortion!r}; give one or several different ones, such as 0.05"
            )
        validation.positive_integer(owner, "draws", self.draws, 64)
        if self.draws < 2:
            raise ValueError(f"{owner}: draws={self.draws}; a half needs at least 2, and 64 for a tight bound")
        validation.one_of(owner, "noise", self.noise, get_args(NoiseName))
        validation.one_of(owner, "label_information", self.label_information, get_args(LabelInformation))
        names = [self.name, *(f"{self.name}_{one:g}" for one in self.distortion[1:])]
        self._targets = {self.name: None} if self.beta is not None else dict(zip(names, self.distortion, strict=True))

    @override
    def reset(self) -> None:
        self.tags, self.table = (), ()
        self._draws = self.draws  # in use
        self._plan: CurvaturePlan | None = None
        self._features, self._has_targets = NoisyFeatures((), MOST_UNITS, self.seed), False
        self._label_axis = LabelAxis()
        self._has_loss = True
        self._crossed: set[str] = set()
        self._linear: dict[str, str] = {}  # label of a layer -> name of the nn.Linear that gives it
        self._levels: dict[str, float] = {}  # family -> the last level found
        self._last: dict[str, dict[str, EffectiveInformation]] = {}  # family -> layer -> the last point's

    # ---- before the first step

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        self._has_loss = has_loss(snapshot)
        if self._has_loss:
            mean_loss(snapshot)  # the targets must fit the outputs
        names: LayerNames | None = self.layers
        batch = snapshot.to_device(snapshot.groups[0])
        layers, left_out = find_layers(snapshot.module, snapshot.predictor, batch, names, before=True)
        layers, left_out = self._continuous(layers, left_out)
        self._features = NoisyFeatures(tuple(layers), MOST_UNITS, self.seed)
        narrow = [layer for layer in layers if layer.units <= self.draws]
        self._linear = find_linear_layers(snapshot, narrow) if self.noise == "diagonal" else {}
        of_decoders = layers if self.label_information == "decoder" else ()
        self._label_axis = LabelAxis(snapshot, of_decoders, point.num_samples)
        targets = self._label_axis.targets(snapshot)
        self._has_targets = targets is not None
        try:
            self._plan = plan = self._choose(snapshot, point)
        except TooLarge as error:
            raise NotMeasurable(str(error)) from error
        kinds = ("I_XZ", "I_ZY") if self._has_targets else ("I_XZ",)
        labels = [layer.label for layer in layers]
        losses = ("noisy_loss", "noisy_loss_stderr", "loss") if self._has_loss else ()
        names_of_a_level = ("beta", "beta_stderr", *losses, "crossing")
        of_layers = [f"{kind}/{label}" for kind in kinds for label in labels]
        self.tags = tuple(
            tag
            for family in self._targets
            for tag in (
                *(f"{family}/{name}" for name in (*names_of_a_level, *of_layers)),
                *(f"{family}_stderr/{name}" for name in of_layers),
            )
        )
        self.tags += self._label_axis.tags
        self.table = tuple((f"{self.name}/I_XZ/{label}", f"{self.name}_stderr/I_XZ/{label}") for label in labels)
        level = (
            f"at beta = {self.beta:g}"
            if self.beta is not None
            else f"{'loss' if self._has_loss else 'KL divergence of the predictions'} up by "
            f"{' and '.join(f'{one:g}' for one in self.distortion)} nats"
        )
        rows = {
            "measures": f"lower bounds of {', '.join(kinds)} in nats, {level}; under weight noise, {2 * self._draws} "
            f"draws; lambda_i = |w_i|",
            "layers": "; ".join(f"{layer.label} ({layer.units} units)" for layer in layers),
            "labels": describe_targets(targets, BINS),
            "noise": f"from {_NOISE[self.noise]} of {plan.samples} samples",
        }
        if not self._has_loss:
            rows["targets"] = "none, so I_ZY, loss and noisy_loss are left out"
        return rows | rows_of_layers(layers, snapshot.predictor(snapshot.module, batch), left_out, point.warn)

    def _continuous(self, layers: list[Layer], left_out: dict[str, str]) -> tuple[list[Layer], dict[str, str]]:
        """Leave out layers that give integers, with the reason; refuse them if they were named."""
        why = "it gives integers, and the bounds come from Gaussians; InfoPlaneCallback measures them exactly"
        discrete = {layer.label: why for layer in layers if layer.is_discrete}
        if discrete and self.layers is not None:
            raise NotMeasurable(f"layer {next(iter(discrete))!r} cannot be measured here: {why}")
        return [layer for layer in layers if not layer.is_discrete], left_out | discrete

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        assert self._plan is not None
        draws, searched = 2 * self._draws, self.beta is None
        curvature = seconds_of_curvature(self._plan, snapshot, samples, _sizes(snapshot))
        widths = {layer.label: min(layer.units, MOST_UNITS) for layer in self._features.layers}
        passes = seconds_of_passes(snapshot, samples, self._features, self._linear.values(), draws, searched)
        estimates = seconds_of_estimates(widths, self._linear, (draws, samples), searched)
        decoders = self._label_axis.seconds(snapshot, samples)
        return curvature + len(self._targets) * (passes + estimates) + decoders

    def cheaper(self) -> str:
        """Make points about half as expensive from now on, with a larger error, which is reported.

        Returns:
            What is reduced, in words; empty if nothing can be.
        """
        if self._draws <= FEWEST_DRAWS:
            return ""
        before, self._draws = self._draws, max(FEWEST_DRAWS, self._draws // 2)
        return f"{2 * self._draws} draws of the weights instead of {2 * before}"

    def _choose(self, snapshot: ModelSnapshot, point: Point) -> CurvaturePlan:
        return choose_relative_curvature(snapshot, point.num_samples, self.noise)

    # ---- a point

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        prior = _sizes(snapshot)
        self._plan, curvature = run_plan(
            self._plan,
            lambda: self._choose(snapshot, point),
            lambda plan: measure_relative_curvature(plan, snapshot, point.generator, prior),
        )
        n = point.training_samples(snapshot.size)
        h = n * curvature.spectrum.eigenvalues
        loss, labels = mean_loss(snapshot) if self._has_loss else None, self._labels(snapshot, point)
        snapshot = snapshot.in_larger_chunks()
        values = dict.fromkeys(self.tags, math.nan) | self._label_axis.measure(snapshot, labels, point.warn)
        seeds = torch.randint(2**62, (2 * self._draws + PASSES * SHARES // 2,), generator=point.generator).tolist()

        @lru_cache(maxsize=1)
        def deviations(beta: float) -> Tensor:  # where the noise is independent: that of z = 1
            return prior * curvature.noise(torch.ones(len(prior)), n)(beta, 1.0)

        def noise(seed: int, beta: float) -> Tensor:  # made anew for each use: all draws at once are many times the net
            z = torch.randn(len(prior), generator=torch.Generator().manual_seed(seed))
            return deviations(beta) * z if self.noise == "diagonal" else prior * curvature.noise(z, n)(beta, 1.0)

        loss_rise = LossRise(snapshot, SHARES, loss)

        for family, distortion in self._targets.items():
            if loss is not None:
                values[f"{family}/loss"] = loss
            if distortion is None:
                assert self.beta is not None
                level = DistortionLevel(self.beta, math.nan, 0, is_reached=True, relative_error=0.0)
            else:
                quadratic = quadratic_level(h, torch.ones_like(h), n, distortion)
                last = self._levels.get(family, quadratic)
                # if the loss hardly depends on the weights, as at the start, any level may have been the last
                start = min(max(last, quadratic / FURTHEST_START), quadratic * FURTHEST_START)
                level = find_level(loss_rise, noise, iter(seeds[2 * self._draws :]), distortion, start)
            if not level.is_reached:
                point.warn(
                    f"no value at step {point.step} (NaN): no level was found at which weight noise raises the "
                    f"{'loss' if self._has_loss else 'KL divergence of the predictions'} by "
                    f"{distortion:g} nats; after {level.evaluations} evaluations beta = {level.beta:.3g} raises it by "
                    f"{level.rise:.3g}. A fixed beta measures all the same",
                    f"{family} not reached",
                )
                continue
            self._levels[family] = level.beta
            noises = (noise(seed, level.beta) for seed in seeds[: 2 * self._draws])
            linear = {}
            if self._linear:
                linear = linear_noises(snapshot.module, self._linear.values(), deviations(level.beta))
            noisy = noisy_activations(snapshot, self._features, noises, linear)
            variance_error = level.relative_error * quadratic_power(h, torch.ones_like(h), level.beta) / level.power
            values |= self._informations(noisy, family, level, variance_error, labels, point)
        return {tag: value for tag, value in values.items() if tag in self.tags}

    def _informations(
        self,
        noisy: NoisyActivations,
        family: str,
        level: DistortionLevel,
        variance_error: float,
        labels: Labels | None,
        point: Point,
    ) -> dict[str, float]:
        values = {
            f"{family}/beta": level.beta,
            f"{family}/beta_stderr": level.beta_stderr,
            f"{family}/noisy_loss": noisy.losses.mean().item(),
            f"{family}/noisy_loss_stderr": standard_error(noisy.losses.cpu()),
        }
        self._last[family] = {}
        for layer in self._features.layers:
            name, z = layer.label, noisy.units.get(layer.label)
            if z is None or not z.isfinite().all():
                what = "did not run for all samples" if z is None else "has activations that are not finite under noise"
                point.warn(f"layer {name!r} {what} at step {point.step} (NaN)", f"{what} {name}")
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
        errors = [found.I_XZ_stderr for found in self._last[family].values()]
        lost = []
        for name, far in zip(self._last[family], crossed(bounds, errors), strict=True):
            if far:
                values[f"{family}/I_XZ/{name}"] = values[f"{family}_stderr/I_XZ/{name}"] = math.nan
                lost.append(name)
        if not self._crossed.issuperset(lost):  # each layer is named once
            self._crossed.update(lost)
            point.warn(
                f"no I(X;Z) of {', '.join(map(repr, lost))} at step {point.step} (NaN): the bound is far below that of "
                f"a layer behind, so it is loose (few draws, or behind a ReLU); {family}/crossing says how far",
                f"crossing {lost}",
            )
        return values

    def _labels(self, snapshot: ModelSnapshot, point: Point) -> Labels | None:
        targets = self._label_axis.targets(snapshot) if self._has_targets else None
        labels = None if targets is None else labels_of(targets, BINS)
        if targets is not None and labels is None:
            point.warn(
                "I(Z;Y) is NaN: targets are not finite, or more than half of the samples have a unique target",
                "targets",
            )
        return labels

    # ---- what is shown

    @override
    def charts(self) -> Mapping[str, Chart]:
        charts: dict[str, Chart] = {}
        for kind, title in (("I_XZ", "I(X;Z)"), ("I_ZY", "I(Z;Y)")):
            tags = [tag for tag in self.tags if tag.startswith(f"{self.name}/{kind}/")]
            if tags:
                charts[f"{title} under weight noise [nats]"] = ("Multiline", tags)
        if told := [tag for tag in self._label_axis.tags if "_stderr/" not in tag]:
            charts["I(T;Y) by decoders, without noise [nats]"] = ("Multiline", told)
        return charts

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        return {f"{family}/plane": partial(self._plane, family, record) for family in self._last}

    def _plane(self, family: str, record: Record) -> Figure:
        distortion = self._targets[family]
        level = f"beta = {self.beta:g}" if distortion is None else f"distortion {distortion:g} nats"
        layers, how = [layer.label for layer in self._features.layers], f"{level}, {2 * self._draws} draws"
        by_decoders = bool(self._label_axis.tags)
        shown = record.shown(self.unit)
        return pictures.plane(family, layers, self._last[family], how, by_decoders, record, *shown)

    @override
    def closing_text(self, record: Record) -> str:
        known = {k: v for k, v in self._last.items() if lost_since(record.curves[f"{k}/beta"]) is None}
        return "\n".join(line for family, found in known.items() for line in at_ceilings(family, found))

    # ---- state

    @override
    def is_logged(self, tag: str) -> bool:
        return tag == f"{self.name}/loss" or tag.partition("/")[2] != "loss"  # the loss without noise has no level

    @override
    def settings(self) -> Mapping[str, object]:
        return {
            "beta": self.beta and float(self.beta),
            "distortion": float(self.distortion[0]),
            "draws": self.draws,
            "noise": self.noise,
            "seed": self.seed,
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"levels": dict(self._levels)}

    @override
    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        if same_settings:
            self._levels = {str(family): float(beta) for family, beta in state["levels"].items()}


def _sizes(snapshot: ModelSnapshot) -> Tensor:
    """Return ``|w|``, the standard deviations of the prior, ``(k,)`` float64; both parts for a complex weight."""
    return torch.cat([flat(p.detach()) for p in trainable(snapshot.module).values()]).abs().double()
