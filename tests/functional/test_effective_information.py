from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from lightning_info.functional.effective_information import LOOSE, crossed, effective_information, running_maximum
from lightning_info.functional.theory.activation_covariance import diagonal_activation_covariance
from lightning_info.functional.theory.activation_fisher import gaussian_channel_information, layer_fisher
from lightning_info.functional.weight_noise import diagonal_noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_layer(m, n, p, d, noise, seed):
    """Draws of a linear layer under independent noise of its weights, and the exact p(z|x): means and variances."""
    generator = seeded(seed)
    x = torch.randn(n, p, generator=generator).double()
    weight = torch.randn(d, p, generator=generator).double() / p**0.5
    drawn = weight + noise / p**0.5 * torch.randn(m, d, p, generator=generator).double()
    variance = x.square().sum(1, keepdim=True) * noise**2 / p
    return torch.einsum("mdp,np->mnd", drawn, x), x @ weight.T, variance.expand(n, d)


def true_information(mean, variance, y=None, draws=64):
    """I(X;Z), I(Z;Y) of a mixture with diagonal covariances, from its own density; standard error below 0.03."""
    z = mean + variance.sqrt() * torch.randn(draws, *mean.shape, generator=seeded(1)).double()
    deviations = (z[:, :, None] - mean) / variance.sqrt()
    log_p = -0.5 * (deviations.square().sum(3) + variance.log().sum(1))
    n, y = len(mean), torch.zeros(len(mean)) if y is None else y
    same = y[:, None] == y
    whole = log_p.logsumexp(2) - math.log(n)
    within = log_p.masked_fill(~same, -math.inf).logsumexp(2) - same.sum(1).log()
    values = torch.stack([log_p.diagonal(dim1=1, dim2=2) - whole, within - whole]).mean(2)
    assert (values.std(1) / draws**0.5).max() < 0.03
    return values.mean(1).tolist()


@pytest.mark.parametrize(("p", "d", "noise"), [(5, 1, 1.0), (5, 4, 2.0), (5, 10, 1.0)])
def test_linear_layer_is_near_its_exact_mixture(p, d, noise):
    y = torch.arange(64) % 4
    differences, errors = [], []
    for seed in range(4):
        z, mean, variance = linear_layer(128, 64, p, d, noise, seed)
        y = (mean[:, 0] > 0).long() + 2 * (mean[:, -1] > 0.5)
        xz, zy = true_information(mean, variance, y)
        found = effective_information(z, y)
        differences.append([found.I_XZ - xz, found.I_ZY - zy])
        errors.append([found.I_XZ_stderr, found.I_ZY_stderr])
        assert found.I_ZY <= found.I_XZ
    mean_error = torch.tensor(errors).square().mean(0).sqrt() / 2  # of four independent networks
    mean_difference = torch.tensor(differences).mean(0)
    assert (mean_difference.abs() < 0.05 + 2 * mean_error).all()
    assert (mean_difference < 2 * mean_error + 0.01).all()  # a lower bound


@pytest.mark.parametrize(("p", "d", "noise"), [(5, 4, 2.0), (5, 10, 1.0), (20, 32, 1.0)])
def test_a_linear_layer_of_which_the_gaussian_is_given_is_its_exact_mixture(p, d, noise):
    """What is left is the error of the evaluated draws; learnt from the draws the bound is 0.01 to 0.04 lower."""
    gains, differences, errors = [], [], []
    for seed in range(4):
        z, mean, variance = linear_layer(128, 64, p, d, noise, seed)
        found = effective_information(z, None, (mean.expand_as(z), variance.expand_as(z)))
        differences.append(found.I_XZ - true_information(mean, variance)[0])
        errors.append(found.I_XZ_stderr)
        gains.append(found.I_XZ - effective_information(z).I_XZ)
    error = torch.tensor(errors).square().mean().sqrt() / 2
    assert abs(torch.tensor(differences).mean()) < 0.005 + 2 * error
    assert min(gains) > 0.005
    assert error < 0.03


