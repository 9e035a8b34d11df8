"""Every artefact is named where it is and nowhere else."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lightning_info.functional.information_estimator import LayerInformation
from lightning_info.quantities.information_plane.artefacts import (
    ARTEFACTS,
    LayerReading,
    PointContext,
    clamped,
    near_ceiling,
    shuffled,
)
from lightning_info.quantities.information_plane.estimates import Estimate, EstimatorSettings, bounds
from lightning_info.quantities.information_plane.labels import IGNORED, Labels

N = 256
Y = torch.arange(N) % 4
COARSE = (torch.arange(N) % 8).double().unsqueeze(1)  # eight values: nothing is wrong with it
LEVELS = torch.arange(N).double().unsqueeze(1)
UNIQUE = LEVELS * torch.tensor([1.0, 0.0]) + torch.rand(
    N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)
TINY = 1e-6 * torch.randn(N, 1)


def case(t, bin_range="global", estimator="binning", layer="net.1", bins=30, y=Y, noise=0.1):
    estimate = Estimate("info_plane", estimator, bin_range if estimator == "binning" else None)
    seen = t.min().item(), t.max().item()
    reading = estimate.read(
        t, None if y is None else Labels(y), seen, EstimatorSettings(bins, noise), torch.Generator()
    )
    return LayerReading(layer, estimate, t, bounds(bin_range, t, seen) if estimator == "binning" else None, reading)


def said(kind, *cases, bins=30, y=Y):
    setting = PointContext(bins, None if y is None else Labels(y), torch.Generator().manual_seed(0))
    return ARTEFACTS[kind](list(cases), setting)


def kinds(*cases, bins=30, y=Y):
    return {kind for kind in ARTEFACTS if said(kind, *cases, bins=bins, y=y) is not None}


@pytest.mark.parametrize("bin_range", ["global", "adaptive", (-1.0, 8.0)])
@pytest.mark.parametrize("bins", [29, 30])
def test_a_healthy_layer_has_none(bin_range, bins):
    assert kinds(case(COARSE, bin_range, bins=bins), bins=bins) == set()
    assert kinds() == set()


# ---- the ceiling


def test_a_layer_within_a_bit_of_log2_n_is_at_the_ceiling():
    at, below = case(LEVELS, bins=N // 2 + 1, layer="deep"), case(LEVELS, bins=N // 2 - 1, layer="first")
    assert 6.9 < below.reading.I_XT < 7.0 < at.reading.I_XT
    message = said("ceiling", below, at)
    assert "layer 'deep' is within 1 bit" in message
    assert "log2 N = 8 bits" in message
    assert "first" not in message
    assert said("ceiling", below) is None
    assert "binning, global range" in message


@pytest.mark.parametrize(("information", "samples", "near"), [(7.0, 256, False), (7.01, 256, True), (0.0, 2, False)])
def test_near_means_less_than_a_bit(information, samples, near):
    assert near_ceiling(information, samples) is near


def test_the_mixture_has_the_ceiling_and_the_gaussian_has_not():
    t = torch.randn(N, 6)
    mixture, gaussian = case(t, estimator="mixture", noise=0.01), case(t, estimator="gaussian", noise=0.01)
    assert min(mixture.reading.I_XT, gaussian.reading.I_XT) > 7.0
    assert "(mixture)" in said("ceiling", mixture)
    assert said("ceiling", gaussian) is None


def test_values_that_are_missing_are_not_at_the_ceiling():
    broken = LayerReading("a", Estimate("", "mixture", None), COARSE, None, LayerInformation(math.nan, math.nan))
    assert kinds(broken) == set()


# ---- memorised bins


def test_unique_codes_are_told_with_what_shuffled_labels_read():
    message = said("memorised", case(UNIQUE, bins=3000), case(COARSE, layer="coarse"), bins=3000)
    read, entropy, chance = map(float, re.findall(r"(\d\.?\d*) (?:of|bits)", message.replace("= ", "")))
    assert (read, entropy) == (2.0, 2.0)
    assert chance > 1.8  # labels that mean nothing read as much
    assert "'net.1'" in message
    assert "coarse" not in message


def test_half_of_the_samples_with_a_code_of_their_own_are_not_yet_too_many():
    t = torch.cat([torch.zeros(N // 2), torch.arange(1, N // 2 + 1)]).double().unsqueeze(1)
    assert case(t, bins=N).reading.unique == 0.5
    assert said("memorised", case(t, bins=N), bins=N) is None
    t[0] = -1.0
    assert said("memorised", case(t, bins=N), bins=N) is not None


@pytest.mark.parametrize("y", [None, torch.zeros(N).long(), torch.full((N,), IGNORED), torch.where(Y > 0, Y, IGNORED)])
def test_without_labels_to_memorise_nothing_is_said(y):
    assert said("memorised", case(UNIQUE, bins=3000, y=y), bins=3000, y=y) is None


def test_without_bins_nothing_is_memorised_in_them():
    assert said("memorised", case(UNIQUE, estimator="mixture", noise=1e-4)) is None


def test_shuffled_labels_read_nothing_of_one_bin_and_all_of_unique_codes():
    setting = PointContext(30, Labels(Y), torch.Generator())
    assert shuffled(case(torch.zeros(N, 1)), setting) == 0.0
    assert shuffled(case(LEVELS, bins=N), PointContext(N, setting.labels, setting.generator)) == pytest.approx(2.0)
    assert shuffled(case(COARSE), setting) < 0.3
    for nothing in (PointContext(30, None, torch.Generator()), PointContext(30, Labels(Y - 1), torch.Generator())):
        assert math.isnan(shuffled(case(COARSE), nothing))
    assert math.isnan(shuffled(case(COARSE, estimator="gaussian"), setting))


# ---- the sign


def test_tiny_activations_read_their_sign_under_an_even_number_of_bins_and_nothing_under_an_odd_one():
    even, odd = case(TINY, "fixed"), case(TINY, "fixed", bins=31)
    assert even.reading.I_XT > 0.9
    assert odd.reading.I_XT == 0.0
    message = said("sign bit", even)
    assert "'net.1'" in message
    assert "bins=31" in message
    assert said("sign bit", odd, bins=31) is None


@pytest.mark.parametrize("bins", [2, 3, 5, 12, 29, 30, 31, 100])
def test_the_example_of_another_number_of_bins_does_away_with_it(bins):
    width = 2 / bins
    t = -1 + width * (bins // 2) + 0.01 * width * torch.randn(N, 1, dtype=torch.float64)  # around an edge
    before, after = case(t, "fixed", bins=bins), case(t, "fixed", bins=bins + 1)
    message = said("sign bit", before, bins=bins)
    assert f"bins={bins + 1}" in message
    assert before.reading.I_XT > 0.9
    assert after.reading.I_XT == 0.0
    assert said("sign bit", after, bins=bins + 1) is None


@pytest.mark.parametrize(
    "t",
    [
        TINY.abs(),  # ReLU: one bin
        TINY + 0.03,
        0.1 * TINY / TINY.abs().max(),  # over several bins
        torch.full((N, 1), 0.0),
        torch.full((N, 1), 1.0),
    ],
)
def test_activations_on_one_side_or_over_several_bins_are_not_cut_in_two(t):
    assert said("sign bit", case(t, "fixed")) is None


def test_the_ends_of_the_range_are_no_edges_between_bins():
    for end in (-1.0, 1.0):
        t = end + TINY
        assert case(t, "fixed").reading.I_XT == 0.0
        assert said("sign bit", case(t, "fixed")) is None
    assert said("sign bit", case(TINY, (0.0, 1.0)), y=None) is None


@pytest.mark.parametrize("bins", [1, 2, 3, 30])
def test_a_range_of_the_layers_own_cuts_nothing_in_two(bins):
    assert said("sign bit", case(TINY, "adaptive", bins=bins), case(TINY, bins=bins), bins=bins) is None


def test_a_layer_that_once_was_larger_is_cut_in_two_under_the_global_range():
    estimate = Estimate("", "binning", "global")
    reading = estimate.read(TINY, None, (-2.0, 2.0), EstimatorSettings(30))
    assert reading.I_XT > 0.9
    assert said("sign bit", LayerReading("a", estimate, TINY, (-2.0, 2.0), reading)) is not None


# ---- ranges that do not fit


@pytest.mark.parametrize("given", ["fixed", (-10.0, 10.0)])
def test_a_layer_within_less_than_three_bins_of_a_given_range_is_starved(given):
    width = 2 / 30 if given == "fixed" else 20 / 30
    for share, starved in ((0.5, True), (2.9, True), (3.1, False)):
        t = torch.linspace(0, share * width, N, dtype=torch.float64).unsqueeze(1)
        message = said("starved", case(t, given))
        assert (message is not None) is starved
    assert said("starved", case(torch.zeros(N, 1), given)) is None  # constant: nothing to resolve


@pytest.mark.parametrize("own", ["global", "adaptive"])
def test_a_range_of_its_own_starves_no_layer_and_leaves_nothing_outside(own):
    for t in (TINY, 1000 * torch.randn(N, 2), torch.zeros(N, 1)):
        assert kinds(case(t, own, y=None), y=None) <= {"ceiling"}


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.005, False), (0.02, True), (1.0, True)])
def test_activations_outside_of_a_given_range_are_told_beyond_one_in_a_hundred(share, told):
    t = torch.linspace(-1, 1, 1000).reshape(500, 2).clone()
    t.view(-1)[: int(1000 * share)] += 3.0
    assert clamped(t, (-1.0, 1.0)) == pytest.approx(share)
    y = torch.zeros(500).long()
    message = said("outside", case(t, "fixed", y=y), y=y)
    assert (message is not None) is told
    assert said("outside", case(t, (-5.0, 5.0), y=y), y=y) is None


def test_estimates_without_bins_have_no_artefact_of_bins():
    for estimator in ("mixture", "gaussian"):
        assert kinds(case(TINY, estimator=estimator, y=None), y=None) <= {"ceiling", "bounds"}


# ---- bounds far apart


def test_bounds_more_than_a_bit_apart_are_told():
    def mixture(gap, layer):
        reading = LayerInformation(2.0, 1.0, low=(2.0, 1.0), high=(2.0 + gap, 1.0))
        return LayerReading(layer, Estimate("", "mixture", None), COARSE, None, reading)

    message = said("bounds", mixture(0.9, "narrow"), mixture(1.5, "wide"), mixture(1.25, "wider"))
    assert "up to 1.5 bits apart" in message
    assert "'wide', 'wider'" in message
    assert "narrow" not in message
    assert said("bounds", mixture(1.0, "narrow")) is None
    assert said("bounds", case(COARSE), case(COARSE, estimator="gaussian")) is None


# ---- names


def test_many_layers_are_counted_and_each_is_named_once():
    cases = [case(TINY, "fixed", layer=f"net.{i}") for i in range(7)] * 2
    message = said("sign bit", *cases)
    assert "layers 'net.0', 'net.1', 'net.2', 'net.3' and 3 more lie" in message
