"""The fall of each layer's I(X;T) from its peak under each range of the bins, and whether it depends on the range."""

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
    """Verdict on one layer.

    Attributes:
        falls: Bits from the peak of I(X;T) to its end, by range or estimator; NaN where the range does not fit.
        verdict: The verdict in words.
    """

    falls: dict[str, float]
    verdict: str


def judge(
    trajectory: Trajectory, estimates: Iterable[Estimate], method: EstimatorSettings, measured: Mapping[Estimate, Plane]
) -> dict[str, CompressionVerdict]:
    """Judge every layer under the fixed, the global and the adaptive range, and the other requested estimates.

    Args:
        trajectory: The kept points of the run.
        estimates: The requested estimates; without binning among them no range is used.
        method: Bins and noise.
        measured: The curves of estimates without bins, as they were logged.
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