def test_noise_from_below_is_learnt_from_the_draws_and_the_bound_is_higher():
    """Units ``W (x + n) + m`` with noise n shared by all inputs: Gaussian, of covariance ``W Wᵀ + s² I``, exactly."""
    gains, differences, errors = [], [], []
    for seed in range(12):
        generator = seeded(seed)
        x, w = torch.randn(48, 6, generator=generator).double(), torch.randn(8, 6, generator=generator).double()
        n, m = torch.randn(128, 1, 6, generator=generator).double(), torch.randn(128, 1, 8, generator=generator)
        mean = (x + n) @ w.T
        z, variance = mean + 0.5 * m, torch.full_like(mean, 0.25)
        root = torch.linalg.cholesky(w @ w.T + 0.25 * torch.eye(8).double())
        whitened = torch.linalg.solve_triangular(root, (x @ w.T).T, upper=False).T
        truth = true_information(whitened, torch.ones_like(whitened))[0]
        found = effective_information(z, None, (mean, variance))
        differences.append(found.I_XZ - truth)
        errors.append(found.I_XZ_stderr)
        gains.append(found.I_XZ - effective_information(z).I_XZ)
    error = torch.tensor(errors).square().mean().sqrt() / 12**0.5
    assert -0.1 - 2 * error < torch.tensor(differences).mean() < 2 * error
    gains = torch.tensor(gains)
    assert gains.mean() > 2 * gains.std() / 12**0.5


@pytest.mark.parametrize("d", [3, 30])
def test_what_is_given_follows_the_units(d):
    """Dead units, units without noise, the scale of a unit; with more units than half the draws nothing is used."""
    z, mean, variance = linear_layer(32, 20, 4, d, 1.0, 0)
    scale = torch.exp(torch.arange(d) % 7 - 3.0)
    still = torch.zeros(32, 20, 2).double()
    still[:, :, 1] = torch.arange(20) // 10
    found = effective_information(
        torch.cat([still, z * scale], 2),
        None,
        (torch.cat([still, mean.expand_as(z) * scale], 2), torch.cat([0 * still, variance.expand_as(z) * scale**2], 2)),
    )
    z = torch.cat([z, still[:, :, 1:]], 2)
    mean, variance = torch.cat([mean, still[0, :, 1:]], 1), torch.cat([variance, torch.zeros(20, 1)], 1)
    given = None if d == 30 else (mean.expand_as(z), variance.expand_as(z))
    expected = effective_information(z, None, given)
    assert abs(found.I_XZ - expected.I_XZ) < 1e-7
    assert (found.num_constant, found.num_noise_free) == (1, 1)
    without_noise = effective_information(still, None, (still, still))
    assert abs(without_noise.I_XZ - math.log(2)) < 1e-9


def test_lower_bound_in_the_mean_over_seeds():
    """With noise shared by all inputs, whose mean over few draws looks like a difference between inputs."""
    found = []
    for seed in range(40):
        generator = seeded(seed)
        direction = torch.nn.functional.normalize(torch.randn(24, 2, generator=generator), dim=1)
        found.append(effective_information((torch.randn(32, 2, generator=generator) @ direction.T)[..., None]))
    values = torch.tensor([f.I_XZ for f in found])
    # each is the positive part of a number that is 0 or less in the mean: at most 0.4 of its deviation
    assert values.mean() < 0.4 * torch.tensor([f.I_XZ_stderr for f in found]).mean() + 2 * values.std() / 40**0.5
    more = [linear_layer(32, 32, 4, 3, 1.0, seed) for seed in range(12)]
    gaps = torch.tensor([effective_information(z).I_XZ - true_information(*exact)[0] for z, *exact in more])
    assert -0.3 < gaps.mean() < 2 * gaps.std() / 12**0.5


@pytest.mark.parametrize("d", [1, 10])
def test_no_information_reads_0(d):
    for seed in range(3):
        found = effective_information(torch.randn(128, 64, d, generator=seeded(seed)), torch.arange(64) % 3)
        assert 0 <= found.I_XZ <= 0.005 + 2 * found.I_XZ_stderr
        assert 0 <= found.I_ZY <= 0.005 + 2 * found.I_ZY_stderr
        assert found.I_XZ_stderr < 0.01
        assert not found.is_saturated
        assert not found.label_is_ceiling


@pytest.mark.parametrize("d", [1, 3, 40])
def test_separated_inputs_read_log_n(d):
    y = torch.arange(50) % 5
    z = 100.0 * torch.arange(50)[:, None].expand(50, d) + torch.randn(20, 50, d, generator=seeded())
    found = effective_information(z, y)
    assert found[:2] == pytest.approx((math.log(50), math.log(5)), abs=1e-6)
    assert found.is_saturated
    assert found.label_is_ceiling
    assert found.ceiling == math.log(50)


