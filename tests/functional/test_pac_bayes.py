from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from scipy.optimize import brentq, minimize_scalar
from scipy.special import rel_entr

from lightning_info.functional.pac_bayes import (
    PRIOR_STDS,
    RiskBound,
    binomial_tail_inverse,
    gibbs_risk_bound,
    kl_inverse,
    mcallester_bound,
    seeger_bound,
)


def kl(q, p):
    return rel_entr(q, p) + rel_entr(1 - q, 1 - p)


@pytest.mark.parametrize("q", [0.0, 1e-6, 0.03, 0.5, 0.9])
@pytest.mark.parametrize("c", [1e-6, 1e-3, 0.1, 1.0, 2.0])
def test_the_inverse_of_the_relative_entropy(q, c):
    p = kl_inverse(q, c)
    assert q < p < 1
    slope = (p - q) / (p * (1 - p))
    assert kl(q, p) == pytest.approx(c, rel=1e-9, abs=1e-12 * slope)
    assert p == pytest.approx(brentq(lambda x: kl(q, x) - c, q, 1 - 1e-15, xtol=1e-15), abs=1e-11)
    assert kl_inverse(q, 1.1 * c) > p
    assert kl_inverse(q + 0.01, c) > p


def test_its_closed_forms_and_ends():
    assert kl_inverse(0.0, 0.3) == pytest.approx(1 - math.exp(-0.3), abs=1e-12)
    assert kl_inverse(0.2, 0.0) == pytest.approx(0.2, abs=1e-12)
    assert kl_inverse(1.0, 0.1) == 1
    assert kl_inverse(0.3, math.inf) == 1


def test_bounds_worked_out_by_hand():
    # no training error: kl(0‖p) = -log(1 - p)
    rate = (12.0 + math.log(2 * math.sqrt(1000) * 3 / 0.04)) / 1000
    found = seeger_bound(0.0, [40.0, 12.0, 15.0], 1000, 0.04)
    assert found.value == pytest.approx(1 - math.exp(-rate), abs=1e-12)
    assert found.prior == 1
    # b = 1: 2 (0 + (12 + log(3 · 31 / 0.04)) / 1000) = 0.0395
    assert mcallester_bound(0.0, [40.0, 12.0, 15.0], 1000, 0.04) == RiskBound(pytest.approx(0.03950295, rel=1e-6), 1)
    assert gibbs_risk_bound(0.0, 100, 0.01) == pytest.approx(1 - 0.01**0.01, abs=1e-12)


def test_the_prefactors_cost_little_against_the_best_one():
    for risk in (0.01, 0.1, 0.4):
        for information in (1.0, 100.0, 5000.0):
            rate = (information + math.log(31 / 0.05)) / 60_000
            best = minimize_scalar(
                lambda b, rate=rate, risk=risk: (risk + b * rate) / (1 - 1 / (2 * b)),
                bounds=(0.6, 500),
                method="bounded",
            ).fun
            found = mcallester_bound(risk, [information], 60_000, 0.05).value
            assert best - 1e-9 <= found <= 1.01 * best


def test_more_samples_and_less_information_give_less_and_seegers_form_is_the_tighter_one():
    arguments = [(0.1, [500.0], 10_000), (0.1, [300.0], 10_000), (0.05, [300.0], 10_000), (0.05, [300.0], 20_000)]
    for bound in (seeger_bound, mcallester_bound):
        values = [bound(*some, 0.05).value for some in arguments]
        assert values == sorted(values, reverse=True)
    assert all(seeger_bound(*some, 0.05).value < mcallester_bound(*some, 0.05).value for some in arguments)


def test_a_bound_that_says_nothing_is_called_vacuous():
    assert mcallester_bound(0.3, [5000.0], 5000, 0.05).is_vacuous
    assert seeger_bound(0.3, [5e5], 5000, 0.05).is_vacuous
    assert not seeger_bound(0.3, [500.0], 5000, 0.05).is_vacuous


@pytest.mark.parametrize(("truth", "draws", "delta"), [(0.1, 100, 0.05), (0.02, 400, 0.3), (0.5, 30, 0.2)])
def test_the_bound_of_the_training_loss_fails_in_less_than_delta_of_all_cases(truth, draws, delta):
    # all cases of the binomial distribution, with their probabilities
    hits = range(draws + 1)
    fails = sum(stats.binom.pmf(h, draws, truth) for h in hits if gibbs_risk_bound(h / draws, draws, delta) < truth)
    assert 0 < fails <= delta


