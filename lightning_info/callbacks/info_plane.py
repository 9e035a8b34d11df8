"""``InfoPlaneCallback``: the information plane, live, with its artefacts named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_info import validation as arguments
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.clock import seconds
from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.functional.compression import FALL
from lightning_info.gradients.batches import take
from lightning_info.quantities.information_plane.arguments import estimates
from lightning_info.quantities.information_plane.artefacts import (
    ARTEFACTS,
    MOST_CLAMPED,
    LayerReading,
    PointContext,
    shuffled,
)
from lightning_info.quantities.information_plane.estimates import (
    BinRange,
    Bounds,
    Estimate,
    EstimatorName,
    EstimatorSettings,
)
from lightning_info.quantities.information_plane.features import MOST_UNITS, TARGETS, LayerFeatures, padding_row
from lightning_info.quantities.information_plane.labels import Labels, describe_targets, labels_of
from lightning_info.quantities.information_plane.trajectory import Plane, Trajectory
from lightning_info.quantities.information_plane.verdicts import CompressionVerdict, is_saturated, judge
from lightning_info.replica.activations import Layer
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.layer_selection import LayerNames, find_layers
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.reporting.figures import Curve
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import lost_since, verdict_table

SHUFFLED = "info_plane_shuffled"
"""First part of the tags of I(T;Y) with shuffled labels."""
GROWTH = 2.0
"""Factor by which a layer's range may grow since its first point before the finer bins of then are worth a word."""


