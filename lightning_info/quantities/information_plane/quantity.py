"""``InformationPlane``: I(X;T) and I(T;Y) of the layers T over training, their artefacts, and verdicts at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from lightning_info import validation
from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.functional.information_estimators import EstimatorName
from lightning_info.gradients.batches import num_samples, take
from lightning_info.quantities.information_plane.arguments import estimates
from lightning_info.quantities.information_plane.artefacts import (
    ARTEFACTS,
    LayerReading,
    PointContext,
    shuffled,
)
from lightning_info.quantities.information_plane.descriptions import DESCRIPTIONS
from lightning_info.quantities.information_plane.estimates import (
    BinRange,
    Bounds,
    Estimate,
    EstimatorSettings,
)
from lightning_info.quantities.information_plane.features import MOST_UNITS, TARGETS, LayerFeatures, rows_of_layers
from lightning_info.quantities.information_plane.labels import Labels, describe_targets, labels_of
from lightning_info.quantities.information_plane.trajectory import Plane, Trajectory
from lightning_info.quantities.information_plane.verdicts import CompressionVerdict, is_saturated, judge
from lightning_info.quantities.quantity import Point, Quantity, Record, Warn
from lightning_info.replica.activations import Layer, LayerCapture
from lightning_info.replica.label_dependence import label_dependence
from lightning_info.replica.layer_selection import LayerNames, find_layers
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.timing import trial
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import Curve, lost_since, verdict_table

SHUFFLED = "info_plane_shuffled"
"""First part of the tags of I(T;Y) with shuffled labels."""
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
        seed: int,
    ) -> None:
        self.layers, self.bins, self.directions, self.seed = layers, bins, directions, seed
        self._estimator, self._bin_range = estimator, bin_range
        self.method = EstimatorSettings(bins, noise, noise_variance)
        self.reset()

    @override
    def check(self, owner: str) -> None:
        validation.layers(owner, self.layers)
        validation.positive_integer(owner, "bins", self.bins, 30)
        validation.positive_integer(owner, "directions", self.directions, 2)
        validation.positive_number(owner, "noise", self.method.noise, 0.1)
        if self.method.noise_variance is not None:
            validation.positive_number(owner, "noise_variance", self.method.noise_variance, 0.1)
        self.estimates = estimates(owner, self._estimator, self._bin_range)

    @override
    def reset(self) -> None:
        self._trajectory = Trajectory()
        self._features = LayerFeatures((), 1, 0)
        self._shown, self._first_width, self._told = {}, {}, set()
        self.verdicts: dict[str, CompressionVerdict] = {}

    # ---- before the first step

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        batch = snapshot.to_device(snapshot.groups[0])
        with_outputs = all(estimate.bin_range is None for estimate in self.estimates)  # bins tell all of them apart
        found, left_out = find_layers(snapshot.module, snapshot.predictor, batch, self.layers, with_outputs)
        with LayerCapture(snapshot.module, found, num_samples(batch)) as capture:
            prediction = snapshot.predictor(snapshot.module, batch)
        layers = [replace(one, channels_first=capture.calls.get((one.name, one.index))) for one in found]
        self._features = LayerFeatures(tuple(layers), self.directions, self.seed)
        targets = snapshot.on(snapshot.groups).read(self._features).get(TARGETS)
        kinds = ("I_XT",) if targets is None else ("I_XT", "I_TY")
        families = [family for estimate in self.estimates for family in estimate.families]
        names = [layer.label for layer in layers]
        self.tags = tuple(f"{family}/{kind}/{name}" for family in families for kind in kinds for name in names)
        if self.estimates[0].bin_range is not None and targets is not None:
            self.tags += tuple(f"{SHUFFLED}/I_TY/{name}" for name in names)
        shown = "info_plane_final" if self.estimates[0].bin_range == "global" else "info_plane"
        self.table = tuple((f"{shown}/I_XT/{name}", None) for name in names)
        binned = f"; {self.bins} bins" if any(estimate.bin_range for estimate in self.estimates) else ""
        rows = {
            "measures": f"{', '.join(kinds)} in bits: {'; '.join(map(str, self.estimates))}{binned}",
            "layers": "; ".join(map(self._describe, layers)),
            "labels": describe_targets(targets, self.bins),
        }
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
        reduced = f" as {self.directions} random combinations" if layer.units > MOST_UNITS else ""
        return f"{layer.label} ({f'{layer.kind}, ' if layer.kind else ''}{layer.units} {what}{reduced})"

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        few = snapshot.first(snapshot.chunk)
        size = min(samples, max(few.size, snapshot.at_once))
        many = [take(few.groups[0], torch.arange(size) % few.size)]
        cost = trial(lambda: few.on(many).read(self._features), snapshot.device) * samples / size
        repeated, y = torch.arange(samples) % few.size, Labels(torch.arange(samples) % 2)
        for layer in self._features.layers:
            t = few.read(self._features)[f"units/{layer.label}"][repeated]
            for estimate in self.estimates:
                cost += trial(partial(estimate.read, t, y, _ends(t), self.method), t.device)
        return cost

    # ---- a point

    @override
    def statistics(self) -> list[LayerFeatures]:
        return [self._features]

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        step = point.step
        read = snapshot.read(self._features)
        names = [layer.label for layer in self._features.layers if f"units/{layer.label}" in read]
        activations = {name: read[f"units/{name}"] for name in names}
        self._shown = {name: read[f"shown/{name}"] for name in names}
        labels = self._labels(read.get(TARGETS), point.warn)
        if not self._trajectory.fits(labels, snapshot.size):  # other samples than before
            self._trajectory = Trajectory()
        self._trajectory.add(step, activations, labels, snapshot.size)
        values, cases = dict.fromkeys(self.tags, math.nan), []
        for layer in self._features.layers:
            name, t = layer.label, activations.get(layer.label)
            if t is None or not t.isfinite().all():
                what = "has activations that are not finite"
                if t is None:
                    what = "did not run for all samples as at the start"
                if name in snapshot.audit.mixed:
                    what = "gives a sample other activations beside others than alone, or those of another sample,"
                point.warn(f"layer {name!r} {what} at step {step} (NaN)", f"{what} {name}")
                continue
            for estimate in self.estimates:
                seen = self._trajectory.ranges[name]
                reading = estimate.read(t, labels, seen, self.method, point.generator)
                values |= {tag: value for tag, value in estimate.tagged(reading, name).items() if tag in values}
                cases.append(LayerReading(name, estimate, t, estimate.bounds(t, seen), reading))
        setting = PointContext(self.bins, labels, point.generator)
        for case in cases:
            tag = f"{SHUFFLED}/I_TY/{case.layer}"
            if tag in values and case.estimate is self.estimates[0]:
                values[tag] = shuffled(case, setting)
        self._warn(cases, setting, point.warn)
        return values

    def _labels(self, targets: Tensor | None, warn: Warn) -> Labels | None:
        if targets is None:
            return None
        labels = labels_of(targets, self.bins)
        if labels is None:
            warn(
                "I(T;Y) is NaN: targets are not finite, or more than half of the samples have a unique target",
                "targets",
            )
        elif labels.entropy == 0 and labels.known is None:
            warn("all reference samples have one label: I(T;Y) is 0, as H(Y) is", "one class")
        return labels

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
        return self._trajectory.curves(Estimate("", estimator, bin_range), self.method)

    def _measured_curves(self, estimate: Estimate, record: Record) -> Plane:
        plane: Plane = {}
        for layer in self._features.layers:
            x, y = (dict(record.curves.get(f"{estimate.family}/{kind}/{layer.label}", ())) for kind in ("I_XT", "I_TY"))
            plane[layer.label] = [(step, x[step], y.get(step, math.nan)) for step in sorted(x)]
        return plane

    @override
    def finish(self, record: Record, point: Point) -> Mapping[str, Curve]:
        measured = {e: self._measured_curves(e, record) for e in self.estimates if e.bin_range is None}
        self.verdicts = judge(self._trajectory, self.estimates, self.method, measured)
        for name, judgement in self.verdicts.items():
            since = lost_since(record.curves.get(f"{self.estimates[0].family}/I_XT/{name}", ()))
            if since is not None:  # a fall to the end is not known
                falls = dict.fromkeys(judgement.falls, math.nan)
                self.verdicts[name] = CompressionVerdict(falls, f"lost since step {since}")
        curves: dict[str, Curve] = {}
        for estimate in self.estimates:
            final = self.planes("global", estimate.name) if estimate.bin_range == "global" else {}
            for name, points in final.items():
                curves[f"{estimate.family}_final/I_XT/{name}"] = [(step, x) for step, x, _ in points]
                if self._trajectory.labels is not None:
                    curves[f"{estimate.family}_final/I_TY/{name}"] = [(step, y) for step, _, y in points]
        return curves

    @override
    def closing_text(self, record: Record) -> str:
        if not self.verdicts:
            return ""
        unit, factor = record.shown(self.unit)
        falls = {
            name: {kind: fall * factor for kind, fall in judgement.falls.items()}
            for name, judgement in self.verdicts.items()
        }
        short = {name: judgement.verdict.partition(":")[0] for name, judgement in self.verdicts.items()}
        table = verdict_table(falls, short, unit)
        labels = self._trajectory.labels
        top = "" if labels is None else f"\nH(Y) = {labels.entropy * factor:.4g} {unit}: no layer can tell more of Y."
        return f"\n{table}\nOne run is not evidence; seeds differ (-: that range does not fit).{top}"

    @override
    def conclusions(self, record: Record) -> Mapping[str, Any]:
        unit, factor = record.shown(self.unit)
        return {
            name: {
                "verdict": judgement.verdict,
                "falls": {
                    kind: fall * factor if math.isfinite(fall) else None for kind, fall in judgement.falls.items()
                },
                "unit": unit,
            }
            for name, judgement in self.verdicts.items()
        }

    @override
    def charts(self) -> Mapping[str, Chart]:
        charts: dict[str, Chart] = {}
        for estimate in self.estimates:
            is_whole = estimate.bin_range == "global" and bool(self.verdicts)  # the curves in one range are there
            family = f"{estimate.family}_final" if is_whole else estimate.family
            how = str(estimate).removesuffix(" (over training so far)")
            of = f", {how}" if len(self.estimates) > 1 else ""
            so_far = " so far" if estimate.bin_range == "global" and not is_whole else ""
            for kind, title in (("I_XT", "I(X;T)"), ("I_TY", "I(T;Y)")):
                start = f"{estimate.family}/{kind}/"
                layers = [tag.removeprefix(start) for tag in self.tags if tag.startswith(start)]
                if layers:
                    tags = [f"{family}/{kind}/{layer}" for layer in layers]
                    charts[f"{title}{so_far} [bits]{of}"] = ("Multiline", tags)
        return charts

    @override
    def histograms(self) -> Mapping[str, Tensor]:
        return {f"activations/{name}": shown for name, shown in self._shown.items()}

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        drawn = self.estimates if self._trajectory.points else ()
        return {f"{estimate.family}/plane": partial(self._plane, estimate, record) for estimate in drawn}

    def _plane(self, estimate: Estimate, record: Record) -> Figure:
        is_global, samples, labels = estimate.bin_range == "global", self._trajectory.samples, self._trajectory.labels
        plane = self.planes("global", estimate.name) if is_global else self._measured_curves(estimate, record)
        for points in plane.values():  # no activations are kept of points without a value
            last = points[-1][0] if points else -1
            points += [(step, math.nan, math.nan) for step in sorted(record.epochs) if step > last]
        how = f"{estimate.name}, global range (over training)" if is_global else str(estimate)
        bins = f", {self.bins} bins" if estimate.bin_range is not None else ""
        bounded = estimate.has_ceiling and samples > 0
        chance = [record.curves.get(f"{SHUFFLED}/I_TY/{name}", [(0, math.nan)])[-1][1] for name in plane]
        known = estimate is self.estimates[0] and any(map(math.isfinite, chance))
        unit, factor = record.shown(self.unit)
        told = [f"{name} {value * factor:.2g}" for name, value in zip(plane, chance, strict=True)]
        return information_plane(
            [
                PlaneCurve(name, points, bounded and is_saturated((x for _, x, _ in points), samples)).times(factor)
                for name, points in plane.items()
            ],
            title=f"Information plane: {how}{bins}, {samples} samples",
            ceiling_x=math.log2(samples) * factor if bounded else math.inf,
            ceiling_y=math.inf if labels is None else labels.entropy * factor,
            epochs=record.epochs,
            unit=unit,
            caption=f"I(T;Y) at the end with shuffled labels: {', '.join(told)}" if known else "",
        )

    # ---- state

    @override
    def settings(self) -> Mapping[str, object]:
        first = self.estimates[0]  # tags of further ones have their names
        settings = {"estimator": str(first), "directions": self.directions, "seed": self.seed}
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


def _ends(t: Tensor) -> Bounds:
    return t.min().item(), t.max().item()
