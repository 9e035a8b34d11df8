"""Shannon information of an ensemble of trainings, against exact Gaussians and integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lightning_info.functional import shannon_information

SEEDED = torch.Generator


def close_to(truth, ensembles):
    """Check that the mean of independent ensembles is the truth within 3 of its errors, which are less than 2 %."""
    information, stderr, lower, upper = np.mean(ensembles, 0)
    error = stderr / len(ensembles) ** 0.5
    assert 3 * error < 0.02 * truth
    assert information == pytest.approx(truth, abs=3 * error)
    assert lower < information < upper


@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
def test_within_two_per_cent_of_a_linear_gaussian_model(full):
    """Trainings that end as N(A d, S) for a data set d ~ N(0, I): ½ log det(I + AAᵀS⁻¹)."""
    g = SEEDED().manual_seed(1)
    a, root = torch.randn(4, 7, generator=g, dtype=torch.float64).split([3, 4], 1)
    s = 0.1 * (root @ root.T + torch.eye(4)) if full else torch.diag(0.1 + root[0].abs())
    truth = torch.logdet(torch.eye(4, dtype=torch.float64) + a @ a.T @ torch.linalg.inv(s)).item() / 2
    ensembles = []
    for _ in range(20):
        means = torch.randn(600, 3, generator=g, dtype=torch.float64) @ a.T
        covariances = s.expand(600, 4, 4) if full else s.diagonal().expand(600, 4)
        ensembles.append(shannon_information(means, covariances, generator=g))
    assert truth > 1
    close_to(truth, ensembles)


def test_trained_linear_regression():
    """w* of least squares with a prior: I(w;D) = ½ log det(I + A Cov(y) Aᵀ Σ⁻¹), the data set being its targets y."""
    g = SEEDED().manual_seed(2)
    x = torch.randn(20, 2, generator=g, dtype=torch.float64)
    h = x.T @ x + torch.eye(2, dtype=torch.float64)
    fit, s = torch.linalg.solve(h, x.T), torch.linalg.inv(h)
    y_cov = x @ x.T + torch.eye(20, dtype=torch.float64)  # of a teacher N(0, I) with noise 1
    truth = torch.logdet(torch.eye(2, dtype=torch.float64) + fit @ y_cov @ fit.T @ h).item() / 2
    ensembles = []
    for _ in range(10):
        teachers, noise = torch.randn(600, 22, generator=g, dtype=torch.float64).split([2, 20], 1)
        y = teachers @ x.T + noise
        ensembles.append(shannon_information(y @ fit.T, s.expand(600, 2, 2), generator=g))
    close_to(truth, ensembles)


def test_the_error_covers_the_truth_and_the_bounds_bracket_it():
    """60 ensembles of 100 data sets: of a coverage of 95 % at least 51 of 60, with a probability above 0.99."""
    truth = math.log1p(1 / 0.05) / 2
    ensembles = []
    for seed in range(60):
        g = SEEDED().manual_seed(seed)
        means = torch.randn(100, 1, generator=g, dtype=torch.float64)
        ensembles.append(shannon_information(means, torch.full((100, 1), 0.05), draws=4, generator=g))
    assert sum(abs(found.information - truth) < 1.96 * found.stderr for found in ensembles) >= 51
    information, stderr, lower, upper = np.mean(ensembles, 0)
    assert information == pytest.approx(truth, abs=2 * stderr / 60**0.5)
    assert lower < truth - 0.03 < truth + 0.03 < upper  # what an ensemble of this size leaves open


def test_a_mixture_of_unlike_gaussians_is_that_of_an_integral():
    means, variances = torch.tensor([[-1.0], [0.3], [2.0]]), torch.tensor([[0.04], [0.5], [1.0]])
    parts = [
        stats.norm(m, v**0.5) for m, v in zip(means[:, 0].double().tolist(), variances[:, 0].tolist(), strict=True)
    ]

    def integrand(w):
        p = np.array([part.pdf(w) for part in parts])
        return float(np.sum(p * np.log(np.maximum(p, 1e-300) / p.mean())) / 3)

    truth = integrate.quad(integrand, -8, 10, limit=400)[0]
    found = shannon_information(means, variances, draws=20_000, generator=SEEDED().manual_seed(0))
    assert found.lower == pytest.approx(truth, abs=0.01)  # three data sets are all there are


def test_trainings_of_one_data_set_are_one_distribution():
    """Two branches, whichever the seed takes: told apart from the data set, they carry nothing about it."""
    g = SEEDED().manual_seed(3)
    sets, runs = 400, 4
    d = torch.randn(sets, generator=g, dtype=torch.float64)
    branch = torch.arange(runs) % 2 * 100.0  # both equally often on each
    means = (d[:, None] + branch).reshape(-1, 1)
    covariances = torch.full_like(means, 0.05)
    apart = shannon_information(means, covariances, generator=g)
    dataset = torch.arange(sets).repeat_interleave(runs)
    together = shannon_information(means, covariances, dataset=dataset + 7, generator=g)
    truth = math.log1p(1 / 0.05) / 2
    assert together.information == pytest.approx(truth, rel=0.05)
    assert apart.lower == pytest.approx(truth + math.log(2), rel=0.05)


def test_extremes():
    g = SEEDED().manual_seed(0)
    same = shannon_information(torch.zeros(10, 2), torch.ones(10, 2), generator=g)
    assert same.information == pytest.approx(0, abs=1e-12)
    far = shannon_information(1e3 * torch.arange(10.0)[:, None], torch.ones(10, 1), generator=g)
    assert far.lower == pytest.approx(math.log(10), abs=1e-12)
    assert far.upper > 1e4  # nothing is known about what lies between


def test_units_and_origin_of_the_weights_do_not_matter():
    means, root = torch.randn(54, 4, dtype=torch.float64).split([50, 4])
    s = root @ root.T + torch.eye(4)
    first, second = (
        shannon_information(scale * means + shift, scale**2 * s.expand(50, 4, 4), generator=SEEDED().manual_seed(1))
        for scale, shift in ((1.0, 0.0), (1e-3, 1e3))
    )
    assert second == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": torch.zeros(3)}, r"means of shape \(3,\)"),
        ({"means": torch.full((3, 2), math.nan)}, "not finite"),
        ({"covariances": torch.ones(3)}, r"expected \(3, 2, 2\), or their diagonals \(3, 2\)"),
        ({"covariances": torch.zeros(3, 2)}, "not positive definite"),
        ({"covariances": -torch.eye(2).expand(3, 2, 2)}, "3 covariances are not positive definite"),
        ({"covariances": torch.full((3, 2), math.inf)}, "not finite"),
        ({"dataset": torch.zeros(3, dtype=torch.long)}, "at least two"),
        ({"dataset": torch.zeros(3)}, "expected integers"),
        ({"draws": 0}, "draws=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        shannon_information(**{"means": torch.zeros(3, 2), "covariances": torch.ones(3, 2), **arguments})