@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_scalar_network_by_quadrature(noise):
    """Units ``z = v·tanh(w x)`` with noise of v alone: p(z|x) is Gaussian, its mixture integrated numerically."""
    x = torch.linspace(-2, 2, 20).double()
    h = torch.tanh(0.8 * x)
    mean, deviation = (1.5 * h).numpy(), (noise * h.abs()).numpy()
    y = (x > 0).long()

    def entropy(members):
        def integrand(z):
            p = stats.norm.pdf(z, mean[members], deviation[members]).mean()
            return -p * math.log(p) if p > 0 else 0.0

        edges = sorted([-15.0, 15.0, *mean[members], *(mean[members] - 3 * deviation[members])])
        return sum(integrate.quad(integrand, a, b, epsabs=1e-5)[0] for a, b in pairwise(edges))

    whole = entropy(range(20))
    xz = whole - stats.norm.entropy(0, deviation).mean()
    zy = whole - (entropy(range(10)) + entropy(range(10, 20))) / 2
    v = 1.5 + noise * torch.randn(256, generator=seeded()).double()
    found = effective_information((v[:, None] * h)[..., None], y)
    assert abs(found.I_XZ - xz) < 0.02 + 2 * found.I_XZ_stderr
    assert abs(found.I_ZY - zy) < 0.02 + 2 * found.I_ZY_stderr
    assert 0.1 < zy < xz < math.log(20) - 0.1


@pytest.mark.parametrize("d", [1, 6, 30])
def test_invariant_to_order_and_scale_of_units(d):
    z, _, _ = linear_layer(40, 30, 5, d, 2.0, 0)
    y = torch.arange(30) % 3
    order = torch.randperm(d, generator=seeded())
    scale = torch.exp(4 * torch.randn(d, generator=seeded(1)))
    expected = effective_information(z, y)
    assert effective_information(z[:, :, order] * scale + 3 * scale, y)[:5] == pytest.approx(expected[:5], abs=1e-5)
    assert 0.1 < expected.I_XZ < expected.ceiling - 0.05


def test_the_scale_of_units_that_are_off_at_some_inputs_does_not_matter():
    """What a constant leaves when the mean of its copies is taken off is no noise."""
    generator = seeded(5)
    mean = torch.randn(24, 6, generator=generator).double() - 0.5
    z = (mean + 0.3 * torch.randn(32, 24, 6, generator=generator).double()).relu()
    assert ((z == 0).all(0).double().mean(0) > 0.1).all()
    factors = torch.tensor([8.0, 0.3, 3.0, 0.07, 1.0, 5.0]).double()
    one, other = effective_information(z), effective_information(z * factors)
    assert pytest.approx(one.I_XZ, rel=1e-9) == other.I_XZ
    assert other.I_XZ_stderr == pytest.approx(one.I_XZ_stderr, rel=1e-9)


def test_more_noise_less_information():
    values = [effective_information(linear_layer(64, 64, 6, 6, noise, 0)[0]).I_XZ for noise in (0.2, 0.5, 1, 2, 4, 8)]
    assert all(a > b for a, b in pairwise(values))


def test_without_noise_log_of_the_number_of_distinct_values():
    values = torch.tensor([0.1, 0.7, -2.3]).repeat(4)
    y = torch.arange(12) // 6
    found = effective_information(values[None, :, None].expand(8, 12, 1), y)
    assert found[:2] == pytest.approx((math.log(3), 0), abs=1e-12)
    assert (found.num_constant, found.num_noise_free) == (0, 1)
    every_value = effective_information(torch.arange(12.0)[None, :, None].expand(8, 12, 1), y)
    assert every_value[:2] == pytest.approx((math.log(12), math.log(2)), abs=1e-12)


def test_units_without_noise_add_to_those_with_noise():
    """I(X;Z) = H(group) + I(X;Z|group), with two groups that hold the same noisy units."""
    z, _, _ = linear_layer(128, 32, 4, 3, 1.0, 0)
    both = torch.cat([z, z], 1)
    group = torch.cat([torch.zeros(32), torch.ones(32)]).expand(128, 64)[..., None]
    found = effective_information(torch.cat([both, group], 2))
    assert abs(found.I_XZ - math.log(2) - effective_information(z).I_XZ) < 1e-9
    rounded = torch.cat([both, group + 1e-16 * torch.randn(128, 64, 1, generator=seeded())], 2)
    assert effective_information(rounded).num_noise_free == found.num_noise_free == 1
    assert effective_information(rounded).I_XZ == found.I_XZ


