"""Unique information and the Shannon information that follows from stability, against exact Gaussians."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from lightning_info.functional.stability import shannon_from_stability, unique_information

BETA = 0.1


def matrix(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_unique_information_is_the_divergence_of_the_two_posteriors():
    root, w, w_twin = matrix(5, 5), matrix(5), matrix(5)
    fisher = root @ root.T + torch.eye(5, dtype=torch.float64)
    covariance = BETA * torch.linalg.inv(fisher)
    truth = kl_divergence(MultivariateNormal(w_twin, covariance), MultivariateNormal(w, covariance))
    delta = w_twin - w
    assert unique_information((delta @ fisher @ delta).item(), BETA) == pytest.approx(truth.item(), rel=1e-9)


def gaussian_truth(jacobian, fisher):
    """D ~ N(0, I), w = JD + noise of covariance βF⁻¹: ½ log det(I + JᵀFJ/β)."""
    precision = jacobian.mT @ fisher @ jacobian / BETA
    return 0.5 * torch.logdet(torch.eye(len(precision), dtype=torch.float64) + precision).item()


def standard_entropy(d):
    return d / 2 * math.log(2 * math.pi * math.e)


def test_proposition_2_9_needs_beta_to_the_power_of_d():
    d = 3
    jacobian, fisher = 3 * torch.eye(d), 50 * torch.eye(d)
    truth = gaussian_truth(jacobian.double(), fisher.double())
    corrected = shannon_from_stability(standard_entropy(d), jacobian, fisher, BETA)
    printed = corrected + 0.5 * (d - 1) * math.log(BETA)
    assert truth == pytest.approx(12.618, abs=5e-4)
    assert corrected == pytest.approx(truth, abs=5e-4)
    assert printed == pytest.approx(10.315, abs=5e-4)


def test_it_tends_to_the_truth_from_below_as_the_noise_falls():
    jacobian, root = matrix(6, 3), matrix(6, 6)
    gaps = []
    for scale in (1, 10, 100):
        fisher = scale * (root @ root.T)
        estimate = shannon_from_stability(standard_entropy(3), jacobian, fisher, BETA)
        gaps.append(gaussian_truth(jacobian, fisher) - estimate)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.01


def test_several_data_sets_are_averaged():
    jacobians, root = matrix(4, 6, 3), matrix(6, 6)
    fishers = (root @ root.T).expand(4, 6, 6)
    single = [shannon_from_stability(1.0, j, f, BETA) for j, f in zip(jacobians, fishers, strict=True)]
    assert shannon_from_stability(1.0, jacobians, fishers, BETA) == pytest.approx(sum(single) / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unique_information(-1.0, 1.0), "squared length, got -1.0"),
        (lambda: unique_information(math.nan, 1.0), "squared length, got nan"),
        (lambda: unique_information(1.0, 0.0), "beta must be positive"),
        (lambda: shannon_from_stability(0.0, matrix(6, 3), matrix(6, 6), math.inf), "beta must be positive"),
        (
            lambda: shannon_from_stability(0.0, matrix(6, 3), matrix(3, 3), 1.0),
            r"\(M, k, k\), got \(6, 3\) and \(3, 3\)",
        ),
        (lambda: shannon_from_stability(0.0, matrix(6, 3), torch.zeros(6, 6), 1.0), "determinant .* positive"),
    ],
)
def test_what_has_no_value_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
