from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional.lanczos import lanczos, runs
from lightning_info.functional.weight_noise import diagonal_posterior_noise, lanczos_posterior_noise, posterior_noise

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


def test_lanczos_noise_is_a_root_of_the_covariance_for_every_level_of_one_run():
    a = torch.randn(9, 14, dtype=torch.float64)
    fisher, eye = a.T @ a / 9, torch.eye(14, dtype=torch.float64)
    runs = [lanczos(fisher.mv, start, 14) for start in eye]
    for beta, lambda_, scale in [(1.0, 0.5, 1.0), (0.01, 2.0, 30.0), (1e-2, 1.0, 5000.0)]:
        root = torch.stack([lanczos_posterior_noise(run, beta, lambda_, scale=scale) for run in runs])
        covariance = beta * torch.linalg.inv(scale * fisher + beta / lambda_**2 * eye)
        torch.testing.assert_close(root.T @ root, covariance, rtol=0, atol=1e-8 * lambda_**2)
        torch.testing.assert_close(root, root.T, rtol=0, atol=1e-8 * lambda_)


def test_lanczos_noise_comes_nearer_with_the_steps():
    fisher = torch.diag(torch.cat([torch.logspace(1, -5, 60), torch.zeros(40)]).double())
    z = torch.randn(100, dtype=torch.float64)
    truth = (0.1 / (1000 * fisher.diagonal() + 0.1 / 0.3**2)).sqrt() * z
    run = lanczos(fisher.mv, z, 60)
    steps = (4, 8, 16, 32, 60)
    errors = [(lanczos_posterior_noise(run.first(m), 0.1, 0.3, scale=1000) - truth).norm().item() for m in steps]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1e-6 * truth.norm()


def test_eigenvectors_found_beforehand_bring_lanczos_noise_nearer():
    fisher = torch.diag(torch.cat([torch.logspace(1, -5, 60), torch.zeros(40)]).double())
    z = torch.randn(100, dtype=torch.float64)
    truth = (0.1 / (1000 * fisher.diagonal() + 0.1 / 0.3**2)).sqrt() * z
    starts = [torch.randn(100), torch.randn(100), z]
    *_, beside = runs(fisher.mv, starts, 20)
    plain, found = (lanczos_posterior_noise(run, 0.1, 0.3, scale=1000) for run in (lanczos(fisher.mv, z, 20), beside))
    assert (found - truth).norm() < 0.3 * (plain - truth).norm()


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
        with pytest.raises(ValueError, match=r"positive and finite|no KL"):
            lanczos_posterior_noise(lanczos(eye.mv, torch.ones(2), 1), beta, lambda_, scale=scale)
    with pytest.raises(ValueError, match="not negative"):
        diagonal_posterior_noise(torch.tensor([-0.1]), 1.0, 1.0)
