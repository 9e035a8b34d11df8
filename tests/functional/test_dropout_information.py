"""Information under dropout: against enumeration of all masks, quadrature, and closed forms of Gaussians."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from scipy import integrate, stats

from lightning_info.functional import DropoutNoise, dropout_information
from lightning_info.functional.information_estimators import ESTIMATORS
from lightning_info.metrics import InformationPlane


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def near(found, truth, errors=3):
    """The estimate lies within three of its standard errors, or rounding, of the truth."""
    assert abs(found[0] - truth) <= errors * found[2] + 1e-9, (found, truth)


def enumerated(t, y, p):
    """I(X;T) and I(T;Y) in bits from all masks of all samples."""
    n, joint = len(t), defaultdict(float)
    for i, row in enumerate(t.tolist()):
        for mask in itertools.product((0, 1), repeat=len(row)):
            weight = math.prod((1 - p) if kept else p for kept in mask) / n
            joint[tuple(a * kept for a, kept in zip(row, mask, strict=True)), i] += weight

    def entropy(keys):
        sums = defaultdict(float)
        for (seen, i), weight in joint.items():
            sums[keys(seen, i)] += weight
        return -sum(w * math.log2(w) for w in sums.values())

    h_t, h_y = entropy(lambda seen, i: seen), entropy(lambda seen, i: int(y[i]))
    xt = h_t + math.log2(n) - entropy(lambda seen, i: (seen, i))
    return xt, h_t + h_y - entropy(lambda seen, i: (seen, int(y[i])))


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_masks_on_few_discrete_inputs_by_enumeration(p):
    """Values repeat, across units too, some units are 0, and some samples are equal."""
    t = torch.randint(0, 3, (24, 4), generator=seeded(1)).float() - 1
    y = torch.randint(0, 3, (24,), generator=seeded(2))
    xt, ty = enumerated(t, y, p)
    found = dropout_information(t, y, noise=DropoutNoise("bernoulli", p), draws=400, generator=seeded())
    near(found, xt)
    near(found[1::2] + found[3:], ty)
    assert found.I_XT_stderr < 0.03


def test_masks_tell_all_samples_of_continuous_inputs_apart_unless_nothing_is_kept():
    """The ceiling: log2 N with the probability that at least one of the units is kept, whatever the net knows."""
    t, p = torch.randn(64, 3, generator=seeded(1)), 0.5
    found = dropout_information(t, noise=DropoutNoise("bernoulli", p), draws=200, generator=seeded())
    near(found, (1 - p**3) * 6)
    wide = dropout_information(torch.randn(64, 80), noise=DropoutNoise("bernoulli", p), generator=seeded())
    assert wide[0] == pytest.approx(6)
    assert math.isnan(wide.I_TY)


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0])
def test_gaussian_factors_on_units_of_fixed_size_are_additive_noise_on_signs(sd):
    """All signs of three units: three times what Gaussian noise leaves of one sign, by quadrature."""
    t = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))) * torch.tensor([0.1, 1.0, 30.0])

    def integrand(z):
        density = (stats.norm.pdf(z, 1, sd) + stats.norm.pdf(z, -1, sd)) / 2
        return -density * math.log2(density) if density > 0 else 0.0

    one = integrate.quad(integrand, -1 - 9 * sd, 1 + 9 * sd)[0] - stats.norm.entropy(scale=sd) / math.log(2)
    noise = DropoutNoise("gaussian", sd)
    found = dropout_information(t, (t[:, 0] > 0).long(), noise=noise, draws=1000, generator=seeded())
    near(found, 3 * one)
    near(found[1::2] + found[3:], one)
    turned = torch.linalg.qr(torch.randn(3, 3, generator=seeded(5))).Q  # keeps everything
    near(dropout_information(t, noise=noise, directions=turned, draws=1000, generator=seeded()), 3 * one)


def test_combinations_of_many_units_of_fixed_size_are_a_linear_gaussian_channel():
    """Of N = 2000 samples, whose scatter moves the values by about 0.03 bits."""
    t = torch.randint(0, 2, (2000, 300), generator=seeded(1)).double() * 2 - 1
    directions = torch.linalg.qr(torch.randn(300, 2, generator=seeded(2), dtype=torch.float64)).Q
    for sd in (0.7, 1.5):
        noise = DropoutNoise("gaussian", sd)
        found = dropout_information(t, noise=noise, directions=directions, draws=2, generator=seeded())
        assert found[0] == pytest.approx(math.log2(1 + 1 / sd**2), abs=0.05)


def test_lognormal_factors_are_additive_gaussian_noise_on_the_logarithm():
    """A log-normal unit: half the logarithm of one plus the ratio of the variances; signs are told at no cost."""
    z = torch.randn(2000, generator=seeded(1), dtype=torch.float64)
    noise = DropoutNoise("lognormal", 0.8)
    found = dropout_information(z.exp(), noise=noise, draws=2, generator=seeded())
    assert found[0] == pytest.approx(math.log2(1 + 1 / 0.64) / 2, abs=0.05)
    signs = torch.randint(0, 2, (2000,), generator=seeded(2)) * 2.0 - 1
    found = dropout_information(z.exp() * signs, (signs > 0).long(), noise=noise, draws=2, generator=seeded())
    assert found[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["bernoulli", "lognormal"])
def test_of_other_factors_combinations_read_as_gaussians_are_a_lower_bound(kind):
    """All combinations of four units hold what these do; sixteen inputs."""
    t = torch.tensor(list(itertools.product((1.0, 2.0), repeat=4)))
    noise = DropoutNoise(kind, 0.4)
    whole = dropout_information(t, noise=noise, draws=500, generator=seeded())
    read = dropout_information(t, noise=noise, directions=torch.eye(4), draws=500, generator=seeded())
    assert 0.3 < read.I_XT < whole.I_XT + 3 * math.hypot(read.I_XT_stderr, whole.I_XT_stderr)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "lognormal"])
@pytest.mark.parametrize("combined", [False, True])
def test_neither_scale_nor_order_matters_and_dead_samples_are_one(kind, combined):
    t, y = torch.randn(40, 5, generator=seeded(1), dtype=torch.float64), torch.arange(40) % 2
    t[:10] = 0
    directions = torch.randn(5, 2, generator=seeded(2), dtype=torch.float64) if combined else None
    options = {"noise": DropoutNoise(kind, 0.3), "directions": directions, "draws": 3}
    found = dropout_information(t, y, generator=seeded(), **options)
    assert dropout_information(8 * t, y, generator=seeded(), **options) == pytest.approx(found)
    nats = dropout_information(t, y, generator=seeded(), unit="nats", **options)
    assert nats == pytest.approx([math.log(2) * value for value in found])
    assert found[0] <= math.log2(40) - 0.25 * math.log2(10) + 1e-9
    none = dropout_information(0 * t, y, generator=seeded(), **options)
    assert none[:2] == pytest.approx((0, 0), abs=1e-9)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "lognormal"])
def test_factors_have_mean_one_and_the_variance_that_is_said(kind):
    noise = DropoutNoise(kind, 0.3)
    drawn = noise.draw(torch.empty(200_000, dtype=torch.float64), seeded())
    assert drawn.mean().item() == pytest.approx(1, abs=0.01)
    assert drawn.var().item() == pytest.approx(noise.variance, rel=0.03)


def test_what_is_refused():
    t, noise = torch.randn(6, 2), DropoutNoise("gaussian", 1.0)
    with pytest.raises(ValueError, match="not finite"):
        dropout_information(t / 0, noise=noise)
    with pytest.raises(ValueError, match="draws=0"):
        dropout_information(t, noise=noise, draws=0)
    with pytest.raises(ValueError, match=r"expected \(d, k\) with d = 2"):
        dropout_information(t, noise=noise, directions=torch.eye(3))
    for kind, level in (("bernoulli", 0.0), ("bernoulli", 1.0), ("gaussian", 0.0), ("uniform", 1.0)):
        with pytest.raises(ValueError, match="DropoutNoise"):
            DropoutNoise(kind, level)
    with pytest.raises(ValueError, match="dropout_information"):
        InformationPlane("dropout")
    with pytest.raises(ValueError, match="dropout_information"):
        ESTIMATORS["dropout"](t, None)
