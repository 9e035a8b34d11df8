"""Numbers of figure 2 of Saxe et al. are those read off the exact model once and confirmed by quadrature here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_info.functional import binned_information, one_unit_information, one_unit_probabilities

FUNCTIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "falling": lambda x: -np.tanh(x),
}
INVERSES = {
    "sigmoid": lambda h: h.clamp(0, 1).logit(),
    "falling": lambda h: -h.clamp(-1, 1).atanh(),
}


def quadrature(weight, activation, bins, low, high, sigma=1.0):
    """Probability of every bin, by the midpoint rule over the inputs."""
    x = (np.arange(2_000_000) + 0.5) * 1e-5 - 10
    h = FUNCTIONS[activation](weight * sigma * x)
    index = np.clip(np.floor((h - low) * bins / (high - low)), 0, bins - 1).astype(int)
    return np.bincount(index, stats.norm.pdf(x) * 1e-5, bins)


@pytest.mark.parametrize("activation", list(FUNCTIONS))
@pytest.mark.parametrize(
    ("weight", "bins", "bin_range"),
    [(0.4, 30, (-1, 1)), (-3.0, 29, (-1, 1)), (1.7, 8, (-0.5, 2.5)), (40.0, 50, (0.1, 90))],
)
def test_probabilities_and_information_are_those_of_quadrature(activation, weight, bins, bin_range):
    f = INVERSES.get(activation, activation)
    p = quadrature(weight, activation, bins, *bin_range, sigma=1.3)
    assert one_unit_probabilities(weight, f, bins, bin_range, sigma=1.3).numpy() == pytest.approx(p, abs=1e-4)
    found = one_unit_information(weight, f, bins, bin_range, sigma=1.3)
    assert found == pytest.approx(stats.entropy(p, base=2), abs=1e-3)
    assert one_unit_information(weight, f, bins, bin_range, sigma=1.3, unit="nats") == pytest.approx(
        found * math.log(2)
    )


def test_figure_2c_rises_and_falls():
    weights = [0.3, 0.6, 0.869, 1.2, 2.0, 5.0, 20.0, 1000.0]
    found = [one_unit_information(w) for w in weights]
    assert found[2] == max(found) == pytest.approx(4.900, abs=1e-3)
    assert found[:3] == sorted(found[:3])
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[5] == pytest.approx(2.775, abs=1e-3)
    assert found[7] == pytest.approx(1.020, abs=1e-3)
    assert one_unit_information(1e9) == pytest.approx(1, abs=1e-6)


def relu(weight, width=2 / 30):
    """Information of a ReLU in bins of one width, up to 10 standard deviations."""
    bins = math.ceil(10 * weight / width)
    return one_unit_information(weight, "relu", bins, (0.0, bins * width))


def test_figure_2d_only_rises():
    # half of the inputs is spread over ever more bins: half a bit for every doubling
    found = [relu(w) for w in (0.1, 0.5, 1.0, 3.0, 12.5, 25.0, 50.0, 100.0)]
    assert found == sorted(found)
    assert found[7] - found[6] == pytest.approx(0.503, abs=1e-3)
    assert relu(1600.0) - relu(800.0) == pytest.approx(0.5, abs=2e-3)


def test_a_range_that_follows_the_weight_sees_no_change():
    found = [one_unit_information(w, "relu", 100, (0, 4 * w)) for w in (0.01, 1.0, 50.0)]
    assert found == pytest.approx([3.743] * 3, abs=1e-3)


def test_half_of_the_inputs_are_in_the_bin_of_zero():
    p = one_unit_probabilities(2.0, "relu", 40, (-1.0, 7.0))
    assert p[:5].tolist() == [0] * 5
    assert p[5].item() == pytest.approx(stats.norm.cdf(0.2 / 2), abs=1e-12)
    assert one_unit_probabilities(1e-6, "relu", 30, (0.0, 1.0))[0].item() == pytest.approx(1)


def test_a_vanishing_weight_reads_one_bit_in_an_even_number_of_bins():
    assert one_unit_information(1e-9, bins=30) == pytest.approx(1, abs=1e-12)
    assert one_unit_information(1e-9, "linear", bins=2) == pytest.approx(1, abs=1e-12)
    assert one_unit_information(1e-9, bins=29) == 0
    assert one_unit_information(0.0, bins=30) == 0
    assert one_unit_probabilities(0.0, bins=30).argmax() == 15  # where the bins of samples have it
    assert one_unit_probabilities(0.0, INVERSES["falling"], 30).argmax() == 15


@pytest.mark.parametrize("weight", [0.2, 0.869, 5.0])
def test_binned_samples_approach_it(weight):
    # 4096 samples, 20 seeds: the plug-in estimate is too low by about (bins in use - 1) / 2N nats
    found = [
        binned_information(
            torch.tanh(weight * torch.randn(4096, generator=torch.Generator().manual_seed(i))), None, 30, "fixed"
        )
        for i in range(20)
    ]
    mean = np.mean([point.I_XT for point in found])
    used = (one_unit_probabilities(weight) > 1e-5).sum().item()
    assert mean + (used - 1) / 8192 / math.log(2) == pytest.approx(one_unit_information(weight), abs=5e-3)


def test_only_the_size_of_the_weight_and_its_product_with_sigma_count():
    plain = one_unit_information(1.5)
    assert one_unit_information(-1.5) == pytest.approx(plain, abs=1e-12)
    assert one_unit_information(3.0, sigma=0.5) == pytest.approx(plain, abs=1e-12)
    assert one_unit_information(1.5, INVERSES["falling"]) == pytest.approx(plain, abs=1e-12)
    assert one_unit_information(1.5, bins=1) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_unit_information(1.0, "gelu"), "choose 'tanh', 'relu', 'linear', or pass the inverse"),
        (lambda: one_unit_information(1.0, bins=0), "bins=0"),
        (lambda: one_unit_information(1.0, bin_range=(1.0, -1.0)), "expected low < high"),
        (lambda: one_unit_information(1.0, sigma=0.0), "positive standard deviation"),
        (lambda: one_unit_information(math.inf), "finite weight"),
        (lambda: one_unit_information(1.0, torch.atanh, 30, (-2.0, 2.0)), "clamp its argument"),
        (lambda: one_unit_information(1.0, unit="bit"), "'bits' or 'nats'"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
