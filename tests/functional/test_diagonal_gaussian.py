from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lightning_info.functional.diagonal_gaussian import DiagonalGaussian
from lightning_info.functional.pac_bayes import PRIOR_STDS

SIZES = [4, 2, 1]
MEAN, STD, PRIOR = (torch.randn(7, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1, 2))
Q = DiagonalGaussian(MEAN, (0.1 * STD).exp() / 10)


def exact(std: torch.Tensor) -> float:
    """KL from a prior of these standard deviations, by torch.distributions."""
    return kl_divergence(Normal(Q.mean, Q.std), Normal(PRIOR, std)).sum().item()


@pytest.mark.parametrize("std", [0.003, 0.2, torch.linspace(0.1, 0.9, 7, dtype=torch.float64)])
def test_the_kl_is_that_of_torch_distributions(std):
    assert Q.divergence(PRIOR, std) == pytest.approx(exact(torch.as_tensor(std, dtype=torch.float64)), rel=1e-12)


def test_of_the_prior_itself_it_is_0_and_never_less():
    for seed in range(20):
        std = torch.rand(1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
        found = DiagonalGaussian(std, std).divergence(std, std * (1 + 1e-15))
        assert 0 <= found < 1e-9


def test_the_standard_deviation_of_the_draws_is_that_of_the_kl():
    draws = 40_000
    noise = Q.noise(draws, torch.Generator().manual_seed(3))
    assert noise.shape == (draws, 7)
    # the standard error of a standard deviation is std / sqrt(2 n) = 0.35 %, that of a mean std / sqrt(n)
    assert (noise.std(0) / Q.std - 1).abs().max() < 4 / math.sqrt(2 * draws)
    assert (noise.mean(0) / Q.std).abs().max() < 4 / math.sqrt(draws)
    measured = kl_divergence(Normal(Q.mean, noise.std(0)), Normal(PRIOR, torch.tensor(0.2))).sum().item()
    # if the squares of the deviations had been drawn (a published code does so), the KL would be 16 nats larger
    assert Q.divergence(PRIOR, 0.2) == pytest.approx(measured, abs=0.05)
    confused = kl_divergence(Normal(Q.mean, Q.std.square()), Normal(PRIOR, torch.tensor(0.2))).sum().item()
    assert confused > Q.divergence(PRIOR, 0.2) + 10


def test_the_nearest_prior_is_the_best_of_all_combinations():
    stds = PRIOR_STDS[::30]
    found = Q.nearest_prior(PRIOR, SIZES, stds)
    each = []
    for part in torch.arange(7).split(SIZES):
        values = [
            kl_divergence(Normal(Q.mean[part], Q.std[part]), Normal(PRIOR[part], torch.tensor(s))).sum() for s in stds
        ]
        each.append(min(range(len(stds)), key=values.__getitem__))
    assert found.stds == pytest.approx([stds[place] for place in each])
    assert found.information == pytest.approx(exact(torch.tensor(found.stds).repeat_interleave(torch.tensor(SIZES))))
    assert found.log_choices == pytest.approx(math.log(len(stds) ** 3))


def test_a_standard_deviation_that_is_none_is_refused():
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            DiagonalGaussian(MEAN, torch.full_like(MEAN, std))
        with pytest.raises(ValueError, match="positive and finite"):
            Q.divergence(PRIOR, std)
    with pytest.raises(ValueError, match=r"give both as \(k,\)"):
        DiagonalGaussian(MEAN, STD[:3].exp())
    with pytest.raises(ValueError, match="groups of 6 weights; there are 7"):
        Q.nearest_prior(PRIOR, [4, 2], PRIOR_STDS)
