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
    planes: dict[str, Plane] = {}
    ranges: list[BinRange] = []
    given = [estimate.bin_range for estimate in estimates if estimate.bin_range is not None]
    if given:
        ranges = list(dict.fromkeys([*("fixed", "global", "adaptive"), *given]))
    for bin_range in ranges:
        planes[range_name(bin_range)] = trajectory.curves(Estimate("", "binning", bin_range), method)
    planes |= {estimate.estimator: plane for estimate, plane in measured.items()}
    unbounded = {estimate.estimator for estimate in measured if not estimate.has_ceiling}
    unfit = {(layer, range_name(r)) for r in ranges for layer in trajectory.ranges if not _fits(trajectory, layer, r)}
    judged = {}
    for layer in trajectory.ranges:
        falls, saturated = {}, {}
        for choice, plane in planes.items():
            values = [x for _, x, _ in plane.get(layer, ()) if not math.isnan(x)]
            falls[choice] = math.nan if (layer, choice) in unfit else peak_to_end(values)
            saturated[choice] = choice not in unbounded and is_saturated(values, trajectory.samples)
        judged[layer] = CompressionVerdict(falls, compression_verdict(falls, saturated))
    return judged


def is_saturated(values: Iterable[float], samples: int) -> bool:
    """Whether all values that there are lie within a bit of log2 N."""
    there = [value for value in values if not math.isnan(value)]
    return bool(there) and all(near_ceiling(value, samples) for value in there)


def _fits(trajectory: Trajectory, layer: str, bin_range: BinRange) -> bool:
    if bin_range in ("global", "adaptive"):
        return True
    ends = bounds(bin_range, torch.zeros(1), (0.0, 0.0))
    points = [point[layer] for point in trajectory.points.values() if layer in point]
    return all(not t.is_floating_point() or clamped(t, ends) <= MOST_CLAMPED for t in points)
