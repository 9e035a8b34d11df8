"""What an estimator says of one layer, against scikit-learn on the bins and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score

from lightning_info.quantities.information_plane.estimates import (
    Estimate,
    EstimatorSettings,
    bounds,
    range_name,
    range_words,
)
from lightning_info.quantities.information_plane.labels import IGNORED, Labels

N, BINS = 60, 7
T = torch.randn(N, 3).tanh()
Y = torch.randint(3, (N,))
METHOD = EstimatorSettings(BINS)
SEEN = (-3.0, 2.5)
RANGES = {
    "fixed": (-1.0, 1.0),
    "global": SEEN,
    "adaptive": (T.min().item(), T.max().item()),
    (-0.5, 0.25): (-0.5, 0.25),
}


def binning(bin_range="adaptive"):
    return Estimate("info_plane", "binning", bin_range)


MIXTURE, GAUSSIAN = Estimate("info_plane", "mixture", None), Estimate("info_plane", "gaussian", None)


def read(estimate, t=T, y=None, seen=SEEN, method=METHOD):
    labels = None if y is None else Labels(y)
    return estimate.read(t, labels, seen, method, torch.Generator().manual_seed(3))


def codes(t, low, high):
    """One integer for each row of bins, by numpy."""
    inner = np.linspace(low, high, BINS + 1)[1:-1]
    return np.unique(np.digitize(t.double().numpy(), inner), axis=0, return_inverse=True)[1].reshape(-1)


def bits(a, b):
    return mutual_info_score(a, b) / math.log(2)


def half_log(t, variance):
    """I(X;T) in bits of a single Gaussian unit."""
    return 0.5 * math.log2(1 + t.double().var(correction=0).item() / variance)


# ---- bins


@pytest.mark.parametrize("bin_range", RANGES)
def test_binning_is_the_information_of_the_bins_of_its_range(bin_range):
    found = read(binning(bin_range), y=Y)
    cells = codes(T, *RANGES[bin_range])
    assert bounds(bin_range, T, SEEN) == RANGES[bin_range]
    assert pytest.approx(bits(cells, cells), abs=1e-12) == found.I_XT
    assert pytest.approx(bits(cells, Y), abs=1e-12) == found.I_TY
    assert found.unique == pytest.approx((np.unique(cells, return_counts=True)[1] == 1).sum() / N)
    assert (found.low, found.high, found.stderr) == (None, None, None)


@pytest.mark.parametrize("bin_range", RANGES)
def test_samples_without_a_label_count_for_i_xt_only_and_move_no_bin(bin_range):
    known = T.abs().amax(1) < 0.9  # those without have the largest activations
    assert 10 < known.sum() < N - 10
    found = read(binning(bin_range), y=torch.where(known, Y, IGNORED))
    cells = codes(T, *RANGES[bin_range])
    assert pytest.approx(bits(cells, cells), abs=1e-12) == found.I_XT
    assert pytest.approx(bits(cells[known], Y[known]), abs=1e-12) == found.I_TY


@pytest.mark.parametrize("estimate", [binning(), MIXTURE, GAUSSIAN], ids=str)
def test_without_labels_i_ty_is_not_a_number(estimate):
    for y in (None, torch.full((N,), IGNORED)):
        found = read(estimate, y=y)
        assert math.isnan(found.I_TY)
        assert pytest.approx(read(estimate, y=Y).I_XT, rel=0.1) == found.I_XT


@pytest.mark.parametrize("estimate", [binning("global"), binning(), binning("fixed"), MIXTURE, GAUSSIAN], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e17, -1e17])
def test_constant_layers_have_no_information(estimate, value):
    t = torch.full((N, 2), value, dtype=torch.float64)
    found = read(estimate, t, Y, (value, value))
    assert pytest.approx((0.0, 0.0), abs=1e-9) == (found.I_XT, found.I_TY)


def test_a_single_sample_has_no_information():
    for estimate in (binning(), MIXTURE, GAUSSIAN):
        found = read(estimate, T[:1], Y[:1])
        assert pytest.approx((0.0, 0.0), abs=1e-9) == (found.I_XT, found.I_TY)


@pytest.mark.parametrize("scale", [2.0**-13, 4.0, 2.0**20])
def test_the_adaptive_range_is_blind_to_scale_and_the_fixed_is_not(scale):
    assert read(binning(), scale * T, Y)[:2] == pytest.approx(read(binning(), T, Y)[:2], abs=1e-12)
    assert read(binning("fixed"), scale * T)[0] != pytest.approx(read(binning("fixed"), T)[0], abs=0.3)


# ---- noise


def test_noise_is_in_proportion_to_the_layer_unless_its_variance_is_given():
    t = torch.randn(400, 1)
    for scale in (1.0, 1000.0):
        variance = 0.2**2 * (scale * t).double().var(correction=0).item()
        assert EstimatorSettings(BINS, 0.2).variance(scale * t) == pytest.approx(variance, rel=1e-9)
        assert (
            pytest.approx(0.5 * math.log2(26), rel=1e-6)
            == read(GAUSSIAN, scale * t, method=EstimatorSettings(BINS, 0.2)).I_XT
        )
    assert pytest.approx(half_log(t, 0.5), rel=1e-6) == read(GAUSSIAN, t, method=EstimatorSettings(BINS, 0.2, 0.5)).I_XT


def test_the_noise_of_several_units_is_of_their_mean_variance():
    t = torch.stack([torch.zeros(50), torch.arange(50.0)], 1)
    assert EstimatorSettings(BINS, 1.0).variance(t) == pytest.approx((50**2 - 1) / 12 / 2, rel=1e-9)


def test_far_apart_points_under_little_noise_are_at_the_ceiling_and_two_clusters_at_one_bit():
    far, method = 100 * torch.arange(32.0).unsqueeze(1), EstimatorSettings(BINS, noise_variance=1.0)
    halves = torch.arange(32) % 2
    found = read(MIXTURE, far, halves, method=method)
    assert pytest.approx((5.0, 1.0), abs=1e-6) == (found.I_XT, found.I_TY)
    two = read(MIXTURE, 100.0 * halves.unsqueeze(1), halves, method=method)
    assert pytest.approx((1.0, 1.0), abs=1e-6) == (two.I_XT, two.I_TY)


def test_bounds_of_the_mixture_hold_the_sampling_estimate():
    found = read(MIXTURE, y=Y)
    for kind in (0, 1):
        assert found.low[kind] <= found[kind] <= found.high[kind]
        assert found.stderr[kind] >= 0
    assert found.high[0] <= math.log2(N) + 1e-9
    assert found.high[1] <= stats.entropy(Y.bincount(), base=2) + 1e-9
    assert math.isnan(found.unique)


@pytest.mark.parametrize("estimate", [MIXTURE, GAUSSIAN], ids=str)
def test_samples_without_a_label_do_not_change_the_noise_of_the_others(estimate):
    known = torch.arange(N) < 30
    t = torch.where(known.unsqueeze(1), T, 100 * T)
    found = read(estimate, t, torch.where(known, Y, IGNORED))
    noise = EstimatorSettings(BINS, noise_variance=EstimatorSettings(BINS).variance(t))
    few = read(estimate, t[known], Y[known], method=noise)
    assert pytest.approx(read(estimate, t, method=noise).I_XT) == found.I_XT
    if estimate is GAUSSIAN:
        assert pytest.approx(few.I_TY) == found.I_TY
    else:  # bounds are not drawn
        assert (found.low[1], found.high[1]) == pytest.approx((few.low[1], few.high[1]))
        assert found.low[1] <= found.I_TY <= found.high[1]
        assert not math.isnan(found.stderr[1])


def test_the_mixture_is_the_same_for_the_same_generator_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    assert repr(read(MIXTURE, y=Y)) == repr(read(MIXTURE, y=Y))
    assert torch.equal(before, torch.get_rng_state())


def test_the_gaussian_knows_no_ceiling():
    assert not GAUSSIAN.has_ceiling
    assert MIXTURE.has_ceiling
    assert binning().has_ceiling
    assert 2 * math.log2(8) < read(GAUSSIAN, torch.randn(8, 5), method=EstimatorSettings(BINS, 1e-4)).I_XT


# ---- what they are called


def test_estimates_say_what_they_are():
    assert str(MIXTURE) == "mixture"
    assert str(binning((0.0, 8.5))) == "binning, range (0, 8.5)"
    for name in ("fixed", "global", "adaptive"):
        assert str(binning(name)).startswith(f"binning, {name} range (")
        assert range_name(name) == name
        assert range_words(name) in str(binning(name))
    assert range_name((-0.5, 2.0)) == "-0.5_2"


def test_only_the_mixture_has_families_of_bounds():
    assert Estimate("a", "binning", "fixed").families() == Estimate("a", "gaussian", None).families() == ("a",)
    assert Estimate("a", "binning", "fixed").families(8) == ("a", "a_stderr")
    assert Estimate("a", "mixture", None).families() == ("a", "a_lower", "a_upper", "a_stderr")


# ---- layers of integers


@pytest.mark.parametrize("estimate", [binning("fixed"), binning("global"), MIXTURE, GAUSSIAN], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_of_integers_information_is_exact_under_every_estimator(estimate, dtype):
    codes = torch.randint(0, 4, (N, 2)).to(dtype)
    codes = codes + (2**60 if dtype == torch.int64 else 0)
    rows, y = [tuple(row) for row in codes.tolist()], Y
    counts = np.unique([rows.index(row) for row in rows], return_counts=True)[1]
    found = read(estimate, codes, y)
    assert pytest.approx(stats.entropy(counts, base=2)) == found.I_XT
    assert pytest.approx(mutual_info_score([rows.index(row) for row in rows], y) / math.log(2)) == found.I_TY
    tags = estimate.tagged(found, "net")
    assert len(tags) == 2 * len(estimate.families())
    assert all(math.isfinite(value) for value in tags.values())


def test_of_integers_some_of_which_have_no_label_those_with_one_tell_of_y():
    codes, y = torch.arange(6).unsqueeze(1) // 2, torch.tensor([0, 0, 1, 1, IGNORED, IGNORED])
    found = read(MIXTURE, codes, y)
    assert pytest.approx((math.log2(3), 1.0)) == (found.I_XT, found.I_TY)


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 5e-324, 0.0])
def test_the_range_of_equal_values_is_one_of_finite_numbers(value):
    low, high = bounds("adaptive", torch.tensor([value], dtype=torch.float64), SEEN)
    assert low <= value <= high
    assert low < high < math.inf
