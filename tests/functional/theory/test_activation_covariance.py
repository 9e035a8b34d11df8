from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional.theory.activation_covariance import (
    activation_covariance,
    diagonal_activation_covariance,
    low_rank_activation_covariance,
)
from lightning_info.functional.weight_noise import diagonal_noise, full_noise

K, UNITS, BETA = 12, 3, 0.3


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def assert_same(found, truth):
    """To 1e-9 of the largest element."""
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-9 * truth.abs().max().item())


def dense(jacobian, h, prior):
    """``J Σ* Jᵀ`` with the inverse written out."""
    precision = torch.as_tensor(prior, dtype=torch.float64).expand(K) ** -2
    return jacobian @ (BETA * torch.linalg.inv(h + BETA * torch.diag(precision))) @ jacobian.mT


def low_rank(jacobian, a, lambda_, **kwargs):
    products = jacobian @ jacobian.mT, jacobian @ a.T, a @ a.T
    return low_rank_activation_covariance(*products, BETA, lambda_, **kwargs)


@pytest.mark.parametrize("lambda_", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("count", [1, 5, 12, 30])
def test_rows_matrix_and_inverse_agree(count, lambda_):
    jacobian, a = normal(4, UNITS, K), normal(count, K)
    h = 2.5 * a.T @ a
    truth = dense(jacobian, h, lambda_)
    assert_same(activation_covariance(jacobian, h, BETA, lambda_), truth)
    assert_same(low_rank(jacobian, a, lambda_, scale=2.5), truth)


@pytest.mark.parametrize("lambda_", [0.7, torch.linspace(0.1, 2, K)])
def test_a_diagonal_is_the_matrix_that_it_stands_for(lambda_):
    jacobian, diagonal = normal(4, UNITS, K), normal(K).square()
    diagonal[0] = 0
    truth = dense(jacobian, torch.diag(diagonal), lambda_)
    for found in (
        diagonal_activation_covariance(jacobian, diagonal, BETA, lambda_),
        activation_covariance(jacobian, torch.diag(diagonal), BETA, lambda_),
    ):
        assert_same(found, truth)


def test_a_prior_for_each_weight_goes_into_the_columns():
    jacobian, a, prior = normal(UNITS, K), normal(5, K), torch.linspace(0.1, 2, K).double()
    truth = dense(jacobian, a.T @ a, prior)
    assert_same(activation_covariance(jacobian, a.T @ a, BETA, prior), truth)
    assert_same(low_rank(jacobian * prior, a * prior, 1.0), truth)


def test_a_prior_of_zero_is_a_weight_without_noise():
    jacobian, a, prior = normal(UNITS, K), normal(5, K), torch.ones(K)
    prior[8:] = 0
    h = a.T @ a
    kept = activation_covariance(jacobian[:, :8], h[:8, :8], BETA, 1.0)
    assert_same(activation_covariance(jacobian, h, BETA, prior), kept)
    diagonal = h.diagonal()
    kept = diagonal_activation_covariance(jacobian[:, :8], diagonal[:8], BETA, 1.0)
    assert_same(diagonal_activation_covariance(jacobian, diagonal, BETA, prior), kept)


def test_it_is_the_covariance_of_activations_under_small_weight_noise():
    # 10,000 draws: every entry within 5 standard errors, which are 1 to 2 % of a variance. Where nothing constrains the
    # weights (5 rows) the noise is the prior's whatever beta is, so lambda_ has to be small, too
    draws, beta, lambda_ = 10_000, 1e-5, 0.01
    w, x, a = normal(K), normal(2), normal(5, K)

    def layer(w):
        return torch.tanh(w[:6].reshape(3, 2) @ x + w[6:9]) * w[9:]

    jacobian = torch.func.jacrev(layer)(w)
    z = torch.randn(draws, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    diagonal = a.square().sum(0)
    for noise, sigma in (
        (
            torch.stack([full_noise(one, *torch.linalg.eigh(a.T @ a), beta, lambda_) for one in z]),
            activation_covariance(jacobian, a.T @ a, beta, lambda_),
        ),
        (
            torch.stack([diagonal_noise(one, diagonal, beta, w.abs()) for one in z]),
            diagonal_activation_covariance(jacobian, diagonal, beta, w.abs()),
        ),
    ):
        moved = torch.vmap(layer)(w + noise) - layer(w)
        products = moved.unsqueeze(2) * moved.unsqueeze(1)
        assert ((products.mean(0) - sigma).abs() <= 5 * products.std(0) / draws**0.5).all()


def test_digits_that_rounding_took_are_missed():
    # as many rows as weights, so that every direction is constrained: hλ²/β digits are lost
    jacobian, a = normal(UNITS, K), normal(3 * K, K)
    h = a.T @ a
    for lambda_ in (1.0, 1e2, 1e4):
        truth = activation_covariance(jacobian, h, BETA, lambda_)
        error = (low_rank(jacobian, a, lambda_) - truth).norm() / truth.norm()
        assert error < 1e-4
    assert error > 1e-9
    with pytest.raises(ValueError, match="fewer than four digits"):
        low_rank(jacobian, a, 1e6)
    with pytest.raises(ValueError, match="fewer than four digits"):
        low_rank(jacobian.float(), a.float(), 1e2)  # rows in single precision have no more than seven


def test_a_unit_without_weights_is_no_difference_of_products():
    jacobian = normal(2, UNITS, K)
    jacobian[1, 2] = 0
    with pytest.raises(ValueError, match="leave them out"):
        low_rank(jacobian, normal(5, K), 1.0)
    # but one of small activations is
    jacobian[1, 2] = 1e-9 * normal(K)
    a, units = normal(5, K), torch.tensor([1, 1, 1e9]).double()
    found, truth = low_rank(jacobian, a, 0.7)[1], dense(jacobian, a.T @ a, 0.7)[1]
    assert_same(units[:, None] * found * units, units[:, None] * truth * units)


J, EYE, ONES = torch.ones(2, 3), torch.eye(3), torch.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation_covariance(J, EYE[:2], 1.0, 1.0), r"curvature of shape \(2, 3\): expected .* k = 3"),
        (lambda: activation_covariance(J, -2 * EYE, 1.0, 1.0), "not positive semi-definite"),
        (lambda: activation_covariance(J, math.nan * EYE, 1.0, 1.0), "not positive semi-definite"),
        (lambda: activation_covariance(J, EYE, 0.0, 1.0), "beta=0.0"),
        (lambda: activation_covariance(J, EYE, 1.0, math.inf), "lambda_ must be finite"),
        (lambda: activation_covariance(J, EYE, 1.0, torch.ones(2)), r"lambda_ of shape \(2,\): .* k = 3"),
        (lambda: diagonal_activation_covariance(J, torch.ones(2), 1.0, 1.0), r"diagonal of shape \(2,\)"),
        (lambda: diagonal_activation_covariance(J, -ONES, 1.0, 1.0), "finite and not negative"),
        (lambda: diagonal_activation_covariance(J, ONES, 1.0, -ONES), "lambda_ must be finite and not negative"),
        (lambda: low_rank_activation_covariance(EYE, EYE, EYE, 1.0, math.inf), "lambda_=inf"),
        (lambda: low_rank_activation_covariance(EYE, EYE, EYE, 1.0, 1.0, scale=0.0), "scale=0.0"),
        (lambda: low_rank_activation_covariance(EYE, EYE, EYE, math.nan, 1.0), "beta=nan"),
        (lambda: low_rank_activation_covariance(math.nan * EYE, EYE, EYE, 1.0, 1.0), "fewer than four digits"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
