"""``InformationPlane``: I(X;T) and I(T;Y) of the layers T over training, their artefacts, and verdicts at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, Literal, get_args

from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from lightning_info import validation
from lightning_info.functional.information_estimators import EstimatorName
from lightning_info.gradients.batches import num_samples
from lightning_info.quantities.information_plane import conclusions, pictures
from lightning_info.quantities.information_plane.arguments import estimates
from lightning_info.quantities.information_plane.artefacts import ARTEFACTS, LayerReading, PointContext, shuffled
from lightning_info.quantities.information_plane.decoded import CLASSES, LEAST, most_seen, positions_seen
from lightning_info.quantities.information_plane.descriptions import DESCRIPTIONS
from lightning_info.quantities.information_plane.estimates import BinRange, Estimate, EstimatorSettings
from lightning_info.quantities.information_plane.features import MOST_UNITS, TARGETS, LayerFeatures, rows_of_layers
from lightning_info.quantities.information_plane.forecast import seconds_of_point
from lightning_info.quantities.information_plane.label_information import DECODER, LabelDecoders
from lightning_info.quantities.information_plane.labels import Labels, describe_targets, labels_told, targets_of
from lightning_info.quantities.information_plane.nuisances import NuisanceDecoders, Nuisances, check_nuisances
from lightning_info.quantities.information_plane.own_noise import OwnNoise
from lightning_info.quantities.information_plane.projections import averaged, averaged_plane, errors_of_plane
from lightning_info.quantities.information_plane.trajectory import Plane, Trajectory
from lightning_info.quantities.information_plane.verdicts import CompressionVerdict, judge
from lightning_info.quantities.quantity import Point, Quantity, Record, Warn
from lightning_info.replica.activations import Layer, LayerCapture
from lightning_info.replica.label_dependence import label_dependence
from lightning_info.replica.layer_selection import LayerNames, find_layers
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import Curve, lost_since

LabelInformation = Literal["decoder", "binned"]
SHUFFLED = pictures.SHUFFLED
GROWTH = 2.0
"""Factor by which a layer's range may grow since its first point before a note about the earlier, finer bins."""


