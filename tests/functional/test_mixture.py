from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions

from lightning_info.functional import mixture, mixture_information


def plain_bounds(t, y, variance):
    """Lower and upper bound of I(X;T), and of I(T;Y) before it is clipped, nats, by their definition."""
    squares = (t.double()[:, None] - t.double()[None]).square().sum(2)

    def bound(c, members=slice(None)):
        inside = squares[members][:, members]
        return (math.log(len(inside)) - torch.logsumexp(-inside / (c * variance), 1)).mean().item()

    def given_y(c):
        return sum((y == label).double().mean().item() * bound(c, y == label) for label in y.unique())

    return bound(8), bound(2), bound(8) - given_y(2), bound(2) - given_y(8)


def quadrature(t, y, variance):
    """I(X;T) and I(T;Y) of one unit, nats, by numerical integration over T."""
    centres, sd = t.double().numpy(), variance**0.5

    def entropy(members):
        def integrand(z):
            p = stats.norm.pdf(z, members, sd).mean()
            return -p * math.log(p) if p > 0 else 0.0

        points = np.linspace(members.min() - 12 * sd, members.max() + 12 * sd, 60)
        return sum(integrate.quad(integrand, a, b)[0] for a, b in pairwise(points))

    whole, labels = entropy(centres), y.numpy()
    given = sum((labels == label).mean() * entropy(centres[labels == label]) for label in np.unique(labels))
    return whole - 0.5 * math.log(2 * math.pi * math.e * variance), whole - given


def points(n=60, d=3, classes=4):
    y = torch.randint(0, classes, (n,))
    return torch.randn(n, d) + y[:, None], y


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [60, 1030])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.float16, 1e-5)])
@pytest.mark.parametrize("variance", [0.05, 0.5, 30.0])
def test_bounds_are_those_of_the_definition(n, dtype, error, variance):
    t, y = points(n)
    t = t.to(dtype)
    found = mixture_information(t, y - 2, variance, draws=0, unit="nats")
    lower, upper, ty_lower, ty_upper = plain_bounds(t, y, variance)
    h_y = stats.entropy(y.bincount())
    assert found[2:4] == pytest.approx((lower, upper), abs=error)
    assert found[4:6] == pytest.approx((max(0, ty_lower), min(h_y, upper, ty_upper)), abs=error)
    assert all(math.isnan(value) for value in (*found[:2], *found[6:]))


def test_bounds_of_information_about_classes_where_nothing_clips_them():
    # two classes at a distance of 2.8 standard deviations of the noise, a spread of much less inside them
    y = torch.arange(80) % 2
    t = 0.03 * torch.randn(80, 2) + 2.0 * y[:, None]
    found = mixture_information(t.double(), y, 1.0, draws=0, unit="nats")
    lower, upper, ty_lower, ty_upper = plain_bounds(t, y, 1.0)
    assert 0 < ty_lower < ty_upper < min(upper, math.log(2))
    assert found[2:6] == pytest.approx((lower, upper, ty_lower, ty_upper), abs=1e-12)


