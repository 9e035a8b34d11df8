"""The plane as a figure, and its charts in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.functional.standard_error import NORMAL
from lightning_info.quantities.information_plane.estimates import Estimate
from lightning_info.quantities.information_plane.label_information import DECODER, STDERR
from lightning_info.quantities.information_plane.labels import Labels
from lightning_info.quantities.information_plane.nuisances import kind_of
from lightning_info.quantities.information_plane.trajectory import Plane
from lightning_info.quantities.information_plane.verdicts import is_saturated
from lightning_info.quantities.quantity import Record
from lightning_info.reporting.layout import Chart

SHUFFLED = "info_plane_shuffled"
"""First part of the tags of I(T;Y) with shuffled labels."""


class Setting(NamedTuple):
    """What a plane shows.

    Attributes:
        estimate: How I(X;T) was measured.
        bins: Number of intervals.
        samples: Number of samples.
        labels: Labels of the samples.
        by_decoders: Whether I(T;Y) is that of decoders.
        is_first: Whether the estimate is the first, whose tags are plain.
    """

    estimate: Estimate
    bins: int
    samples: int
    labels: Labels | None
    by_decoders: bool
    is_first: bool


def measured_plane(estimate: Estimate, layers: Sequence[str], record: Record) -> Plane:
    """Return the curves of an estimate as they were logged."""
    plane: Plane = {}
    for layer in layers:
        x, y = (dict(record.curves.get(f"{estimate.family}/{kind}/{layer}", ())) for kind in ("I_XT", "I_TY"))
        plane[layer] = [(step, x[step], y.get(step, math.nan)) for step in sorted(x)]
    return plane


def drawn(plane: Plane, setting: Setting, record: Record, unit: str, factor: float) -> Figure:
    """Draw a plane.

    Args:
        plane: The curves in bits; I(T;Y) is replaced by that of decoders where there is one.
        setting: What it shows.
        record: What was logged.
        unit: Unit of the figure.
        factor: The figure's unit per bit.
    """
    estimate, samples = setting.estimate, setting.samples
    is_global = estimate.bin_range == "global"
    for points in plane.values():  # no activations are kept of points without a value
        last = points[-1][0] if points else -1
        points += [(step, math.nan, math.nan) for step in sorted(record.epochs) if step > last]
    how = f"{estimate.name}, global range (over training)" if is_global else str(estimate)
    bins = f", {setting.bins} bins" if estimate.bin_range is not None else ""
    bounded = estimate.has_ceiling and samples > 0
    curves, decoded = [], False
    for name, points in plane.items():
        label = dict(record.curves.get(f"{DECODER}/I_TY/{name}", ())) if setting.by_decoders else {}
        if label:
            points, decoded = [(step, x, label.get(step, math.nan)) for step, x, _ in points], True
        is_grey = bounded and is_saturated((x for _, x, _ in points), samples)
        ends = [_end(record, f"{estimate.family}_stderr/I_XT/{name}"), _end(record, f"{STDERR}/I_TY/{name}")]
        halves = (NORMAL * ends[0], NORMAL * ends[1] if label else math.nan)
        curves.append(PlaneCurve(name, points, is_grey, halves).times(factor))
    chance = [_end(record, f"{SHUFFLED}/I_TY/{name}") for name in plane]
    caption = ""
    if decoded:
        without = ", without dropout" if estimate.estimator.has_own_noise else ""
        caption = f"I(T;Y): lower bound by decoders{without}. Bars: 95 % at the last point"
    elif setting.is_first and any(map(math.isfinite, chance)):
        told = [f"{name} {value * factor:.2g}" for name, value in zip(plane, chance, strict=True)]
        caption = f"I(T;Y) at the end with shuffled labels: {', '.join(told)}"
    return information_plane(
        curves,
        title=f"Information plane: {how}{bins}, {samples} samples",
        ceiling_x=math.log2(samples) * factor if bounded else math.inf,
        ceiling_y=math.inf if setting.labels is None else setting.labels.entropy * factor,
        epochs=record.epochs,
        unit=unit,
        caption=caption,
    )


def nuisance_plane(
    name: str, layers: Sequence[str], entropy: float, record: Record, unit: str, factor: float
) -> Figure:
    """Draw what layers hold of the label against what they hold of a nuisance.

    Args:
        name: The nuisance.
        layers: The layers.
        entropy: H(Y) in bits.
        record: What was logged.
        unit: Unit of the figure.
        factor: The figure's unit per bit.
    """
    curves = []
    for layer in layers:
        of, label = (dict(record.curves.get(f"{DECODER}/{kind}/{layer}", ())) for kind in (kind_of(name), "I_TY"))
        points = [(step, x, label.get(step, math.nan)) for step, x in sorted(of.items())]
        halves = [NORMAL * _end(record, f"{STDERR}/{kind}/{layer}") for kind in (kind_of(name), "I_TY")]
        curves.append(PlaneCurve(layer, points, False, (halves[0], halves[1])).times(factor))
    return information_plane(
        curves,
        title=f"Information about the label and the nuisance {name!r}, by decoders",
        ceiling_x=math.inf,
        ceiling_y=entropy * factor,
        epochs=record.epochs,
        unit=unit,
        across=f"I(T;N) of {name}",
        caption="Lower bounds. To the left: invariant to the nuisance. Bars: 95 % at the last point",
    )


def _end(record: Record, tag: str) -> float:
    curve = record.curves.get(tag, ())
    return curve[-1][1] if curve else math.nan


def charts(estimates: Sequence[Estimate], tags: Sequence[str], is_ended: bool) -> Mapping[str, Chart]:
    """Return the charts, that of decoders after the first of I(X;T).

    Args:
        estimates: The estimates.
        tags: All tags.
        is_ended: Whether the curves in one range are there.
    """
    found: dict[str, Chart] = {}
    decoded = [tag for tag in tags if tag.startswith(f"{DECODER}/I_TY/")]
    for estimate in estimates:
        is_whole = estimate.bin_range == "global" and is_ended
        family = f"{estimate.family}_final" if is_whole else estimate.family
        how = str(estimate).removesuffix(" (over training so far)")
        of = f", {how}" if len(estimates) > 1 else ""
        so_far = " so far" if estimate.bin_range == "global" and not is_whole else ""
        for kind, title in (("I_XT", "I(X;T)"), ("I_TY", "I(T;Y)")):
            start = f"{estimate.family}/{kind}/"
            layers = [tag.removeprefix(start) for tag in tags if tag.startswith(start)]
            if kind == "I_TY" and decoded:  # that of bins is not computed anew
                family, so_far, title = estimate.family, "", f"{title} by bins"
            if layers:
                found[f"{title}{so_far} [bits]{of}"] = ("Multiline", [f"{family}/{kind}/{layer}" for layer in layers])
            if decoded and kind == "I_XT" and estimate is estimates[0]:
                found["I(T;Y) by decoders [bits]"] = ("Multiline", decoded)
    return found