class InformationPlane(Quantity):
    """See :class:`~.InfoPlaneCallback` for the arguments.

    Attributes:
        verdicts: For each layer, how far I(X;T) fell under each range or estimator, also in words; known at the end.
    """

    name = "info_plane"
    unit = "bits"
    descriptions = DESCRIPTIONS
    needs_likelihood = False

    _shown: dict[str, Tensor]  # activations of the last point for histograms
    _first_width: dict[str, float]  # growth of each layer's range
    _told: set[str]  # kinds of artefacts

    def __init__(
        self,
        layers: LayerNames | None,
        estimator: EstimatorName | Sequence[EstimatorName],
        bins: int,
        bin_range: BinRange | Sequence[BinRange],
        noise: float,
        noise_variance: float | None,
        directions: int,
        projections: int,
        label_information: LabelInformation,
        nuisances: Nuisances | None,
        seed: int,
    ) -> None:
        self.layers, self.bins, self.directions, self.projections = layers, bins, directions, projections
        self.label_information, self.nuisances, self.seed = label_information, dict(nuisances or {}), seed
        self._estimator, self._bin_range = estimator, bin_range
        self.method = EstimatorSettings(bins, noise, noise_variance)
        self.reset()

    @override
    def check(self, owner: str) -> None:
        validation.layers(owner, self.layers)
        validation.positive_integer(owner, "bins", self.bins, 30)
        validation.positive_integer(owner, "directions", self.directions, 2)
        validation.positive_integer(owner, "projections", self.projections, 8)
        validation.one_of(owner, "label_information", self.label_information, get_args(LabelInformation))
        check_nuisances(owner, self.nuisances)
        validation.positive_number(owner, "noise", self.method.noise, 0.1)
        if self.method.noise_variance is not None:
            validation.positive_number(owner, "noise_variance", self.method.noise_variance, 0.1)
        self.estimates = estimates(owner, self._estimator, self._bin_range)

    @override
    def reset(self) -> None:
        self._trajectory = Trajectory()
        self._features, self._decoders = LayerFeatures((), 1, 0), LabelDecoders()
        self._nuisances, self._own_noise = NuisanceDecoders(self.nuisances, self.seed), OwnNoise()
        self._shown, self._first_width, self._told = {}, {}, set()
        self.verdicts: dict[str, CompressionVerdict] = {}

    # ---- before the first step

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        batch = snapshot.to_device(snapshot.groups[0])
        with_outputs = all(estimate.bin_range is None for estimate in self.estimates)  # bins tell all of them apart
        of_dropout = any(estimate.estimator.has_own_noise for estimate in self.estimates)
        self._own_noise = OwnNoise(snapshot, batch) if of_dropout else OwnNoise()
        named = self._own_noise.names(self.layers) if of_dropout else self.layers
        found, left_out = find_layers(snapshot.module, snapshot.predictor, batch, named, with_outputs)
        with LayerCapture(snapshot.module, found, num_samples(batch), everywhere=True) as capture:
            prediction = snapshot.predictor(snapshot.module, batch)
        layers = [replace(one, channels_first=capture.calls.get((one.name, one.index))) for one in found]
        seen = None
        if self.label_information == "decoder":
            seen = positions_seen(prediction, targets_of(prediction), point.num_samples)
        if of_dropout:
            self._own_noise.check(layers, capture.activations)
        most = most_seen(capture.activations.values())
        codes = any(estimate.estimator.is_exact for estimate in self.estimates)
        self._features = LayerFeatures(
            tuple(layers), self.directions, self.seed, self.projections, seen, most, codes, of_dropout
        )
        read = snapshot.on(snapshot.groups).read(self._features)
        targets, self._decoders = read.get(TARGETS), LabelDecoders(read, most)
        kinds = ("I_XT",) if targets is None else ("I_XT", "I_TY")
        names = [layer.label for layer in layers]
        self.tags = tuple(
            f"{family}/{kind}/{name}"
            for estimate in self.estimates
            for kind in kinds
            for name, keys in self._features.parts.items()
            for family in estimate.families(len(keys) if estimate.reads == "units" else 1)
        )
        if self.estimates[0].bin_range is not None and targets is not None:
            self.tags += tuple(f"{SHUFFLED}/I_TY/{name}" for name in names)
        self._nuisances.prepare(snapshot, [layer.label for layer in layers if not layer.is_discrete])
        self.tags += self._decoders.tags + self._nuisances.tags
        first = self.estimates[0]
        shown = "info_plane_final" if first.bin_range == "global" else "info_plane"
        self.table = tuple(
            (
                f"{shown}/I_XT/{name}",
                f"{shown}_stderr/I_XT/{name}" if len(keys) > 1 or first.estimator.has_stderr else None,
            )
            for name, keys in self._features.parts.items()
        )
        binned = f"; {self.bins} bins" if any(estimate.bin_range for estimate in self.estimates) else ""
        by_decoders = "; I_TY by decoders" if self._decoders.tags else ""
        rows = {
            "measures": f"{', '.join(kinds)} in bits: {'; '.join(map(str, self.estimates))}{binned}{by_decoders}",
            "layers": "; ".join(map(self._describe, layers)),
            "labels": describe_targets(targets, self.bins),
        }
        if of_dropout:
            rows["noise"] = self._own_noise.described(layers)
        if seen:
            rows["labels"] = f"of {seen} positions a sample, for decoders: the {CLASSES} most frequent, and the rest"
        if reason := label_dependence(snapshot):
            point.warn(f"{reason} by adapter=..., or leave them out by layers=[...]", "label")
        if prediction.unknown and targets is not None:
            rows["labels"] = "the integers of the batch, one for each sample, as the loss is not known"
        return rows | rows_of_layers(layers, prediction, left_out, point.warn)

    def _describe(self, layer: Layer) -> str:
        if layer.is_discrete:
            how = f", a hash of them, as more than {MOST_UNITS}" if layer.units > MOST_UNITS else ""
            return f"{layer.label} ({layer.kind}, exact codes of {layer.units} integers together{how})"
        what = "channel means" if layer.positions else "units"
        times = f"{self.projections} times " if self.projections > 1 else ""
        reduced = f" as {times}{self.directions} random combinations" if layer.units > MOST_UNITS else ""
        return f"{layer.label} ({f'{layer.kind}, ' if layer.kind else ''}{layer.units} {what}{reduced})"

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        return seconds_of_point(
            snapshot,
            samples,
            self._features,
            self.estimates,
            self.method,
            self._own_noise,
            self._decoders,
            self._nuisances,
        )

    @override
    def cheaper(self) -> str:
        before = self._features.most
        if before > LEAST and (self._decoders.tags or self._nuisances.tags):
            self._features = replace(self._features, most=before // 2)
            self._decoders.most //= 2
            return f"decoders of {before // 2} units of a layer instead of {before}"
        if not self._decoders.tags:
            return ""
        self.tags = tuple(tag for tag in self.tags if tag not in self._decoders.tags)
        self._decoders, self._features = LabelDecoders(most=before), replace(self._features, decoded=None)
        return "no decoders of the label"

    # ---- a point

    @override
    def statistics(self) -> list[LayerFeatures]:
        return [self._features]

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        step, parts = point.step, self._features.parts
        read = snapshot.read(self._features)
        activations = {key: read[f"units/{key}"] for keys in parts.values() for key in keys if f"units/{key}" in read}
        self._shown = {name: read[f"shown/{name}"] for name in parts if name in activations}
        labels = labels_told(read.get(TARGETS), self.bins, point.warn)
        if not self._trajectory.fits(labels, snapshot.size):  # other samples than before
            self._trajectory = Trajectory()
        self._trajectory.add(step, activations, labels, snapshot.size)
        values, cases = dict.fromkeys(self.tags, math.nan), []
        setting = PointContext(self.bins, labels, point.generator)
        for layer, (name, keys) in zip(self._features.layers, parts.items(), strict=True):
            if self._is_lost(name, activations.get(name), snapshot, step, point.warn):
                continue
            for estimate in self.estimates:
                found = []
                if estimate.estimator.has_own_noise:
                    readings = self._own_noise.readings(layer, read, self._features, labels, snapshot.module, point)
                    found = [LayerReading(name, estimate, activations[name], None, reading) for reading in readings]
                for key in [] if found else keys if estimate.reads == "units" else [name]:
                    t, seen = read[f"{estimate.reads}/{key}"], self._trajectory.ranges[key]
                    reading = estimate.read(t, labels, seen, self.method, point.generator)
                    found.append(LayerReading(name, estimate, t, estimate.bounds(t, seen), reading))
                mean = averaged([case.reading for case in found])
                values |= {tag: value for tag, value in estimate.tagged(mean, name).items() if tag in values}
                tag = f"{SHUFFLED}/I_TY/{name}"
                if tag in values and estimate is self.estimates[0]:
                    values[tag] = fmean(shuffled(case, setting, 2 if len(found) == 1 else 1) for case in found)
                cases.append(replace(found[0], reading=mean))
        values |= self._decoders.measure(read, labels, point.warn)
        values |= self._nuisances.measure(snapshot, self._features, self._decoders.components, point.warn)
        self._warn(cases, setting, point.warn)
        return values

    def _is_lost(self, name: str, t: Tensor | None, snapshot: ModelSnapshot, step: int, warn: Warn) -> bool:
        """Tell whether a layer has no values at a point, and say why."""
        if t is not None and t.isfinite().all():
            return False
        what = "has activations that are not finite"
        if t is None:
            what = "did not run for all samples as at the start"
        if name in snapshot.audit.mixed:
            what = "gives a sample other activations beside others than alone, or those of another sample,"
        warn(f"layer {name!r} {what} at step {step} (NaN)", f"{what} {name}")
        return True

    def _warn(self, cases: list[LayerReading], setting: PointContext, warn: Warn) -> None:
        for kind in ARTEFACTS.keys() - self._told:
            message = ARTEFACTS[kind](cases, setting)
            if message is not None:
                self._told.add(kind)
                warn(message, kind)
        for case in cases:
            if case.estimate.bin_range == "global" and case.bounds is not None:
                width = case.bounds[1] - case.bounds[0]
                if width > GROWTH * self._first_width.setdefault(case.layer, width):
                    warn(
                        f"the range of {case.layer!r} has grown more than {GROWTH:g} times since its first point, so "
                        f"its earlier values are in finer bins; info_plane_final/..., written at the end of fit, has "
                        f"one range",
                        "growth",
                    )

    # ---- looking back

    def planes(self, bin_range: BinRange, estimator: str = "binning") -> Plane:
        """Return the curves by bins under any range, see :meth:`~.InfoPlaneCallback.curves`."""
        curves = self._curves(bin_range, estimator)
        return averaged_plane(curves, self._features.parts or {name: [name] for name in curves})

    def _curves(self, bin_range: BinRange, estimator: str) -> Plane:
        return self._trajectory.curves(Estimate("", estimator, bin_range), self.method)

    @override
    def finish(self, record: Record, point: Point) -> Mapping[str, Curve]:
        names = list(self._features.parts)
        measured = {e: pictures.measured_plane(e, names, record) for e in self.estimates if e.bin_range is None}
        self.verdicts = judge(self._trajectory, self.estimates, self.method, measured, self._features.parts)
        for name, judgement in self.verdicts.items():
            since = lost_since(record.curves.get(f"{self.estimates[0].family}/I_XT/{name}", ()))
            if since is not None:  # a fall to the end is not known
                falls = dict.fromkeys(judgement.falls, math.nan)
                self.verdicts[name] = CompressionVerdict(falls, f"lost since step {since}")
        curves: dict[str, Curve] = {}
        for estimate in self.estimates:
            final = self.planes("global", estimate.name) if estimate.bin_range == "global" else {}
            errors = errors_of_plane(self._curves("global", estimate.name), self._features.parts) if final else {}
            for name, points in final.items():
                curves[f"{estimate.family}_final/I_XT/{name}"] = [(step, x) for step, x, _ in points]
                if name in errors:
                    curves[f"{estimate.family}_final_stderr/I_XT/{name}"] = errors[name]
                if self._trajectory.labels is not None:
                    curves[f"{estimate.family}_final/I_TY/{name}"] = [(step, y) for step, _, y in points]
        return curves

    @override
    def closing_text(self, record: Record) -> str:
        if not self.verdicts:
            return ""
        unit, factor = record.shown(self.unit)
        columns = self._decoders.ends(record.curves, factor)
        return conclusions.closing_text(self.verdicts, self._labels, columns, unit, factor)

    @override
    def conclusions(self, record: Record) -> Mapping[str, Any]:
        return conclusions.conclusions(self.verdicts, *record.shown(self.unit))

    @override
    def charts(self) -> Mapping[str, Chart]:
        return pictures.charts(self.estimates, self.tags, is_ended=bool(self.verdicts))

    @override
    def histograms(self) -> Mapping[str, Tensor]:
        return {f"activations/{name}": shown for name, shown in self._shown.items()}

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        drawn = self.estimates if self._trajectory.points else ()
        planes = {f"{estimate.family}/plane": partial(self._plane, estimate, record) for estimate in drawn}
        for name in self.nuisances if drawn else ():
            entropy = math.inf if self._labels is None else self._labels.entropy
            layers = list(self._features.parts)
            planes[f"{DECODER}/plane_{name}"] = partial(
                pictures.nuisance_plane, name, layers, entropy, record, *record.shown(self.unit)
            )
        return planes

    def _plane(self, estimate: Estimate, record: Record) -> Figure:
        whole = self.planes("global", estimate.name) if estimate.bin_range == "global" else None
        plane = pictures.measured_plane(estimate, list(self._features.parts), record) if whole is None else whole
        setting = pictures.Setting(
            estimate,
            self.bins,
            self._trajectory.samples,
            self._labels,
            self.label_information == "decoder",
            estimate is self.estimates[0],
        )
        return pictures.drawn(plane, setting, record, *record.shown(self.unit))

    @property
    def _labels(self) -> Labels | None:
        """Labels that layers tell of, of samples or of their positions."""
        return self._decoders.labels if self._trajectory.labels is None else self._trajectory.labels

    # ---- state

    @override
    def is_logged(self, tag: str) -> bool:
        """Leave to the history what bins say of the label, but for the live value, where decoders say it better.

        So with the errors in a range that is not known yet; those of the curves at the end are logged.
        """
        family, _, rest = tag.partition("/")
        kind, _, layer = rest.partition("/")
        if any(family == f"{one.family}_stderr" and one.bin_range == "global" for one in self.estimates):
            return False
        if kind != "I_TY" or layer not in self._decoders or family.startswith(DECODER):
            return True
        return family != SHUFFLED and not family.endswith(("_final", "_stderr"))

    @override
    def settings(self) -> Mapping[str, object]:
        first = self.estimates[0]  # tags of further ones have their names
        names = ("directions", "projections", "label_information", "seed")
        settings = {"estimator": str(first), **{name: getattr(self, name) for name in names}}
        ranges = {estimate.bin_range for estimate in self.estimates}
        if ranges != {None}:
            settings["bins"] = self.bins
        if None in ranges:
            settings |= {"noise": self.method.noise, "noise_variance": self.method.noise_variance}
        return settings

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"trajectory": self._trajectory.state(), "first_width": dict(self._first_width)}

    @override
    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        if same_settings:
            self._trajectory = Trajectory.restored(state["trajectory"])
            self._first_width = dict(state["first_width"])
