from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import (
    complexity,
    diagonal_weight_information,
    effective_dimension,
    expected_loss_rise,
    optimal_lambda,
    posterior_trace,
    weight_information,
)

K = 12
LEVELS = [(1.0, 0.5), (1e-3, 0.1), (30.0, 4.0)]


def curvature(rank):
    a = torch.randn(rank, K, dtype=torch.float64)
    return a, a.T @ a


def sigma(h, beta, lambda_):
    return beta * torch.linalg.inv(h + beta / lambda_**2 * torch.eye(K, dtype=torch.float64))


@pytest.mark.parametrize("rank", [5, 20])
@pytest.mark.parametrize(("beta", "lambda_"), LEVELS)
def test_the_kl_is_that_of_torch_distributions(rank, beta, lambda_):
    a, h = curvature(rank)
    w = torch.randn(K, dtype=torch.float64)
    spectrum, covariance = Spectrum.of_matrix(a @ a.T, K), sigma(h, beta, lambda_)
    q = MultivariateNormal(w, covariance)
    p = MultivariateNormal(torch.zeros_like(w), lambda_**2 * torch.eye(K, dtype=torch.float64))
    found = weight_information(spectrum, w.square().sum().item(), beta, lambda_)
    assert found == pytest.approx(kl_divergence(q, p).item(), rel=1e-10)
    assert posterior_trace(spectrum, beta, lambda_) == pytest.approx(covariance.trace().item(), rel=1e-10)
    assert expected_loss_rise(spectrum, beta, lambda_) == pytest.approx((h @ covariance).trace().item() / 2, rel=1e-10)


@pytest.mark.parametrize("rank", [5, 20])
@pytest.mark.parametrize("damping", [1e-6, 1.0, 1e3])
def test_the_effective_dimension_is_the_trace_of_the_damped_projection(rank, damping):
    a, h = curvature(rank)
    truth = torch.linalg.solve(h + damping * torch.eye(K, dtype=torch.float64), h).trace().item()
    found = effective_dimension(Spectrum.of_matrix(a @ a.T, K), damping)
    assert found == pytest.approx(truth, rel=1e-9)
    assert 0 < found < min(rank, K)
    with pytest.raises(ValueError, match=r"damping=0\.0"):
        effective_dimension(Spectrum.of_matrix(a @ a.T, K), 0.0)


@pytest.mark.parametrize(("beta", "lambda_"), LEVELS)
def test_multiplicities_stand_for_repeated_eigenvalues(beta, lambda_):
    values, counts = torch.tensor([0.3, 2.0, 0.0, 1.1]).double(), torch.tensor([2, 3, 1, 5])
    short, long = Spectrum(values, 20, counts), Spectrum(values.repeat_interleave(counts), 20)
    for found in (
        lambda spectrum: weight_information(spectrum, 2.0, beta, lambda_),
        lambda spectrum: posterior_trace(spectrum, beta, lambda_),
        lambda spectrum: expected_loss_rise(spectrum, beta, lambda_),
        lambda spectrum: optimal_lambda(spectrum, 2.0, beta).lambda_,
    ):
        assert found(short) == pytest.approx(found(long), rel=1e-12)


@pytest.mark.parametrize(("beta", "lambda_"), LEVELS)
def test_a_diagonal_has_its_own_kl_and_a_deviation_for_each_weight(beta, lambda_):
    diagonal, w = torch.rand(K, dtype=torch.float64), torch.randn(K, dtype=torch.float64)
    scale = lambda_ * (0.5 + torch.rand(K, dtype=torch.float64))
    q = Normal(w, (beta / (diagonal + beta / scale**2)).sqrt())
    truth = kl_divergence(q, Normal(torch.zeros_like(w), scale)).sum().item()
    assert diagonal_weight_information(diagonal, w, beta, scale) == pytest.approx(truth, rel=1e-10)
    common = weight_information(Spectrum(diagonal, K), w.square().sum().item(), beta, lambda_)
    assert diagonal_weight_information(diagonal, w, beta, lambda_) == pytest.approx(common, rel=1e-12)


def test_ten_million_weights_without_curvature_cost_no_digits():
    spectrum = Spectrum(torch.tensor([1e-9]), 10_000_000)
    assert weight_information(spectrum, 0.0, 1.0, 1.0) == pytest.approx(1e-18 / 4, rel=1e-6)