def test_dead_units_are_left_out():
    z, _, _ = linear_layer(32, 20, 4, 3, 1.0, 0)
    y = torch.arange(20) % 2
    found = effective_information(torch.cat([z, torch.zeros(32, 20, 2), torch.full((32, 20, 1), 0.3)], 2), y)
    expected = effective_information(z, y)
    assert found == expected._replace(num_constant=3)
    all_dead = effective_information(torch.zeros(8, 5, 2), torch.tensor([0, 0, 1, 1, 1]))
    assert (all_dead.I_XZ, all_dead.I_ZY, all_dead.num_constant) == (0, 0, 2)


def test_units_off_at_some_inputs_keep_the_bound():
    z, mean, variance = linear_layer(128, 48, 5, 6, 0.7, 0)
    found, before = effective_information(z.relu()), true_information(mean, variance)[0]
    assert 0.45 * before < found.I_XZ < before + 2 * found.I_XZ_stderr  # data processing


@pytest.mark.parametrize("seed", range(3))
def test_within_its_limits_for_any_input(seed):
    generator = seeded(seed)
    for m, n, d in ((4, 2, 1), (5, 9, 20), (9, 7, 3), (17, 30, 8)):
        z = torch.randn(m, n, d, generator=generator) ** 3 + torch.randn(n, d, generator=generator)
        y = torch.randint(0, 3, (n,), generator=generator)
        found = effective_information(z, y)
        counts = y.bincount()
        assert 0 <= found.I_XZ <= math.log(n)
        assert 0 <= found.I_ZY <= stats.entropy(counts) + 1e-12
        assert 0 <= found.temperature <= 1.5
        error = found.I_XZ_stderr + found.I_ZY_stderr
        assert max(0.0, found.I_ZY - found.I_XZ) <= 3 * error + 1e-12


def test_noise_that_differs_between_inputs_by_orders_of_magnitude():
    generator = seeded()
    size = torch.exp(1.5 * torch.randn(48, 1, generator=generator).double())
    mean, variance = size * torch.randn(48, 5, generator=generator), size.square().expand(48, 5)
    z = mean + variance.sqrt() * torch.randn(128, 48, 5, generator=generator)
    found, truth = effective_information(z), true_information(mean, variance)[0]
    assert truth - 0.15 < found.I_XZ < truth + 2 * found.I_XZ_stderr


def test_more_units_than_draws():
    z, mean, variance = linear_layer(24, 32, 8, 60, 8.0, 0)
    found = effective_information(z)
    assert 0.5 < found.I_XZ < true_information(mean, variance)[0] + 2 * found.I_XZ_stderr


def test_without_classes_and_labels_of_any_kind():
    z, _, _ = linear_layer(32, 20, 4, 3, 1.0, 0)
    y = torch.arange(20) % 2
    plain = effective_information(z)
    assert math.isnan(plain.I_ZY)
    assert math.isnan(plain.I_ZY_stderr)
    assert not plain.label_is_ceiling
    assert effective_information(z, y == 1) == effective_information(z, 1000 * y - 7)
    assert effective_information(z, y).I_XZ == plain.I_XZ
    single = effective_information(z, 0 * y)
    assert abs(single.I_ZY) < 1e-12


@pytest.mark.parametrize(
    ("z", "y", "message"),
    [
        (torch.randn(8, 5), None, "expected \\(draws, inputs, units\\)"),
        (torch.randn(8, 5, 0), None, "expected \\(draws, inputs, units\\)"),
        (torch.randn(3, 5, 2), None, "at least 4 draws"),
        (torch.randn(8, 1, 2), None, "2 inputs"),
        (torch.ones(8, 5, 2, dtype=torch.long), None, "dtype"),
        (torch.full((8, 5, 2), math.nan), None, "not finite"),
        (torch.randn(8, 5, 2).index_fill(0, torch.tensor(3), math.inf), None, "not finite"),
        (torch.randn(8, 5, 2), torch.zeros(4, dtype=torch.long), "expected \\(5,\\)"),
        (torch.randn(8, 5, 2), torch.zeros(5), "expected classes"),
    ],
)
def test_refuses(z, y, message):
    with pytest.raises(ValueError, match=message):
        effective_information(z, y)


def test_refuses_what_is_given_of_another_shape():
    z = torch.randn(8, 5, 2)
    with pytest.raises(ValueError, match=r"given_below has the shapes \(8, 5, 2\) and \(5, 2\)"):
        effective_information(z, None, (z, z[0]))


