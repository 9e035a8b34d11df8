"""Standard errors of few draws: against scipy, and by how often they cover the truth."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from lightning_info.functional.standard_error import jackknife_error, standard_error, stratified_error, student_factor

LEVEL = stats.norm.cdf(1.96)


@pytest.mark.parametrize("freedom", [*range(1, 41), 63, 100, 199, 200, 201, 202, 500, 5000, 10**7])
def test_the_factor_is_that_of_students_quantile(freedom):
    assert student_factor(freedom) == pytest.approx(stats.t.ppf(LEVEL, freedom) / 1.96, rel=1e-8)


def test_the_error_is_that_of_a_confidence_interval():
    draws = torch.randn(5, generator=torch.Generator().manual_seed(0)).double()
    low, high = stats.t.interval(2 * LEVEL - 1, 4, loc=draws.mean(), scale=stats.sem(draws))
    assert 1.96 * standard_error(draws) == pytest.approx((high - low) / 2, rel=1e-10)
    assert standard_error(draws.tolist()) == standard_error(draws)
    assert standard_error(torch.ones(3)) == 0


def test_one_draw_has_no_error_and_none_is_refused():
    assert math.isnan(standard_error([1.0]))
    assert math.isnan(jackknife_error([1.0]))
    assert math.isnan(standard_error([1.0, math.inf, 2.0]))
    assert student_factor(0) == math.inf
    with pytest.raises(ValueError, match="at least one"):
        standard_error([])
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        standard_error(torch.ones(2, 2))
    with pytest.raises(ValueError, match="freedom=-1"):
        student_factor(-1)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
def test_an_interval_of_few_normal_draws_covers_in_95_of_100(n):
    """20,000 means: 95 % ± 0.5 % (three deviations); without the factor two draws cover in 70 %, sixteen in 93 %."""
    draws = torch.randn(20_000, n, generator=torch.Generator().manual_seed(n)).double()
    error = draws.std(1) / n**0.5
    off = draws.mean(1).abs()
    assert abs((off <= 1.96 * student_factor(n - 1) * error).double().mean() - 0.95) < 0.005
    assert (off <= 1.96 * error).double().mean() < 0.94


def test_the_jackknife_equals_the_standard_error_of_a_mean_and_that_of_a_function_by_its_slope():
    draws = 10 + torch.randn(6, generator=torch.Generator().manual_seed(1)).double()
    rest = (draws.sum() - draws) / 5
    assert jackknife_error(rest) == pytest.approx(standard_error(draws), rel=1e-10)
    assert jackknife_error(rest.log()) == pytest.approx(standard_error(draws) / draws.mean().item(), rel=0.03)


def test_the_error_of_strata_is_that_of_their_means():
    """Two strata of normal draws with other means: 4000 repetitions, weights 1/4 and 3/4, to 3 %."""
    generator = torch.Generator().manual_seed(0)
    strata, weights = torch.tensor([0] * 20 + [1] * 10), torch.tensor([0.25, 0.75])
    draws = torch.randn(4000, 30, generator=generator).double() * torch.tensor([2.0] * 20 + [1.0] * 10) + 50 * strata
    means = draws[:, :20].mean(1) / 4 + draws[:, 20:].mean(1) * 3 / 4
    found = torch.tensor([stratified_error(row, strata, weights) for row in draws[:1000]])
    assert (found.square().mean().sqrt() / student_factor(28)) == pytest.approx(means.std().item(), rel=0.03)
    one = draws[0]
    assert stratified_error(one, 0 * strata, torch.ones(1)) == pytest.approx(standard_error(one), rel=1e-12)
    assert math.isnan(stratified_error(one[:3], torch.tensor([0, 0, 1]), weights))