@pytest.mark.parametrize("side", [7, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_estimate_is_the_mean_log_ratio_of_densities_at_the_drawn_noise(monkeypatch, side, dtype):
    monkeypatch.setattr(mixture, "_TILE", side)
    t, y = points()
    t, variance = t[y.argsort(stable=True)].to(dtype), 0.8
    y = y.sort().values
    generator = seeded(3)
    z = t + variance**0.5 * torch.cat([torch.randn(b.shape, generator=generator, dtype=dtype) for b in t.split(side)])

    def log_density(members):
        parts = distributions.Independent(distributions.Normal(members.double(), variance**0.5), 1)
        return distributions.MixtureSameFamily(
            distributions.Categorical(torch.ones(len(members)).double()), parts
        ).log_prob

    own = distributions.Independent(distributions.Normal(t.double(), variance**0.5), 1).log_prob(z.double())
    whole = log_density(t)(z.double())
    given = torch.stack([log_density(t[y == label])(row[None].double())[0] for row, label in zip(z, y, strict=True)])
    found = mixture_information(t, y, variance, generator=seeded(3), unit="nats")
    error = 1e-5 if dtype == torch.float32 else 1e-10
    assert found[:2] == pytest.approx(((own - whole).mean().item(), (given - whole).mean().item()), abs=error)
    students = stats.t.ppf(stats.norm.cdf(1.96), 59) / 1.96
    stderr = (own - whole).std().item() / 60**0.5, (given - whole).std().item() / 60**0.5
    assert found[6:] == pytest.approx([students * one for one in stderr], abs=error)


@pytest.mark.parametrize("variance", [0.01, 0.3, 4.0])
def test_one_unit_against_quadrature(variance):
    # 400 draws: within 4 standard errors; the bounds hold for certain
    t, y = points(24, 1)
    found = mixture_information(t, y, variance, draws=400, generator=seeded(), unit="nats")
    xt, ty = quadrature(t[:, 0], y, variance)
    assert abs(found.I_XT - xt) <= 4 * found.I_XT_stderr
    assert abs(found.I_TY - ty) <= 4 * found.I_TY_stderr
    assert found.I_XT_lower <= xt <= found.I_XT_upper
    assert found.I_TY_lower <= ty <= found.I_TY_upper


@pytest.mark.parametrize(("d", "variance"), [(1, 0.01), (2, 0.1), (3, 0.3), (10, 4.0)])
def test_correlated_gaussians_by_sampling(d, variance):
    # 2048 samples; the truth of the population lies below log2 N - 4 = 7 bits: within 0.15 bits
    root = torch.randn(d, d, dtype=torch.float64)
    cov = root @ root.T / d + 0.3
    truth = 0.5 * torch.logdet(torch.eye(d) + cov / variance).item() / math.log(2)
    assert 0.7 < truth < 7
    t = torch.randn(2048, d, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    found = mixture_information(t, None, variance, generator=seeded())
    assert abs(found.I_XT - truth) < 0.15
    assert found.I_XT_lower < truth < found.I_XT_upper
    assert found.I_XT_lower < found.I_XT < found.I_XT_upper


def test_above_the_ceiling_everything_reads_log_n():
    # the population's I(X;T) is 33 bits: the "upper" bound is one of the empirical mixture
    found = mixture_information(torch.randn(256, 10), None, 0.01)
    assert found.I_XT_upper == pytest.approx(8, abs=1e-6)
    assert 7.9 < found.I_XT <= found.I_XT_upper


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_the_standard_error_is_the_spread_over_draws(draws):
    # 200 seeds: the standard deviation of a standard deviation is 5 %; one draw gives an upper bound
    t, y = points(40)
    found = torch.tensor([mixture_information(t, y, 0.5, draws=draws, generator=seeded(i)) for i in range(200)])
    for estimate, stderr in ((0, 6), (1, 7)):
        ratio = (found[:, stderr].square().mean().sqrt() / found[:, estimate].std()).item()
        assert ratio > 0.85
        assert draws == 1 or ratio < 1.2


def test_without_labels_everything_else_is_the_same():
    t, y = points()
    order = y.argsort(stable=True)
    with_labels = mixture_information(t[order], y[order], 0.3, generator=seeded())
    without = mixture_information(t[order], None, 0.3, generator=seeded())
    assert math.isnan(without.I_TY)
    assert math.isnan(without.I_TY_lower)
    assert math.isnan(without.I_TY_upper)
    assert math.isnan(without.I_TY_stderr)
    for value in ("I_XT", "I_XT_lower", "I_XT_upper", "I_XT_stderr"):
        assert getattr(without, value) == pytest.approx(getattr(with_labels, value), abs=1e-6)


def test_labels_that_name_the_sample_tell_all_and_a_single_one_nothing():
    t, _ = points(50)
    each = mixture_information(t, torch.arange(50), 0.3, generator=seeded())
    assert (each.I_TY, each.I_TY_lower, each.I_TY_upper) == (each.I_XT, each.I_XT_lower, each.I_XT_upper)
    one = mixture_information(t, torch.zeros(50, dtype=torch.long), 0.3, generator=seeded())
    assert (one.I_TY, one.I_TY_lower, one.I_TY_upper) == (0, 0, 0)


def test_a_constant_layer_knows_nothing():
    for n in (1, 20):
        found = mixture_information(torch.full((n, 4), 3.3), torch.arange(n) % 2, 0.1, draws=2)
        assert found[:6] == pytest.approx([0] * 6, abs=1e-12)


@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_equal_samples_are_at_no_distance_whatever_the_noise(noise):
    # float32 products of 300 units: 8 points, each 40 times, off by nothing
    t = torch.randn(8, 300).repeat(40, 1) + 100
    found = mixture_information(t, torch.arange(320) % 8 // 2, noise**2, generator=seeded())
    assert found[:6] == pytest.approx((3, 2, 3, 3, 2, 2), abs=1e-6)


@pytest.mark.parametrize("noise", [0.3, 0.1, 0.03, 0.003])
def test_rounding_stays_below_a_thousandth(noise):
    # clusters as wide as the noise, their centres up to 10^4 times as far apart; nats
    t = (torch.randn(6, 500)[torch.arange(300) % 6] + noise * 0.05 * torch.randn(300, 500)).float()
    found = mixture_information(t, None, noise**2, draws=0, unit="nats")
    assert found[2:4] == pytest.approx(plain_bounds(t, torch.zeros(300), noise**2)[:2], abs=1e-3)
    assert 1.8 < found.I_XT_lower < found.I_XT_upper < 4  # no bound is at its end


def test_products_of_lower_precision_are_not_used():
    t, y = points()
    plain = mixture_information(t, y, 0.01, draws=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert mixture_information(t, y, 0.01, draws=0) == pytest.approx(plain, nan_ok=True)
    torch.set_float32_matmul_precision("medium")
    try:
        assert mixture_information(t, y, 0.01, draws=0) == pytest.approx(plain, abs=1e-5, nan_ok=True)
        assert mixture._Pairs(t, 0.01, [])._points.dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision("highest")


def test_bounds_do_not_change_with_order_offset_and_rotation():
    t, y = points(80, 4)
    plain = mixture_information(t, y, 0.4, draws=0)
    order, rotation = torch.randperm(80), torch.linalg.qr(torch.randn(4, 4)).Q
    for other in (t[order], t[order] + 1000, t[order] @ rotation, t[order][:, torch.randperm(4)]):
        assert mixture_information(other, y[order], 0.4, draws=0) == pytest.approx(plain, abs=2e-4, nan_ok=True)
    scaled = mixture_information(8 * t, y, 64 * 0.4, draws=0)
    assert scaled == pytest.approx(plain, abs=1e-6, nan_ok=True)


def test_more_noise_leaves_less():
    t, y = points(200)
    found = [mixture_information(t, y, variance, draws=4, generator=seeded()) for variance in (0.01, 0.1, 1.0, 10.0)]
    for quieter, noisier in pairwise(found):
        assert noisier.I_XT < quieter.I_XT
        assert noisier.I_TY < quieter.I_TY
        assert noisier.I_XT_lower < quieter.I_XT_lower


def test_nothing_global_and_nothing_of_the_layer_changes():
    t, y = points()
    t.requires_grad_()
    before, state = t.detach().clone(), torch.get_rng_state()
    first, second = (mixture_information(t, y, 0.3, draws=2, generator=seeded(1)) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(t.detach(), before)
    mixture_information(t, y, 0.3)
    assert not torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, y: mixture_information(t[None], y, 0.1), r"expected \(N,\) or \(N, d\)"),
        (lambda t, y: mixture_information(t, y, 0.0), "without noise"),
        (lambda t, y: mixture_information(t, y, math.nan), "without noise"),
        (lambda t, y: mixture_information(t, y, 0.1, draws=-1), "draws=-1"),
        (lambda t, y: mixture_information(t, y[1:], 0.1), r"\(7,\): expected \(8,\)"),
        (lambda t, y: mixture_information(t, y.float(), 0.1), "expected classes"),
        (lambda t, y: mixture_information(t / 0, y, 0.1), "not finite"),
        (lambda t, y: mixture_information(t.masked_fill(t == t[0, 0], math.nan), y, 0.1), "not finite"),
        (lambda t, y: mixture_information(t, y, 0.1, unit="bit"), "'bits' or 'nats'"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(8, 2), torch.arange(8) % 2)