def test_a_bound_crosses_a_later_one_by_three_errors_of_the_difference():
    assert crossed([0.0, 5.0, 4.9], [0.0, 0.0, 0.0]) == [True, False, False]
    assert crossed([4.0, 5.0], [0.3, 0.4]) == [False, False]  # 1 < 3 * 0.5
    assert crossed([3.4, 5.0], [0.3, 0.4]) == [True, False]
    assert crossed([5.0 - LOOSE / 2, 5.0], [0.0, 0.0]) == [False, False]
    assert crossed([1.0, math.nan, 0.5], [0.0, math.nan, 0.0]) == [False, False, False]


def test_running_maximum_orders_the_layers():
    assert running_maximum([5.0, 3.0, 3.5, 1.0]) == ([5.0, 3.5, 3.5, 1.0], 0.5)
    assert running_maximum([3.0, 2.0]) == ([3.0, 2.0], 0.0)
    assert running_maximum([]) == ([], 0.0)
    values, raised = running_maximum([1.0, math.nan, 2.0])
    assert values[::2] == [2.0, 2.0]
    assert math.isnan(values[1])
    assert raised == 1.0


@pytest.mark.parametrize("seed", range(2))
def test_at_small_levels_the_bound_is_the_closed_form_to_first_order_and_at_large_ones_it_is_not(seed):
    """Proposition 3.2 as a Gaussian channel, for a net of two layers under the same diagonal noise."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double().requires_grad_(False)
    x = torch.randn(250, 2, dtype=torch.float64)
    parameters = dict(net.named_parameters())
    h = 0.5 + torch.rand(sum(p.numel() for p in parameters.values()), dtype=torch.float64)

    def outputs(parameters, x):
        return torch.func.functional_call(net, parameters, (x,))

    def pair(beta):
        fisher = layer_fisher(outputs, parameters, x, lambda j: diagonal_activation_covariance(j, h, beta, 1.0))
        z = []
        for _ in range(512):
            noise = diagonal_noise(torch.randn(len(h)), h, beta, 1.0).split([p.numel() for p in parameters.values()])
            z.append(outputs({k: p + n.view_as(p) for (k, p), n in zip(parameters.items(), noise, strict=True)}, x))
        return gaussian_channel_information(fisher, x.T.cov()), effective_information(torch.stack(z))

    for beta in (0.01, 0.003):
        analytic, sampled = pair(beta)
        assert analytic > 0.5
        assert pytest.approx(analytic, abs=0.02 + 2 * sampled.I_XZ_stderr) == sampled.I_XZ
    analytic, sampled = pair(0.3)
    assert 0.9 * analytic > sampled.I_XZ


@pytest.mark.parametrize(("p", "d", "noise"), [(5, 4, 2.0), (5, 10, 1.0)])
def test_the_slope_is_that_of_the_exact_mixture(p, d, noise):
    """By 64 draws of the mixture's own density, the same for both ends; to 15 %, four networks."""
    found, exact = [], []
    for seed in range(4):
        z, mean, variance = linear_layer(128, 64, p, d, noise, seed)
        y = (mean[:, 0] > 0).long()
        one = effective_information(z, y, with_slopes=True)
        found.append([one.I_XZ_slope, one.I_ZY_slope])
        ends = [true_information(mean, factor * variance, y) for factor in (1 / 1.25, 1.25)]
        exact.append([(more - less) / (2 * math.log(1.25)) for less, more in zip(*ends, strict=True)])
    found, exact = torch.tensor(found).mean(0), torch.tensor(exact).mean(0)
    assert (exact < -0.05).all()
    assert ((found / exact - 1).abs() < 0.15).all()


def test_the_error_of_the_level_is_added():
    z, mean, _ = linear_layer(64, 32, 5, 4, 1.0, 0)
    found = effective_information(z, (mean[:, 0] > 0).long(), with_slopes=True)
    moved = found.at_level(0.1)
    assert moved.I_XZ_stderr == pytest.approx(math.hypot(found.I_XZ_stderr, 0.1 * found.I_XZ_slope))
    assert moved.I_ZY_stderr == pytest.approx(math.hypot(found.I_ZY_stderr, 0.1 * found.I_ZY_slope))
    assert moved._replace(I_XZ_stderr=0, I_ZY_stderr=0) == found._replace(I_XZ_stderr=0, I_ZY_stderr=0)
    assert found.at_level(100.0).is_saturated
    plain = effective_information(z)
    assert plain.at_level(0.0) == plain
    assert math.isnan(plain.at_level(0.1).I_XZ_stderr)  # without a slope it is not known
    assert math.isnan(effective_information(z, with_slopes=True).I_ZY_slope)
