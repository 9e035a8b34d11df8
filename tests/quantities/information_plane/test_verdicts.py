"""Whether a layer compresses, on curves that are known by construction."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_info.quantities.information_plane.estimates import Estimate, EstimatorSettings
from lightning_info.quantities.information_plane.trajectory import Trajectory
from lightning_info.quantities.information_plane.verdicts import is_saturated, judge

N = 64
LEVELS = torch.arange(N).double().unsqueeze(1)
METHOD = EstimatorSettings(16)
GLOBAL = Estimate("info_plane", "binning", "global")
MIXTURE, GAUSSIAN = Estimate("m", "mixture", None), Estimate("g", "gaussian", None)


def values(count):
    """So many different activations, equally often: log2 of them is their entropy."""
    return (torch.arange(N) % count).double().unsqueeze(1)


def judged(points, *estimates, measured=None, method=METHOD):
    """The judgement of a layer with these activations at steps 0, 1, ..."""
    trajectory = Trajectory()
    for step, t in enumerate(points):
        trajectory.add(step, {"a": t}, None, N)
    return judge(trajectory, estimates or (GLOBAL,), method, measured or {})["a"]


def test_a_layer_that_loses_values_within_one_range_compresses_under_every_range_that_fits():
    # within (-1, 1), the ends taken at every point, so that all three ranges are the same
    def within(count):
        return 2 * values(count) / (count - 1) - 1

    judgement = judged([within(4), within(8), within(2)])
    assert judgement.falls == pytest.approx({"fixed": 2.0, "global": 2.0, "adaptive": 2.0})
    assert judgement.verdict == "compresses"


def test_growth_is_compression_under_the_adaptive_range_only():
    # one outlier runs away: the others share fewer and fewer bins of the point's own range
    points = []
    for outlier in (15.0, 31.0, 255.0):
        t = values(16)
        t[-1] = outlier
        points.append(t)
    judgement = judged([*points])
    assert judgement.falls["adaptive"] > 1
    assert judgement.falls["global"] == 0
    assert math.isnan(judgement.falls["fixed"])  # nearly all activations lie outside of (-1, 1)
    assert judgement.verdict.startswith("depends on the range: falls under adaptive, not under global")


def test_constant_information_does_not_compress():
    judgement = judged([values(4), values(4)])
    assert judgement.falls["global"] == judgement.falls["adaptive"] == 0
    assert judgement.verdict == "does not compress"


def test_a_layer_at_the_ceiling_says_nothing():
    assert judged([LEVELS, LEVELS], method=EstimatorSettings(64)).verdict == "saturated: says nothing"


def test_a_layer_that_was_never_finite_is_not_judged():
    trajectory = Trajectory()
    trajectory.add(0, {"a": torch.full((N, 1), math.nan), "b": values(4)}, None, N)
    assert judge(trajectory, [GLOBAL], METHOD, {}).keys() == {"b"}


def test_gaps_take_no_part():
    judgement = judged([values(8), torch.full((N, 1), math.nan), values(8)])
    assert judgement.falls["adaptive"] == 0
    assert judgement.verdict == "does not compress"


def test_a_given_range_is_judged_beside_the_three_and_only_where_it_fits():
    fitting, outside = Estimate("", "binning", (0.0, 16.0)), Estimate("", "binning", (0.0, 3.0))
    judgement = judged([values(8), values(2)], GLOBAL, fitting, outside)
    assert list(judgement.falls) == ["fixed", "global", "adaptive", "0_16", "0_3"]
    assert judgement.falls["0_16"] == pytest.approx(2.0)
    assert math.isnan(judgement.falls["0_3"])
    assert judgement.verdict == "compresses"


def test_a_range_fits_if_it_does_at_every_point():
    judgement = judged([0.1 * values(8), 0.1 * values(8), values(8)])
    assert math.isnan(judgement.falls["fixed"])
    assert judgement.falls["global"] == pytest.approx(0.0)


@pytest.mark.parametrize(("estimate", "verdict"), [(MIXTURE, "saturated: says nothing"), (GAUSSIAN, "compresses")])
def test_measured_curves_are_judged_as_they_were_logged_and_the_gaussian_has_no_ceiling(estimate, verdict):
    curve = {"a": [(0, 5.9, 0.0), (1, math.nan, 0.0), (2, 5.2, 0.0)]}  # log2 N = 6
    judgement = judged([values(4)], estimate, measured={estimate: curve})
    assert judgement.falls == pytest.approx({estimate.name: 0.7})
    assert judgement.verdict == verdict


def test_bins_and_noise_are_judged_together():
    curve = {"a": [(0, 3.0, 0.0), (1, 1.0, 0.0)]}
    judgement = judged([values(4), values(4)], GLOBAL, MIXTURE, measured={MIXTURE: curve})
    assert judgement.verdict.startswith("depends")
    assert "falls under mixture, not under global, adaptive" in judgement.verdict


def test_saturated_is_a_curve_that_is_never_a_bit_below_the_ceiling():
    assert is_saturated([7.5, math.nan, 7.1], 256)
    assert not is_saturated([7.5, 6.9], 256)
    assert not is_saturated([], 256)
    assert not is_saturated([math.nan], 256)
