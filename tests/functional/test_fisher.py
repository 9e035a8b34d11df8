from __future__ import annotations

import math

import pytest
import torch
import zoo
from oracle import fisher_trace_by_definition
from scipy import stats

from lightning_info.functional import (
    draw_samples,
    exact_cotangents,
    fisher,
    fisher_cotangent,
    fisher_trace,
    output_fisher_trace,
    sampling_probabilities,
    trace_estimate,
)
from lightning_info.functional.draws import EachSample
from lightning_info.functional.fisher import output_fisher_product
from lightning_info.functional.likelihoods import likelihood_named
from lightning_info.gradients import squared_norms

ESTIMATORS = ["importance", "rademacher", "sampled"]
CASES = [
    ("categorical", (4, 5)),
    ("categorical", (4, 2, 3)),
    ("bernoulli", (4, 3)),
    ("bernoulli", (4,)),
    ("gaussian", (4, 3)),
]


def output_fisher(z, likelihood):
    """H(z_n) as a matrix over all outputs of a sample, from its definition."""
    rows = []
    for sample in z.double().reshape(len(z), -1, z.shape[-1] if likelihood == "categorical" else 1):
        if likelihood == "categorical":
            blocks = [torch.diag(p) - torch.outer(p, p) for p in sample.softmax(-1)]
        elif likelihood == "bernoulli":
            blocks = [(p * (1 - p)).reshape(1, 1) for p in sample.sigmoid()]
        else:
            blocks = [torch.ones(1, 1, dtype=torch.float64)] * len(sample)
        rows.append(torch.block_diag(*blocks))
    return torch.stack(rows)


@pytest.mark.parametrize(("likelihood", "shape"), CASES)
def test_exact_cotangents_are_a_root_of_the_output_fisher(likelihood, shape):
    z = torch.randn(shape)
    columns = torch.stack([u.reshape(len(z), -1) for u in exact_cotangents(z, likelihood)])
    root = torch.einsum("kni,knj->nij", columns, columns)
    truth = output_fisher(z, likelihood)
    torch.testing.assert_close(root, truth, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(output_fisher_trace(z, likelihood), truth.diagonal(0, 1, 2).sum(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (6, 10), (4, 3, 7)])
def test_the_root_of_classes_has_no_column_more_than_its_rank(shape):
    z = 3 * torch.randn(shape)
    columns = list(exact_cotangents(z, "categorical"))
    expected = math.prod(shape[1:-1]) * max(1, shape[-1] - 1)
    assert len(columns) == likelihood_named("categorical", "").root_columns(z) == expected
    flat = torch.stack([u.reshape(len(z), -1) for u in columns])
    if shape[-1] > 1:
        assert (torch.linalg.matrix_rank(flat.movedim(1, 0)) == expected).all()


def test_the_root_of_a_sure_network_is_exact_in_every_class():
    """Probabilities down to 1e-120: relative to the size of each element, as far as softmax itself is."""
    z = torch.tensor([[0.0, -30.0, -60.0, -275.0], [-275.0, -30.0, 0.0, -1e-3]], dtype=torch.float64)
    columns = torch.stack(list(exact_cotangents(z, "categorical")))
    root = torch.einsum("kni,knj->nij", columns, columns)
    p = z.softmax(-1)
    truth = -p[:, :, None] * p[:, None]
    for c in range(4):
        truth[:, c, c] = p[:, c] * p[:, [other for other in range(4) if other != c]].sum(1)
    torch.testing.assert_close(root, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("likelihood", "shape"), CASES)
def test_the_product_with_the_output_fisher_is_that_of_its_root(likelihood, shape, masked):
    z, t = 3 * torch.randn(shape), torch.randn(shape)
    mask = torch.rand(shape[:-1] if likelihood == "categorical" else shape) > 0.4 if masked else None
    found = output_fisher_product(z, likelihood, t, mask)
    assert found.dtype == torch.float64
    truth = torch.zeros(shape, dtype=torch.float64)
    for s in exact_cotangents(z, likelihood, mask):
        inner = (s * t).reshape(len(z), -1).sum(1)
        truth += s * inner.reshape(-1, *(1,) * (z.dim() - 1))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("likelihood", "shape"), CASES)
def test_second_moment_of_the_cotangents_is_the_output_fisher(likelihood, shape, estimator):
    # 40,000 draws of each sample; every entry within 5 standard errors, cross terms between positions included
    draws = 40_000
    z = torch.randn(shape)
    many = z.repeat_interleave(draws, 0)
    u = fisher_cotangent(many, likelihood, estimator, generator=torch.Generator().manual_seed(1))
    products = u.reshape(len(z), draws, -1, 1) * u.reshape(len(z), draws, 1, -1)
    error = 5 * products.std(1) / draws**0.5 + 1e-12
    assert ((products.mean(1) - output_fisher(z, likelihood)).abs() <= error).all()


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5)])
def test_many_classes_go_a_few_rows_at_a_time(shape, monkeypatch):
    z, t = 3 * torch.randn(shape), torch.randn(shape)
    trace, product = output_fisher_trace(z, "categorical"), output_fisher_product(z, "categorical", t)
    monkeypatch.setattr(fisher, "MOST_NUMBERS", 12)  # two rows
    torch.testing.assert_close(output_fisher_trace(z, "categorical"), trace, rtol=1e-14, atol=0)
    torch.testing.assert_close(output_fisher_product(z, "categorical", t), product, rtol=1e-13, atol=1e-16)
    u = fisher_cotangent(z, "categorical", "importance", dtype=torch.float32)
    assert u.shape == z.shape
    assert u.dtype == torch.float32
    torch.testing.assert_close(u.double().flatten(1).square().sum(1), trace, rtol=1e-6, atol=0)


