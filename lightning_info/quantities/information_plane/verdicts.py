"""How far each layer's I(X;T) fell from its peak, under each range of the bins, and whether the choice decides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from lightning_info.functional.compression import compression_verdict, peak_to_end
from lightning_info.quantities.information_plane.artefacts import MOST_CLAMPED, clamped, near_ceiling
from lightning_info.quantities.information_plane.estimates import (
    BinRange,
    Estimate,
    EstimatorSettings,
    bounds,
    range_name,
)
from lightning_info.quantities.information_plane.trajectory import Plane, Trajectory


class CompressionVerdict(NamedTuple):
    """Of one layer.

    Attributes:
        falls: Range or estimator -> bits from the peak of I(X;T) to its end; NaN where the range does not fit.
        verdict: In words.
    """

    falls: dict[str, float]
    verdict: str


def judge(
    trajectory: Trajectory, estimates: Iterable[Estimate], method: EstimatorSettings, measured: Mapping[Estimate, Plane]
) -> dict[str, CompressionVerdict]:
    """Judge every layer under the fixed, the global and the adaptive range and what else was asked for.

    Args:
        trajectory: What was kept of the run.
        estimates: The estimates that were asked for; without binning among them no range is looked at.
        method: Bins and noise.
        measured: The curves of those without bins, as they were logged.
    """
    choices = {**_under_every_range(estimates), **{estimate.name: estimate for estimate in measured}}
    planes = {
        choice: measured[one] if one in measured else trajectory.curves(one, method) for choice, one in choices.items()
    }
    judged = {}
    for layer in trajectory.ranges:
        falls, saturated = {}, {}
        for choice, one in choices.items():
            values = [x for _, x, _ in planes[choice].get(layer, ()) if not math.isnan(x)]
            falls[choice] = peak_to_end(values) if _fits(trajectory, layer, one.bin_range) else math.nan
            saturated[choice] = one.has_ceiling and is_saturated(values, trajectory.samples)
        judged[layer] = CompressionVerdict(falls, compression_verdict(falls, saturated))
    return judged


def _under_every_range(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """Every estimator with bins under all ranges that were asked for and the three that have names."""
    given = [estimate for estimate in estimates if estimate.bin_range is not None]
    names = dict.fromkeys(estimate.name for estimate in given)
    ranges: list[BinRange] = ["fixed", "global", "adaptive"]
    ranges += [estimate.bin_range for estimate in given if estimate.bin_range is not None]
    prefixes = {name: "" if len(names) == 1 else f"{name}_" for name in names}
    return {prefixes[name] + range_name(r): Estimate("", name, r) for name in names for r in ranges}


def is_saturated(values: Iterable[float], samples: int) -> bool:
    """Whether all values that there are lie within a bit of log2 N."""
    there = [value for value in values if not math.isnan(value)]
    return bool(there) and all(near_ceiling(value, samples) for value in there)


def _fits(trajectory: Trajectory, layer: str, bin_range: BinRange | None) -> bool:
    if bin_range is None or bin_range in ("global", "adaptive"):
        return True
    ends = bounds(bin_range, torch.zeros(1), (0.0, 0.0))
    points = [point[layer] for point in trajectory.points.values() if layer in point]
    return all(not t.is_floating_point() or clamped(t, ends) <= MOST_CLAMPED for t in points)
