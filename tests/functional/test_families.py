"""Distributions whose parameters are all outputs: their Fisher information against samples, sums and a density."""

from __future__ import annotations

import pytest
import torch
from torch import distributions
from torch.distributions import kl_divergence

from lightning_info.functional import exact_cotangents, fisher_cotangent, output_fisher_trace
from lightning_info.functional.likelihoods import (
    FAMILIES,
    AsymmetricLaplace,
    NegativeBinomial,
    Product,
    StudentT,
    likelihood_named,
)

GENERATOR = torch.Generator().manual_seed(0)
ROW = torch.tensor([[1.3, 0.7, 1.9]], dtype=torch.float64)
DRAWS = 100_000
SHAPES = {distributions.Dirichlet: ((3,),), distributions.MultivariateNormal: ((2,), (2, 2))}
AT = {distributions.MultivariateNormal: torch.tensor([[0.3, -0.2, 1.1, 0.0, 0.4, 0.8]], dtype=torch.float64)}


def family(kind):
    _, make = FAMILIES[kind]
    one = make(shapes=SHAPES.get(kind))
    z = AT.get(kind, ROW[:, : len(one.predicted)])
    return one, z


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.__name__)
def test_the_information_is_the_second_moment_of_the_score(kind):
    """100 000 labels of torch's own sampler, seeded; every element of H within 5 standard errors."""
    one, z = family(kind)
    many = z.expand(DRAWS, -1).clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        y = one.distribution(many.detach()).sample()
    (score,) = torch.autograd.grad(one.distribution(many).log_prob(y).sum(), many)
    squares = score.unsqueeze(-1) * score.unsqueeze(-2)
    error = squares.std(0) / DRAWS**0.5
    assert ((squares.mean(0) - one.information(z)[0]).abs() <= 5 * error + 1e-9).all()
    assert (score.mean(0).abs() <= 5 * score.std(0) / DRAWS**0.5 + 1e-9).all()


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.__name__)
def test_root_and_cotangents_have_the_information(kind):
    one, z = family(kind)
    columns = torch.stack(list(exact_cotangents(z, one)))[:, 0]
    torch.testing.assert_close(columns.T @ columns, one.information(z)[0], rtol=1e-7, atol=1e-10)
    u = fisher_cotangent(z.expand(20_000, -1), one, generator=torch.Generator().manual_seed(2))
    squares = u.unsqueeze(-1) * u.unsqueeze(-2)
    assert ((squares.mean(0) - one.information(z)[0]).abs() <= 5 * squares.std(0) / 20_000**0.5 + 1e-9).all()
    some = type(one)((False, *one.predicted[1:])) if type(one) in (StudentT, NegativeBinomial) else None
    if some is not None:  # what the network does not predict has no information
        assert output_fisher_trace(z, some) == one.information(z)[0].diagonal()[1:].sum()
        assert all((column[:, 0] == 0).all() for column in exact_cotangents(z, some)) or kind is distributions.StudentT


@pytest.mark.parametrize("total", [0.3, 1.0, 7.0, 60.0])
@pytest.mark.parametrize("logit", [-4.0, 0.0, 3.0])
def test_the_information_in_the_total_count_is_its_sum(total, logit):
    """The sum over k of p^k B(k, r) / k to 4000 terms, the rest of which is below 1e-12 of it."""
    r, p = torch.tensor(total, dtype=torch.float64), torch.tensor(logit, dtype=torch.float64).sigmoid()
    k = torch.arange(1.0, 4001.0, dtype=torch.float64)
    truth = (k * p.log() + torch.lgamma(k) + torch.lgamma(r) - torch.lgamma(k + r) - k.log()).exp().sum()
    z = torch.tensor([[total, logit]], dtype=torch.float64)
    torch.testing.assert_close(NegativeBinomial().information(z)[0, 0, 0], truth, rtol=1e-8, atol=0)


def test_student_t_tends_to_the_normal_distribution_and_has_no_gap_where_its_series_begins():
    z = torch.tensor([[1e8, 0.3, 0.5]], dtype=torch.float64)
    truth = torch.tensor([0.0, 4.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(StudentT().information(z)[0].diagonal(), truth, rtol=1e-6, atol=1e-20)
    both = torch.tensor([[100.0, 0.0, 1.0], [100.0001, 0.0, 1.0]], dtype=torch.float64)
    low, high = StudentT().information(both)[:, 0, 0]
    torch.testing.assert_close(high, low * (100 / 100.0001) ** 4, rtol=1e-7, atol=0)


def test_the_divergence_is_that_of_torch_or_its_half_square_near_by():
    one, z = family(distributions.Gamma)
    p, q = (distributions.Gamma(*at.unbind(-1)) for at in (z, 1.1 * z))
    torch.testing.assert_close(one.kl(z, 1.1 * z), kl_divergence(p, q), rtol=1e-9, atol=0)
    one, z = family(distributions.StudentT)
    z = z.expand(400, -1)
    d = 0.05 * torch.randn(z.shape, generator=GENERATOR, dtype=torch.float64)
    square = 0.5 * torch.einsum("ni,nij,nj->n", d, one.information(z), d)
    assert abs(one.kl(z, z + d).mean() / square.mean() - 1) < 0.1  # a mean of 128 labels each


def test_a_family_is_a_head_of_a_product():
    student, z = family(distributions.StudentT)
    both = Product([(student, (3,)), (likelihood_named("gaussian", "test"), (2,))])
    whole = torch.cat([z, z[:, :2]], 1)
    torch.testing.assert_close(output_fisher_trace(whole, both), output_fisher_trace(z, student) + 2)
    assert both.sample(whole, GENERATOR).shape == both.positions(whole) == (1, 3)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_the_density_of_a_quantile_loss(quantile):
    one, z = AsymmetricLaplace(quantile), torch.linspace(-2, 2, 9, dtype=torch.float64)
    grid = torch.linspace(-400, 400, 2_000_001, dtype=torch.float64)
    p = (-one.loss(torch.zeros_like(grid), grid)).exp() * quantile * (1 - quantile)
    step = grid[1] - grid[0]
    assert abs(p.sum() * step - 1) < 1e-3
    score = one.score(torch.zeros_like(grid), grid)
    assert abs((p * score.square()).sum() * step - one.fisher_trace(z)[0]) < 1e-3
    for other in (-1.5, 0.02, 2.0):
        moved = torch.tensor(other, dtype=torch.float64)
        truth = (p * (one.loss(moved.expand_as(grid), grid) - one.loss(torch.zeros_like(grid), grid))).sum() * step
        assert abs(one.kl(torch.zeros_like(moved), moved) - truth) < 1e-3 * truth + 1e-5
    y = one.sample(torch.zeros(DRAWS, dtype=torch.float64), torch.Generator().manual_seed(3))
    assert abs((y < 0).double().mean() - quantile) < 4 * (quantile * (1 - quantile) / DRAWS) ** 0.5
    mean = (p * grid).sum() * step
    assert abs(y.mean() - mean) < 4 * y.std() / DRAWS**0.5 + 1e-2 * abs(mean)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, float("nan")])
def test_a_level_that_is_none_is_refused(quantile):
    with pytest.raises(ValueError, match=r"quantile=0\.9"):
        AsymmetricLaplace(quantile)