@pytest.mark.parametrize("beta", [1e-3, 0.3, 10.0])
def test_the_covariance_minimises_the_lagrangian(beta):
    _, h = curvature(5)
    w = torch.zeros(K, dtype=torch.float64)
    best, prior = sigma(h, beta, 0.7), MultivariateNormal(w, 0.49 * torch.eye(K, dtype=torch.float64))

    def lagrangian(covariance):
        return ((h @ covariance).trace() / 2 + beta * kl_divergence(MultivariateNormal(w, covariance), prior)).item()

    for _ in range(20):
        step = torch.randn(K, K, dtype=torch.float64) * 0.03
        other = (torch.eye(K) + step) @ best @ (torch.eye(K) + step).T
        assert lagrangian(other) > lagrangian(best)


@pytest.mark.parametrize("beta", [1e-4, 0.1, 5.0])
@pytest.mark.parametrize("distance", [1e-4, 1.0, 1e3])
def test_the_optimal_lambda_is_a_minimum_and_the_fixed_point(beta, distance):
    a, _ = curvature(5)
    spectrum = Spectrum.of_matrix(a @ a.T, K)

    def lagrangian(lambda_):
        kl = weight_information(spectrum, distance, beta, lambda_)
        return complexity(expected_loss_rise(spectrum, beta, lambda_), kl, beta)

    found = optimal_lambda(spectrum, distance, beta, floor=1e-6)
    assert not found.is_floor
    best = found.lambda_
    assert best**2 == pytest.approx((distance + posterior_trace(spectrum, beta, best)) / K, rel=1e-10)
    assert min(lagrangian(best * 0.999), lagrangian(best * 1.001)) > lagrangian(best)
    grid = torch.logspace(-4, 4, 801, dtype=torch.float64).tolist()
    values = [lagrangian(lambda_) for lambda_ in grid]
    assert lagrangian(best) <= min(values)
    assert grid[values.index(min(values))] == pytest.approx(best, rel=0.03)


def test_at_the_reference_weights_the_optimal_lambda_is_the_floor_and_says_so():
    spectrum = Spectrum(torch.rand(5), K)
    assert optimal_lambda(spectrum, 0.0, 1.0, floor=0.02) == (0.02, True)
    assert optimal_lambda(spectrum, 1e-9, 1.0, floor=0.02) == (0.02, True)


def test_without_curvature_there_is_no_optimal_lambda():
    with pytest.raises(ValueError, match="curvature is 0"):
        optimal_lambda(Spectrum(torch.zeros(3), K), 1.0, 1.0)


def test_an_infinite_lambda_has_no_kl_but_differences_of_log_determinants():
    a, b = Spectrum(torch.rand(5, dtype=torch.float64), K), Spectrum(torch.rand(5, dtype=torch.float64), K)
    for function in (posterior_trace, expected_loss_rise):
        with pytest.raises(ValueError, match="no KL"):
            function(a, 1.0, math.inf)
    with pytest.raises(ValueError, match="no KL"):
        weight_information(a, 1.0, 1.0, math.inf)
    wide = weight_information(a, 1.0, 1.0, 1e6) - weight_information(b, 1.0, 1.0, 1e6)
    assert wide == pytest.approx((a.log_det(1e-12) - b.log_det(1e-12)) / 2, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_beta_is_refused(beta):
    spectrum = Spectrum(torch.ones(3), K)
    calls = [
        lambda: weight_information(spectrum, 1.0, beta, 1.0),
        lambda: diagonal_weight_information(torch.ones(K), torch.ones(K), beta, 1.0),
        lambda: optimal_lambda(spectrum, 1.0, beta),
        lambda: complexity(1.0, 1.0, beta),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="beta="):
            call()


@pytest.mark.parametrize("lambda_", [0.0, -1.0, math.nan])
def test_a_bad_lambda_is_refused(lambda_):
    with pytest.raises(ValueError, match="lambda_="):
        weight_information(Spectrum(torch.ones(3), K), 1.0, 1.0, lambda_)
    with pytest.raises(ValueError, match="lambda_="):
        diagonal_weight_information(torch.ones(K), torch.ones(K), 1.0, torch.full((K,), lambda_))


def test_bad_distances_and_diagonals_are_refused():
    for distance in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="squared distance"):
            weight_information(Spectrum(torch.ones(3), K), distance, 1.0, 1.0)
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="not negative"):
            diagonal_weight_information(torch.full((K,), value), torch.ones(K), 1.0, 1.0)
