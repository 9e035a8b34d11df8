"""Formulas of Achille, Paolini & Soatto: the corrected form passes, the printed one fails the same test."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.theory.activation_covariance import activation_covariance
from lightning_info.functional.theory.activation_fisher import (
    activation_fisher,
    brunel_nadal_information,
    gaussian_channel_information,
)
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


@pytest.mark.parametrize("units", [2, 3])
def test_proposition_3_2_inverts_the_wrong_matrix(problem, units):
    h, _ = problem
    h = h + 0.1 * torch.eye(K, dtype=torch.float64)  # of full rank and without a prior, as the proposition has it
    j_w, j_x = torch.randn(units, K, dtype=torch.float64), torch.randn(units, 3, dtype=torch.float64)
    noise = j_w @ (BETA * torch.linalg.inv(h)) @ j_w.T
    here = MultivariateNormal(torch.zeros(units, dtype=torch.float64), noise)
    fisher = activation_fisher(j_x[None], activation_covariance(j_w, h, BETA, 1e6)[None])[0]
    truth, found, printed = [], [], []
    for u in torch.eye(3, dtype=torch.float64):  # f linear in x: the KL is ½ uᵀFu, exactly
        truth.append(2 * kl_divergence(here, MultivariateNormal(j_x @ u, noise)).item())
        found.append((u @ fisher @ u).item())
        printed.append((u @ j_x.T @ j_w @ h @ j_w.T @ j_x @ u).item() / BETA)
    assert found == pytest.approx(truth, rel=1e-6)
    assert sum(printed) > 10 * sum(truth)
    # a layer whose weights move it more has more noise, and so less information; as printed it has more
    more = activation_fisher(j_x[None], activation_covariance(2 * j_w, h, BETA, 1e6)[None])[0]
    torch.testing.assert_close(more, fisher / 4, rtol=1e-6, atol=0)


def test_proposition_3_2_lacks_the_sign_of_its_proof(problem):
    _, w = problem
    x = w[:2].clone()
    jacobian, noise = torch.randn(2, 2, dtype=torch.float64), torch.diag(torch.tensor([0.5, 2.0])).double()

    def mean_log_density(y):  # of z ~ p(z|x), as a function of y in log p(z|y)
        at, here = MultivariateNormal(jacobian @ y, noise), MultivariateNormal(jacobian @ x, noise)
        return -kl_divergence(here, at) - here.entropy()

    printed = torch.autograd.functional.hessian(mean_log_density, x)
    found = activation_fisher(jacobian[None], noise[None])[0]
    torch.testing.assert_close(found, -printed, rtol=1e-10, atol=0)
    assert (torch.linalg.eigvalsh(printed) < 0).all()


def test_equation_10_counts_inputs_and_exists_for_as_many_units_only():
    p, variance = 3, 1e-6
    for units in (2, 3, 5):
        j_x = torch.randn(units, p, dtype=torch.float64)
        noise = variance * torch.eye(units, dtype=torch.float64)
        entropy = MultivariateNormal(torch.zeros(p).double(), torch.eye(p).double()).entropy().item()
        exact = torch.logdet(torch.eye(units) + j_x @ j_x.T / variance).item() / 2  # x ~ N(0, I), linear layer
        fisher = activation_fisher(j_x[None], noise[None])
        assert gaussian_channel_information(fisher, torch.eye(p)) == pytest.approx(exact, rel=1e-8)
        if units < p:
            with pytest.raises(ValueError, match="dim z >= dim x"):
                brunel_nadal_information(fisher, entropy)
            continue
        printed = entropy - (K * math.log(2 * math.pi * math.e) - torch.logdet(fisher[0]).item()) / 2
        assert brunel_nadal_information(fisher, entropy) == pytest.approx(exact, abs=1e-4)
        assert printed < exact - 5
