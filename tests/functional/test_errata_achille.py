"""Formulas of Achille, Paolini & Soatto: the corrected form passes, the printed one fails the same test."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import optimal_lambda, posterior_trace, weight_information

K, BETA, LAMBDA = 8, 0.3, 0.7


@pytest.fixture
def problem():
    a = torch.randn(5, K, dtype=torch.float64)
    return a.T @ a, torch.randn(K, dtype=torch.float64)


def exact(covariance, w):
    prior = MultivariateNormal(torch.zeros_like(w), LAMBDA**2 * torch.eye(K, dtype=torch.float64))
    return kl_divergence(MultivariateNormal(w, covariance), prior).item()


def printed_covariance(h):
    return BETA / 2 * torch.linalg.inv(h + BETA / (2 * LAMBDA**2) * torch.eye(K, dtype=torch.float64))


def test_equation_8_has_half_of_k_too_little(problem):
    h, w = problem
    covariance, identity = printed_covariance(h), torch.eye(K, dtype=torch.float64)
    printed = (
        torch.logdet(h + BETA / (2 * LAMBDA**2) * identity).item() / 2
        + K / 2 * math.log(2 * LAMBDA**2 / BETA)
        - K
        + (w.square().sum() + covariance.trace()).item() / (2 * LAMBDA**2)
    )
    truth = exact(covariance, w)  # of its own covariance
    assert printed == pytest.approx(truth - K / 2, rel=1e-10)
    assert printed != pytest.approx(truth, rel=1e-2)
    corrected = weight_information(Spectrum.of_matrix(h, K), w.square().sum().item(), BETA / 2, LAMBDA)
    assert corrected == pytest.approx(truth, rel=1e-10)


def test_proposition_2_5_has_half_of_beta(problem):
    h, w = problem

    def lagrangian(covariance):  # definition 2.1 with the loss to second order
        return (h @ covariance).trace().item() / 2 + BETA * exact(covariance, w)

    best = BETA * torch.linalg.inv(h + BETA / LAMBDA**2 * torch.eye(K, dtype=torch.float64))
    assert lagrangian(best) < min(lagrangian(0.99 * best), lagrangian(1.01 * best))
    assert lagrangian(printed_covariance(h)) > lagrangian(best) + 1e-2


def test_the_minimiser_of_the_kl_alone_is_not_that_of_the_lagrangian(problem):
    h, w = problem
    spectrum, distance = Spectrum.of_matrix(h, K), 0.01 * w.square().sum().item()
    best = optimal_lambda(spectrum, distance, BETA).lambda_
    assert best**2 == pytest.approx((distance + posterior_trace(spectrum, BETA, best)) / K, rel=1e-10)
    grid = torch.logspace(-2, 1, 600).tolist()
    of_kl_alone = min(grid, key=lambda lambda_: weight_information(spectrum, distance, BETA, lambda_))
    assert of_kl_alone > 1.05 * best
