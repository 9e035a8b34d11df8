"""The fall of each layer's I(X;T) from its peak under each range of the bins, and whether it depends on the range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from lightning_info.functional.compression import compression_verdict, peak_to_end
from lightning_info.functional.standard_error import jackknife_error
from lightning_info.quantities.information_plane.artefacts import MOST_CLAMPED, clamped, near_ceiling
from lightning_info.quantities.information_plane.estimates import (
    BinRange,
    Estimate,
    EstimatorSettings,
    bounds,
    range_name,
)
from lightning_info.quantities.information_plane.projections import Parts
from lightning_info.quantities.information_plane.trajectory import Plane, Trajectory

DEAD = "dead at the end: all samples have the same activations"


class CompressionVerdict(NamedTuple):
    """Verdict on one layer.

    Attributes:
        falls: Bits from the peak of I(X;T) to its end, by range or estimator; NaN where the range does not fit.
        verdict: The verdict in words.
        errors: Standard errors of the falls over random combinations of the units; none of a layer that has few.
    """

    falls: dict[str, float]
    verdict: str
    errors: dict[str, float] = {}  # noqa: RUF012 - a default of a tuple


def judge(
    trajectory: Trajectory,
    estimates: Iterable[Estimate],
    method: EstimatorSettings,
    measured: Mapping[Estimate, Plane],
    parts: Parts | None = None,
) -> dict[str, CompressionVerdict]:
    """Judge every layer under the fixed, the global and the adaptive range, and the other requested estimates.

    Args:
        trajectory: The kept points of the run.
        estimates: The requested estimates; without binning among them no range is used.
        method: Bins and noise.
        measured: The curves of estimates without bins, as they were logged.
        parts: The projections of each layer; by default every layer is one.
    """
    choices = {**_under_every_range(estimates), **{estimate.name: estimate for estimate in measured}}
    planes = {choice: trajectory.curves(one, method) for choice, one in choices.items() if one not in measured}
    judged = {}
    for layer, keys in (parts or {key: [key] for key in trajectory.ranges}).items():
        keys = [key for key in keys if key in trajectory.ranges]
        if not keys:
            continue
        falls, errors, saturated = {}, {}, {}
        for choice, one in choices.items():
            curves = (
                [measured[one].get(layer, [])] if one in measured else [planes[choice].get(key, []) for key in keys]
            )
            values = [[x for _, x, _ in curve] for curve in curves]
            fits = one in measured or all(_fits(trajectory, key, one.bin_range) for key in keys)
            falls[choice] = peak_to_end(_mean(values)) if fits else math.nan
            if len(values) > 1 and fits:
                without = [peak_to_end(_mean(values[:i] + values[i + 1 :])) for i in range(len(values))]
                errors[choice] = jackknife_error(without)
            saturated[choice] = one.has_ceiling and is_saturated(_mean(values), trajectory.samples)
        verdict = compression_verdict(falls, saturated, errors=errors)
        judged[layer] = CompressionVerdict(falls, DEAD if _is_dead(trajectory, keys) else verdict, errors)
    return judged


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean curve, NaN where one of them is."""
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def _is_dead(trajectory: Trajectory, keys: Sequence[str]) -> bool:
    """Tell whether at the end all samples have the same activations."""
    last = trajectory.points[max(trajectory.points)]
    ends = [last[key].aminmax(dim=0) for key in keys if key in last]
    return bool(ends) and all(torch.equal(low, high) for low, high in ends)


def _under_every_range(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """Return every estimator with bins under all requested ranges and the three that have names."""
    given = [estimate for estimate in estimates if estimate.bin_range is not None]
    names = dict.fromkeys(estimate.name for estimate in given)
    ranges: list[BinRange] = ["fixed", "global", "adaptive"]
    ranges += [estimate.bin_range for estimate in given if estimate.bin_range is not None]
    prefixes = {name: "" if len(names) == 1 else f"{name}_" for name in names}
    return {prefixes[name] + range_name(r): Estimate("", name, r) for name in names for r in ranges}


def is_saturated(values: Iterable[float], samples: int) -> bool:
    """Tell whether all existing values are within one bit of log2 N."""
    there = [value for value in values if not math.isnan(value)]
    return bool(there) and all(near_ceiling(value, samples) for value in there)


def _fits(trajectory: Trajectory, layer: str, bin_range: BinRange | None) -> bool:
    if bin_range is None or bin_range in ("global", "adaptive"):
        return True
    ends = bounds(bin_range, torch.zeros(1), (0.0, 0.0))
    points = [point[layer] for point in trajectory.points.values() if layer in point]
    return all(not t.is_floating_point() or clamped(t, ends) <= MOST_CLAMPED for t in points)
