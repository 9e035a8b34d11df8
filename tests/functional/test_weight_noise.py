from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional.lanczos import lanczos
from lightning_info.functional.weight_noise import diagonal_noise, full_noise, lanczos_noise, low_rank_noise

K = 6


def root(noise) -> torch.Tensor:
    """The linear map that takes z to the noise, column by column."""
    return torch.stack([noise(z) for z in torch.eye(K, dtype=torch.float64)], 1)


def assert_root_of_posterior(found, h, beta, lambda_):
    truth = beta * torch.linalg.inv(h + torch.diag(torch.as_tensor(beta / lambda_**2, dtype=torch.float64).expand(K)))
    torch.testing.assert_close(found @ found.T, truth, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, found.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("beta", "lambda_", "scale"), [(1.0, 0.5, 1.0), (0.01, 2.0, 30.0)])
@pytest.mark.parametrize("count", [3, 9])
def test_low_rank_noise_has_the_covariance_of_the_posterior(count, beta, lambda_, scale):
    a = torch.randn(count, K, dtype=torch.float64)
    mu, u = torch.linalg.eigh(a @ a.T)
    found = root(lambda z: low_rank_noise(z, a @ z, a.T.mv, mu, u, beta, lambda_, scale=scale))
    assert_root_of_posterior(found, scale * a.T @ a, beta, lambda_)


@pytest.mark.parametrize(("beta", "lambda_"), [(1.0, 0.5), (0.01, 2.0)])
def test_full_noise_has_the_covariance_of_the_posterior(beta, lambda_):
    a = torch.randn(4, K, dtype=torch.float64)
    h, q = torch.linalg.eigh(a.T @ a)
    assert_root_of_posterior(root(lambda z: full_noise(z, h, q, beta, lambda_)), a.T @ a, beta, lambda_)


@pytest.mark.parametrize("lambda_", [0.5, torch.linspace(0.1, 2, K).double()])
def test_diagonal_noise_has_the_covariance_of_the_posterior(lambda_):
    h = torch.linspace(0, 100, K)
    assert_root_of_posterior(root(lambda z: diagonal_noise(z, h, 0.3, lambda_)), torch.diag(h.double()), 0.3, lambda_)


@pytest.mark.parametrize(("beta", "lambda_", "scale"), [(1.0, 0.5, 1.0), (0.01, 2.0, 30.0), (0.01, 1.0, 5000.0)])
def test_lanczos_noise_has_the_covariance_of_the_posterior_with_enough_steps(beta, lambda_, scale):
    a = torch.randn(3, K, dtype=torch.float64)
    found = root(lambda z: lanczos_noise(lanczos((a.T @ a).mv, z, K), beta, lambda_, scale=scale))
    truth = root(lambda z: full_noise(z, *torch.linalg.eigh(scale * a.T @ a), beta, lambda_))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-7 * lambda_)


def test_lanczos_noise_comes_nearer_with_the_steps_and_serves_every_level():
    fisher = torch.diag(torch.cat([torch.logspace(1, -5, 60), torch.zeros(40)]).double())
    z = torch.randn(100, dtype=torch.float64)
    run = lanczos(fisher.mv, z, 60)
    for beta, lambda_ in [(0.1, 0.3), (10.0, 1.0)]:
        truth = diagonal_noise(z, 1000 * fisher.diagonal(), beta, lambda_)
        found = [lanczos_noise(run.first(m), beta, lambda_, scale=1000) for m in (4, 8, 16, 32, 60)]
        errors = [(noise - truth).norm() for noise in found]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] <= 1e-6 * truth.norm()


def test_a_weight_whose_prior_is_a_point_has_no_noise():
    lambda_ = torch.tensor([0.0, 1.0])
    found = diagonal_noise(torch.ones(2), torch.tensor([0.0, 3.0]), 1.0, lambda_)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5]).double())


def test_without_curvature_the_noise_is_the_prior():
    z, a = torch.randn(K).double(), torch.zeros(2, K).double()
    found = low_rank_noise(z, a @ z, a.T.mv, torch.zeros(2), torch.eye(2), 1.0, 0.3)
    assert torch.equal(found, 0.3 * z)


def test_bad_input_is_refused():
    one = torch.ones(1)
    for beta, lambda_, scale in [(0.0, 1.0, 1.0), (1.0, math.inf, 1.0), (1.0, 1.0, 0.0)]:
        with pytest.raises(ValueError, match=r"positive and finite|no KL"):
            low_rank_noise(one, one, lambda v: v, one, one.view(1, 1), beta, lambda_, scale=scale)
        with pytest.raises(ValueError, match=r"positive and finite|no KL"):
            lanczos_noise(lanczos(lambda v: v, one, 1), beta, lambda_, scale=scale)
    with pytest.raises(ValueError, match="not negative"):
        diagonal_noise(one, -0.1 * one, 1.0, 1.0)
