from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from lightning_info.functional import code_excess, prequential_code


def test_of_a_conjugate_linear_model_it_is_minus_the_log_evidence():
    """Bayesian linear regression, sequentially: each y is coded by its predictive given those before it."""
    generator = torch.Generator().manual_seed(0)
    n, d, noise = 40, 3, 0.5
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
    y += noise * torch.randn(n, generator=generator, dtype=torch.float64)
    precision, shift, losses = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64), []
    for row, target in zip(x, y, strict=True):
        mean, covariance = torch.linalg.solve(precision, shift), torch.linalg.inv(precision)
        predictive = Normal(row @ mean, (row @ covariance @ row + noise**2).sqrt())
        losses.append(-predictive.log_prob(target))
        precision, shift = precision + torch.outer(row, row) / noise**2, shift + row * target / noise**2
    evidence = MultivariateNormal(torch.zeros_like(y), x @ x.T + noise**2 * torch.eye(n).double()).log_prob(y)
    code = prequential_code(torch.stack(losses))
    assert code.shape == (n,)
    assert code[-1].item() == pytest.approx(-evidence.item(), rel=1e-10)


def test_the_estimator_of_krichevsky_and_trofimov_pays_half_a_logarithm():
    """½ log n + ½ log(π/2) above the best coin, up to 1/n; in batches of ten a little more."""
    n = 10_000
    y = (torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    seen = torch.arange(n, dtype=torch.float64)
    ones = (y.cumsum(0) - y + 0.5) / (seen + 1)
    each = -(y * ones.log() + (1 - y) * (1 - ones).log())
    p = y.mean()
    best = -n * (p * p.log() + (1 - p) * (1 - p).log()).item()
    found = prequential_code(each)[-1].item() - best
    assert found == pytest.approx(0.5 * math.log(n) + 0.5 * math.log(math.pi / 2), abs=1e-3)
    before = ones[::10].repeat_interleave(10)  # ten at a time by what was seen before them
    batches = -(y * before.log() + (1 - y) * (1 - before).log()).view(-1, 10).mean(1)
    slower = prequential_code(batches, torch.full((n // 10,), 10))[-1].item() - best
    assert found < slower < found + 10


def test_the_excess_is_the_area_above_the_final_loss():
    losses = torch.tensor([3.0, 2.0, 1.0])
    assert code_excess(prequential_code(losses)[-1].item(), 3, 1.0) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="samples=0"):
        code_excess(1.0, 0, 1.0)


@pytest.mark.parametrize(("losses", "sizes"), [(torch.ones(2, 2), None), (torch.ones(3), torch.ones(2))])
def test_other_shapes_are_refused(losses, sizes):
    with pytest.raises(ValueError, match="one number for each batch"):
        prequential_code(losses, sizes)