class InfoPlaneCallback(InfoCallback):
    r"""Logs the information plane: I(X;T) and I(T;Y) of the layers T, in bits, over training.

    A network is deterministic, so the information of its continuous activations about the input is infinite (or that of
    the input itself); what is measured is what **bins** or **added noise** leave of it, and it moves with them. The
    callback says so where it matters: it knows the ceilings, warns of the known artefacts, and at the end of fit tells
    for every layer how far I(X;T) fell from its peak under each choice of the bins' range, and whether the verdict
    survives the choice. Source: Saxe et al., *On the information bottleneck theory of deep learning* (2018);
    ``docs/info_plane.md``.

    Nothing in the user's code changes: layers, also activation functions that are no modules, and labels are found in a
    replica's ``training_step`` in eval mode, so that training is bit-identical to training without the callback. Images
    and sequences are reduced to one value a channel, their mean over positions; layers with more than 12 units to
    ``directions`` random orthonormal combinations of them, the same at every point. The labels are the classes;
    continuous targets are cut into ``bins`` intervals; several labels of a sample are taken together.

    Layers that give integers or booleans (codes, masks, gates) are measured exactly, whatever the estimator: T is the
    codes of a sample at all positions together. They are not taken unless named, or activation functions. Complex units
    count as two, real and imaginary part.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``info_plane/I_XT/<layer>``, ``info_plane/I_TY/<layer>``: by the first estimator and range; without one label a
      sample, I(X;T) only.
    - ``info_plane_<name>/...``: further estimators and ranges, ``binning_adaptive`` or ``mixture``, say;
      ``..._lower`` and ``..._upper`` are Kolchinsky and Tracey's bounds for the mixture, ``..._stderr`` is the standard
      error of the estimate between them.
    - ``info_plane_final/...``: for the global range, at the end of fit, the whole curve in the bins of the range over
      all of training; the values above were logged before it was known.
    - ``info_plane_shuffled/I_TY/<layer>``: what I(T;Y) reads with shuffled labels, if the first estimate is by bins; so
      much of it comes from the number of samples, not from the layer.
    - ``info_plane/overhead``: share of the run's time that this callback took so far.
    - histograms ``activations/<layer>``: of at most 64 activations a sample.
    - figure ``info_plane/plane``: I(T;Y) against I(X;T), colour = epoch, layers of one epoch joined.

    Args:
        layers: Dotted names of modules or functions (``"net.1"``; ``"act:2"`` for the third call of one), or classes of
            modules or their names (``"ReLU"``). None: after the activation functions (without any, after the layers
            with weights), at most eight evenly over depth, and the outputs (logits).
        estimator: ``"binning"``; ``"mixture"``: noise is added and the information of the Gaussian mixture over the
            samples is estimated by sampling, with bounds; ``"gaussian"``: noise is added and the activations are taken
            for Gaussian (exact for linear networks of Gaussian inputs, for all others an approximation). One or a list.
        bins: Intervals that a unit's range is cut into. (The paper's "30 bins" are 29 intervals.)
        bin_range: What they cover: ``"global"``, each layer's smallest to largest activation over training;
            ``"fixed"``, (-1, 1); ``"adaptive"``, each layer's range at each point, which makes growing activations look
            like compression; or ``(low, high)``. One or a list.
        noise: Standard deviation of the noise in units of the layer's own at the measured weights.
        noise_variance: Variance of the noise instead, for all layers and points (the paper's form).
        directions: Random combinations that a layer with more than 12 units is reduced to. 1024 samples resolve no more
            than two or three: of a trained ResNet, ten read log2 N in the deep layers, and shuffled labels read as much
            as the true ones (``docs/info_plane.md``).
        every_n_epochs: Measure at s = 0 and after epochs n, 2n, ...
        every_n_train_steps: Measure at optimiser steps 0, n, 2n, ... Without an interval: 0, 1, 2, 4, 8, ..., and the
            end of every epoch, as far as ``max_overhead`` allows.
        num_samples: Reference samples: the first that pass in training. They set the ceiling, log2 of their number.
        reference: Reference samples to use instead, the first ``num_samples`` of them: a Dataset (collated as a
            DataLoader does by default), or tensors such as ``(x, y)``; they must look like the batches that
            ``training_step`` gets.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)``, where the
            ``training_step`` hides them; targets may be None.
        seed: Of projections and noise; training's random numbers are never touched.
        prefix: Put in front of every tag, ``prefix/info_plane/...``.
        on_error: A measurement that fails becomes one warning and NaN (``"warn"``), or ends the run (``"raise"``).
        max_overhead: Largest share of the run's time; by default 0.05 without an interval and no limit with one.
        batch_norm: See :class:`~lightning_info.FisherTraceCallback`.
        summary: Print the table and the verdicts at the end of fit.

    Attributes:
        verdicts: Layer -> how far I(X;T) fell under each range or estimator, known at the end of fit, and in words.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: a layer that is not there or does not run, sharded strategy,
            no outputs found.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import InfoPlaneCallback

        trainer = Trainer(callbacks=[InfoPlaneCallback()])
    """

    family = "info_plane"

    _trajectory: Trajectory
    _shown: dict[str, Tensor]  # activations of the last point for histograms
    _first_width: dict[str, float]  # of each layer's range
    _told: set[str]  # kinds of artefacts
    verdicts: dict[str, CompressionVerdict]

    def __init__(
        self,
        layers: LayerNames | None = None,
        estimator: EstimatorName | Sequence[EstimatorName] = "binning",
        bins: int = 30,
        bin_range: BinRange | Sequence[BinRange] = "global",
        noise: float = 0.1,
        noise_variance: float | None = None,
        directions: int = 2,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        num_samples: int = 1024,
        reference: Dataset[Any] | Sequence[Tensor] | None = None,
        adapter: Adapter | None = None,
        seed: int = 0,
        prefix: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        max_overhead: float | None = None,
        batch_norm: BatchNormStatistics = "running",
        summary: bool = True,
    ) -> None:
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
        owner = type(self).__name__
        arguments.positive_integer(owner, "bins", bins, 30)
        arguments.positive_integer(owner, "directions", directions, 2)
        arguments.positive_number(owner, "noise", noise, 0.1)
        if noise_variance is not None:
            arguments.positive_number(owner, "noise_variance", noise_variance, 0.1)
        self.layers, self.bins, self.directions = layers, bins, directions
        self.method = EstimatorSettings(bins, noise, noise_variance)
        self.estimates = estimates(owner, estimator, bin_range)
        self.tags: tuple[str, ...] = ()
        self.table: tuple[tuple[str, str | None], ...] = ()

    # ---- before the first step

    def _prepare(self, snapshot: ModelSnapshot) -> Mapping[str, str]:
        batch = snapshot.to_device(snapshot.groups[0])
        layers, left_out = find_layers(snapshot.module, snapshot.predictor, batch, self.layers)
        self._reader = LayerFeatures(tuple(layers), self.directions, self.seed)
        targets = replace(snapshot, statistics=[], _read={}).read(self._reader).get(TARGETS)
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
        padding, enters = padding_row(layers, snapshot.predictor(snapshot.module, batch))
        if padding:
            rows["padding"] = padding
        if enters:
            self._faults.warn_once(padding, "padding")
        if left_out:
            rows["left out"] = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        return rows

    def _describe(self, layer: Layer) -> str:
        if layer.is_discrete:
            how = f", a hash of them, as more than {MOST_UNITS}" if layer.units > MOST_UNITS else ""
            return f"{layer.label} ({layer.kind}, exact codes of {layer.units} integers together{how})"
        what = "channel means" if layer.positions else "units"
        reduced = f" as {self.directions} random combinations" if layer.units > MOST_UNITS else ""
        return f"{layer.label} ({f'{layer.kind}, ' if layer.kind else ''}{layer.units} {what}{reduced})"

    def _cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        few = replace(snapshot, groups=[take(snapshot.groups[0], slice(0, snapshot.chunk))], statistics=[], _read={})
        cost = seconds(lambda: few.read(self._reader), snapshot.device) * samples / few.size
        repeated, y = torch.arange(samples) % few.size, Labels(torch.arange(samples) % 2)
        for layer in self._reader.layers:
            t = few.read(self._reader)[f"units/{layer.label}"][repeated]
            for estimate in self.estimates:
                cost += seconds(partial(estimate.read, t, y, _ends(t), self.method), t.device)
        return cost

    # ---- a point

    def statistics(self) -> list[LayerFeatures]:
        return [self._reader]

    def _measure(self, snapshot: ModelSnapshot, step: int, generator: Generator) -> dict[str, float]:
        read = snapshot.read(self._reader)
        names = [layer.label for layer in self._reader.layers if f"units/{layer.label}" in read]
        activations = {name: read[f"units/{name}"] for name in names}
        self._shown = {name: read[f"shown/{name}"] for name in names}
        labels = self._labels(read.get(TARGETS))
        if not self._trajectory.fits(labels, snapshot.size):  # other samples than before
            self._trajectory = Trajectory()
        self._trajectory.add(step, activations, labels, snapshot.size)
        values, cases = dict.fromkeys(self.tags, math.nan), []
        for layer in self._reader.layers:
            name, t = layer.label, activations.get(layer.label)
            if t is None or not t.isfinite().all():
                what = "has activations that are not finite"
                if t is None:
                    what = "did not run for all samples as at the start"
                if name in snapshot.audit.mixed:
                    what = "gives a sample other activations beside others than alone, or those of another sample,"
                self._faults.warn_once(f"layer {name!r} {what} at step {step} (NaN)", f"{what} {name}")
                continue
            for estimate in self.estimates:
                seen = self._trajectory.ranges[name]
                reading = estimate.read(t, labels, seen, self.method, generator)
                values |= {tag: value for tag, value in estimate.tagged(reading, name).items() if tag in values}
                cases.append(LayerReading(name, estimate, t, estimate.bounds(t, seen), reading))
        setting = PointContext(self.bins, labels, generator)
        for case in cases:
            tag = f"{SHUFFLED}/I_TY/{case.layer}"
            if tag in values and case.estimate is self.estimates[0]:
                values[tag] = shuffled(case, setting)
        self._warn(cases, setting)
        return values

    def _labels(self, targets: Tensor | None) -> Labels | None:
        if targets is None:
            return None
        labels = labels_of(targets, self.bins)
        if labels is None:
            self._faults.warn_once(
                "targets are not finite, or more than half of the samples have one like no other's: no I(T;Y) (NaN)",
                "targets",
            )
        elif labels.entropy == 0 and labels.known is None:
            self._faults.warn_once("all reference samples have one label: I(T;Y) is 0, as H(Y) is", "one class")
        return labels

    def _warn(self, cases: list[LayerReading], setting: PointContext) -> None:
        for kind in ARTEFACTS.keys() - self._told:
            message = ARTEFACTS[kind](cases, setting)
            if message is not None:
                self._told.add(kind)
                self._faults.warn_once(message, kind)
        for case in cases:
            if case.estimate.bin_range == "global" and case.bounds is not None:
                width = case.bounds[1] - case.bounds[0]
                if width > GROWTH * self._first_width.setdefault(case.layer, width):
                    self._faults.warn_once(
                        f"the range of {case.layer!r} has grown more than {GROWTH:g} times since its first point; what "
                        f"was logged until now was measured in finer bins. At the end of fit info_plane_final/... has "
                        f"whole curves in the bins of the range over all of training; the figure always has",
                        "growth",
                    )

    # ---- looking back

    def curves(self, bin_range: BinRange) -> Plane:
        """The curves by binning under any range, computed anew from the activations that were kept.

        Args:
            bin_range: See the class; ``"global"`` is the range over all points so far.

        Returns:
            ``layer -> [(step, I(X;T), I(T;Y)), ...]`` in bits.
        """
        return self._trajectory.curves(Estimate("", "binning", bin_range), self.method)

    def _measured_curves(self, estimate: Estimate) -> Plane:
        plane: Plane = {}
        for layer in self._reader.layers:
            x, y = (
                dict(self.history.get(self._tag(f"{estimate.family}/{kind}/{layer.label}"), ()))
                for kind in ("I_XT", "I_TY")
            )
            plane[layer.label] = [(step, x[step], y.get(step, math.nan)) for step in sorted(x)]
        return plane

    def _finish(self) -> Mapping[str, Curve]:
        measured = {e: self._measured_curves(e) for e in self.estimates if e.bin_range is None}
        self.verdicts = judge(self._trajectory, self.estimates, self.method, measured)
        for name, judgement in self.verdicts.items():
            since = lost_since(self.history.get(self._tag(f"{self.estimates[0].family}/I_XT/{name}"), ()))
            if since is not None:  # a fall to the end is not known
                falls = dict.fromkeys(judgement.falls, math.nan)
                self.verdicts[name] = CompressionVerdict(falls, f"lost since step {since}")
        torn = [repr(name) for name, judgement in self.verdicts.items() if judgement.verdict.startswith("depends")]
        if torn:
            self._faults.warn_once(
                f"whether {', '.join(torn)} compress{'es' if len(torn) == 1 else ''} depends on the range of the bins "
                f"or the estimator; see the verdicts at the end",
                "torn",
            )
        curves: dict[str, Curve] = {}
        for estimate in self.estimates:
            for name, points in self.curves("global").items() if estimate.bin_range == "global" else ():
                curves[f"{estimate.family}_final/I_XT/{name}"] = [(step, x) for step, x, _ in points]
                if self._trajectory.labels is not None:
                    curves[f"{estimate.family}_final/I_TY/{name}"] = [(step, y) for step, _, y in points]
        return curves

    def _closing_text(self) -> str:
        if not self.verdicts:
            return ""
        falls = {name: judgement.falls for name, judgement in self.verdicts.items()}
        table = verdict_table(falls, {name: judgement.verdict for name, judgement in self.verdicts.items()})
        return (
            f"\nBits from the peak of I(X;T) to its end, by the range of the bins\n{table}\n"
            f"A fall of {FALL} bits counts; -: more than {MOST_CLAMPED:.0%} of the activations lie outside.\n"
            f"One run is no evidence: other seeds differ."
        )

    def _charts(self) -> dict[str, Chart]:
        charts: dict[str, Chart] = {}
        for estimate in self.estimates:
            for kind, title in (("I_XT", "I(X;T)"), ("I_TY", "I(T;Y)")):
                tags = [self._tag(tag) for tag in self.tags if tag.startswith(f"{estimate.family}/{kind}/")]
                if tags:
                    charts[f"{title} by layer, bits ({estimate})"] = ("Multiline", tags)
        return charts

    def _histograms(self) -> Mapping[str, Tensor]:
        return {f"activations/{name}": shown for name, shown in self._shown.items()}

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        drawn = self.estimates if self._trajectory.points else ()
        return {f"{estimate.family}/plane": partial(self._plane, estimate) for estimate in drawn}

    def _plane(self, estimate: Estimate) -> Figure:
        is_global, samples, labels = estimate.bin_range == "global", self._trajectory.samples, self._trajectory.labels
        plane = self.curves("global") if is_global else self._measured_curves(estimate)
        for points in plane.values():  # of points without a value no activations are kept
            last = points[-1][0] if points else -1
            points += [(step, math.nan, math.nan) for step in sorted(self._epochs) if step > last]
        how = "binning, global range (over training)" if is_global else str(estimate)
        bins = f", {self.bins} bins" if estimate.bin_range is not None else ""
        bounded = estimate.has_ceiling and samples > 0
        chance = [self.history.get(self._tag(f"{SHUFFLED}/I_TY/{name}"), [(0, math.nan)])[-1][1] for name in plane]
        known = estimate is self.estimates[0] and any(map(math.isfinite, chance))
        return information_plane(
            [
                PlaneCurve(name, points, bounded and is_saturated((x for _, x, _ in points), samples))
                for name, points in plane.items()
            ],
            title=f"Information plane: {how}{bins}, {samples} samples",
            ceiling_x=math.log2(samples) if bounded else math.inf,
            ceiling_y=math.inf if labels is None else labels.entropy,
            epochs=self._epochs,
            caption=f"I(T;Y) at the end with shuffled labels: {', '.join(f'{c:.2g}' for c in chance)}" if known else "",
        )

    # ---- state

    def _defining(self) -> Mapping[str, object]:
        first = self.estimates[0]  # tags of further ones have their names
        settings = {"estimator": str(first), "directions": self.directions, "seed": self.seed}
        ranges = {estimate.bin_range for estimate in self.estimates}
        if ranges != {None}:
            settings["bins"] = self.bins
        if None in ranges:
            settings |= {"noise": self.method.noise, "noise_variance": self.method.noise_variance}
        return settings

    def _state(self) -> dict[str, Any]:
        """What every callback keeps, and the activations of the points."""
        return {**super()._state(), "trajectory": self._trajectory.state(), "first_width": dict(self._first_width)}

    def _take_up(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_state` gave."""
        super()._take_up(state)
        with self._faults.guard("taking up the activations of the checkpoint"):
            if not self._changes:
                self._trajectory = Trajectory.restored(state["trajectory"])
                self._first_width = dict(state["first_width"])

    def _restart(self) -> None:
        super()._restart()
        self._trajectory = Trajectory()
        self._reader = LayerFeatures((), 1, 0)
        self._shown, self._first_width, self.verdicts = {}, {}, {}
        self._told = set()


def _ends(t: Tensor) -> Bounds:
    return t.min().item(), t.max().item()