@pytest.mark.parametrize("bound", [seeger_bound, mcallester_bound])
def test_a_posterior_chosen_by_the_data_fails_in_less_than_delta_of_all_runs(bound):
    # of 200 thresholds on 6 noisy samples the best is taken: Q is a point, P uniform, KL = log 200
    runs, samples, delta, generator = 1000, 6, 0.5, torch.Generator().manual_seed(0)
    thresholds = torch.linspace(-1, 1, 200, dtype=torch.float64)
    noise = 0.3
    true_risk = noise + (1 - 2 * noise) * thresholds.abs() / 2
    failures = optimistic = 0
    for _ in range(runs):
        x = 2 * torch.rand(samples, generator=generator, dtype=torch.float64) - 1
        y = (x > 0) ^ (torch.rand(samples, generator=generator) < noise)
        risks = ((x > thresholds.unsqueeze(1)) != y).double().mean(1)
        chosen = risks.argmin()
        failures += bound(risks[chosen].item(), [math.log(200)], samples, delta).value < true_risk[chosen]
        optimistic += risks[chosen].item() < true_risk[chosen].item()
    assert optimistic > 0.9 * runs
    assert failures <= delta * runs


def test_priors_that_are_the_best_of_more_pay_for_all_of_them():
    listed = [40.0, 12.0, 15.0]
    for bound in (seeger_bound, mcallester_bound):
        best = bound(0.1, [12.0], 1000, 0.05, log_choices=math.log(3))
        assert best.value == pytest.approx(bound(0.1, listed, 1000, 0.05).value, rel=1e-12)
        with pytest.raises(ValueError, match="3 priors at least"):
            bound(0.1, listed, 1000, 0.05, log_choices=0.5)


def test_the_nearest_of_the_priors_costs_what_is_said():
    # KL of one group over its best λ is k (e^(-2ε) - 1 + 2ε) / 2, ε the error of log λ, at most half of a step
    half_step = math.log(PRIOR_STDS[1] / PRIOR_STDS[0]) / 2
    worst = max((math.exp(-2 * e) - 1 + 2 * e) / 2 for e in (half_step, -half_step))
    assert worst < 0.00014
    assert math.log(len(PRIOR_STDS)) == pytest.approx(5.7, abs=0.01)


@pytest.mark.parametrize(("errors", "samples"), [(0, 10), (3, 10), (9, 10), (0, 5000), (137, 5000), (4999, 5000)])
@pytest.mark.parametrize("delta", [0.001, 0.05, 0.5])
def test_the_test_set_bound_is_that_of_clopper_and_pearson(errors, samples, delta):
    found = binomial_tail_inverse(errors, samples, delta)
    assert found == pytest.approx(stats.beta.ppf(1 - delta, errors + 1, samples - errors), abs=1e-10)
    assert stats.binom.cdf(errors, samples, found) == pytest.approx(delta, rel=1e-6)
    assert found < kl_inverse(errors / samples, math.log(1 / delta) / samples) + 1e-9  # Chernoff's is looser


def test_the_test_set_bound_of_errors_alone_and_what_it_refuses():
    assert binomial_tail_inverse(7, 7, 0.05) == 1
    for errors, samples, delta in [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.0)]:
        with pytest.raises(ValueError, match=r"errors of|a mean over|delta="):
            binomial_tail_inverse(errors, samples, delta)


def test_bad_input_is_refused():
    for delta in (0.0, 1.0, -0.1, math.nan):
        for call in (
            lambda delta=delta: gibbs_risk_bound(0.1, 10, delta),
            lambda delta=delta: seeger_bound(0.1, [1.0], 10, delta),
            lambda delta=delta: mcallester_bound(0.1, [1.0], 10, delta),
        ):
            with pytest.raises(ValueError, match="delta="):
                call()
    for risk in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            seeger_bound(risk, [1.0], 10, 0.1)
    for information in ([], [-1.0], [math.nan]):
        with pytest.raises(ValueError, match="one for each prior"):
            mcallester_bound(0.1, information, 10, 0.1)
    with pytest.raises(ValueError, match="0 values"):
        gibbs_risk_bound(0.1, 0, 0.1)
    with pytest.raises(ValueError, match="q="):
        kl_inverse(1.5, 1.0)
    with pytest.raises(ValueError, match="c="):
        kl_inverse(0.5, -1.0)