def test_every_importance_cotangent_has_the_length_of_the_trace():
    z = 6 * torch.randn(50, 10)
    u = fisher_cotangent(z, "categorical", "importance")
    torch.testing.assert_close(u.square().sum(1), output_fisher_trace(z, "categorical"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_logit_gap_of_200_stays_finite_and_right(estimator):
    z = torch.tensor([[200.0, 0.0, 0.0], [1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]])
    u = fisher_cotangent(z, "categorical", estimator)
    assert u.isfinite().all()
    trace = output_fisher_trace(z, "categorical")
    # p(1 - p) + 2 q(1 - q) with q = exp(-200) and 1 - p = 2q: 4 q to first order
    assert trace[0].item() == pytest.approx(4 * torch.tensor(-200.0, dtype=torch.float64).exp().item(), rel=1e-9)
    assert trace[2].item() == pytest.approx(2 / 3, rel=1e-12)


def test_ignored_positions_count_zero():
    z = torch.randn(3, 4, 5)
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    for u in [fisher_cotangent(z, "categorical", mask=mask), *exact_cotangents(z, "categorical", mask)]:
        assert (u[~mask] == 0).all()
    alone = output_fisher_trace(z[:1, :2], "categorical")
    assert output_fisher_trace(z, "categorical", mask)[:2].tolist() == pytest.approx([alone.item(), 0.0])


def test_draws_follow_their_probabilities():
    probabilities = sampling_probabilities(torch.tensor([0.0, 1.0, 5.0, 2.0]), admixture=0.1)
    assert probabilities.tolist() == pytest.approx([0.025, 0.1375, 0.5875, 0.25])
    index = draw_samples(probabilities, 20_000, generator=torch.Generator().manual_seed(3))
    counts = index.bincount(minlength=4).double()
    assert stats.chisquare(counts, 20_000 * probabilities).pvalue > 1e-3


def test_probabilities_of_a_pool_without_scores_are_uniform():
    assert sampling_probabilities(torch.zeros(4)).tolist() == [0.25] * 4


def test_trace_estimate_is_the_importance_weighted_mean_with_its_standard_error():
    values, probabilities = torch.tensor([2.0, 3.0, 10.0]), torch.tensor([0.1, 0.2, 0.7])
    weighted = [2 / 0.4, 3 / 0.8, 10 / 2.8]
    estimate = trace_estimate(values, probabilities, pool=4)
    assert estimate.trace == pytest.approx(sum(weighted) / 3)
    students = stats.t.ppf(stats.norm.cdf(1.96), 2) / 1.96  # three draws
    assert estimate.stderr == pytest.approx(students * stats.sem(weighted))
    assert estimate.low == pytest.approx(estimate.trace - 1.96 * estimate.stderr)
    assert estimate.high == pytest.approx(estimate.trace + 1.96 * estimate.stderr)
    with pytest.raises(ValueError, match="pool=256"):
        trace_estimate(values, probabilities)


@pytest.mark.parametrize("name", ["residual", "tied", "multi_label", "regression"])
def test_fisher_trace_of_a_plain_module_equals_the_definition(name):
    net, x, likelihood, _ = zoo.make(name)
    net.double()
    x = x.double() if x.is_floating_point() else x
    exact = fisher_trace(net(x), lambda u: sum(squared_norms(net, x, u).values()), likelihood, "exact")
    assert exact.trace == pytest.approx(sum(fisher_trace_by_definition(net, x, likelihood).values()), rel=1e-10)
    assert exact.stderr == 0


@pytest.mark.parametrize("estimator", ["importance", "rademacher"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_one_cotangent_per_sample_is_unbiased(name, estimator):
    # 300 independent cotangents for each of the six samples; within 4 standard errors of the definition
    net, x, likelihood, engine = zoo.make(name)
    repeats = 300 if engine != "loop" else 60
    many = x.repeat(repeats, *(1,) * (x.dim() - 1))
    u = fisher_cotangent(net(many), likelihood, estimator, generator=torch.Generator().manual_seed(5))
    values = sum(squared_norms(net, many, u).values()).reshape(repeats, -1).mean(1)
    truth = sum(fisher_trace_by_definition(net, x, likelihood).values())
    assert abs(values.mean().item() - truth) <= 4 * (values.std() / repeats**0.5).item() + 1e-5 * truth


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian", "poisson", "laplace"])
@pytest.mark.parametrize("estimator", ["importance", "rademacher", "sampled"])
def test_a_sample_has_its_own_draws_whatever_is_beside_it(likelihood, estimator, monkeypatch):
    z = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seeds = torch.arange(5)

    def drawn(index):
        return fisher_cotangent(z[index], likelihood, estimator, generator=EachSample(seeds[index]))

    whole, some = drawn(torch.arange(5)), torch.tensor([3, 1])
    assert torch.allclose(drawn(some), whole[some])
    assert not torch.equal(whole[0] / z[0], whole[1] / z[1])
    monkeypatch.setattr(fisher, "MOST_NUMBERS", 20)  # of many classes, sample by sample
    assert torch.allclose(drawn(torch.arange(5)), whole)


def test_there_is_a_generator_for_each_sample():
    with pytest.raises(ValueError, match="2 generators for 3 samples"):
        fisher_cotangent(torch.zeros(3, 2), "categorical", generator=EachSample(torch.arange(2)))
