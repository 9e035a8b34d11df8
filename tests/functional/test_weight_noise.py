from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional.weight_noise import diagonal_posterior_noise, posterior_noise

DRAWS = 10_000


def assert_covariance(noise, truth):
    """Every entry within 5 standard errors."""
    products = noise.unsqueeze(2) * noise.unsqueeze(1)
    error = 5 * products.std(0) / DRAWS**0.5
    assert ((products.mean(0) - truth).abs() <= error).all()
    assert (noise.mean(0).abs() <= 5 * noise.std(0) / DRAWS**0.5).all()


@pytest.mark.parametrize(("beta", "lambda_", "scale"), [(1.0, 0.5, 1.0), (0.01, 2.0, 30.0)])
@pytest.mark.parametrize("count", [3, 9])
def test_the_noise_has_the_covariance_of_the_posterior(count, beta, lambda_, scale):
    a = torch.randn(count, 6, dtype=torch.float64)
    noise = posterior_noise(
        a @ a.T, a.mv, a.T.mv, 6, beta, lambda_, scale=scale, draws=DRAWS, generator=torch.Generator().manual_seed(0)
    )
    h = scale * a.T @ a
    assert_covariance(noise, beta * torch.linalg.inv(h + beta / lambda_**2 * torch.eye(6, dtype=torch.float64)))


@pytest.mark.parametrize("lambda_", [0.5, torch.tensor([0.1, 0.5, 2.0])])
def test_the_noise_of_a_diagonal(lambda_):
    diagonal = torch.tensor([0.0, 3.0, 100.0])
    noise = diagonal_posterior_noise(diagonal, 0.3, lambda_, draws=DRAWS, generator=torch.Generator().manual_seed(0))
    precision = diagonal.double() + 0.3 / torch.as_tensor(lambda_, dtype=torch.float64).square()
    assert_covariance(noise, torch.diag(0.3 / precision))


def test_a_seed_repeats_its_noise():
    draw = lambda: diagonal_posterior_noise(torch.ones(4), 1.0, 1.0, generator=torch.Generator().manual_seed(3))  # noqa: E731
    assert torch.equal(draw(), draw())


def test_bad_input_is_refused():
    eye = torch.eye(2, dtype=torch.float64)
    for beta, lambda_, scale in [(0.0, 1.0, 1.0), (1.0, math.inf, 1.0), (1.0, 1.0, 0.0)]:
        with pytest.raises(ValueError, match=r"positive and finite|no KL"):
            posterior_noise(eye, eye.mv, eye.mv, 2, beta, lambda_, scale=scale)
    with pytest.raises(ValueError, match="not negative"):
        diagonal_posterior_noise(torch.tensor([-0.1]), 1.0, 1.0)
