from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from lightning_info.functional import Spectrum, effective_dimension, local_learning_coefficient
from lightning_info.functional.mcmc_diagnostics import chain_diagnostics


def test_a_quadratic_loss_has_half_its_effective_dimension():
    """Curvatures over five orders, of which the prior fixes some; no step size biases it: 4 errors."""
    h, n, gamma = torch.logspace(-3, 2, 12, dtype=torch.float64), 1000, 10.0
    n_beta = n / math.log(n)
    found = local_learning_coefficient(
        lambda w: 0.5 * (w.square() * h).sum(1) + 3.0,
        torch.zeros(12),
        n,
        Generator().manual_seed(0),
        localisation=gamma,
        scale=(n_beta * h + gamma).rsqrt(),
        chains=16,
    )
    truth = 0.5 * effective_dimension(Spectrum(h, 12), gamma / n_beta)
    assert not found.refused
    assert found.stderr < 0.04 * truth
    assert found.value == pytest.approx(truth, abs=4 * found.stderr)
    assert 0.4 < found.acceptance < 0.75


def box(w):
    return torch.where((w.abs() <= 1).all(1), 0.0, -torch.inf).double() + 0 * w.sum(1)


def integral(n_beta: float) -> float:
    """nβ E[w1² w2²] under ``exp(-nβ w1² w2²)`` on the box: over w2 in closed form, over log w1 by the midpoint rule."""
    edges = torch.linspace(-40, 0, 400_001, dtype=torch.float64)
    u = ((edges[1:] + edges[:-1]) / 2).exp()
    a = n_beta**0.5 * u
    mass = math.sqrt(math.pi) / 2 * torch.erf(a) / a
    energy = (mass - (-a.square()).exp()) / 2
    return ((energy * u).sum() / (mass * u).sum()).item()


def test_a_singular_loss_has_the_value_of_its_integral():
    """``K = w1² w2²``: ½ in the limit only."""
    assert list(map(integral, (1e2, 1e4, 1e6, 1e8))) == pytest.approx([0.348, 0.411, 0.437, 0.451], abs=1e-3)
    found = local_learning_coefficient(
        lambda w: w.square().prod(1),
        torch.zeros(2),
        100,
        Generator().manual_seed(1),
        log_prior=box,
        inverse_temperature=1e2,
        chains=200,
        steps=1500,
    )
    assert not found.refused, found
    assert found.stderr < 0.01
    assert found.value == pytest.approx(integral(1e2), abs=4 * found.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "truth"), [(1, 1.5), (3, 2.0)])
def test_a_deep_linear_net_has_the_coefficient_of_its_product(hidden, truth):
    """Of 2-h-2 nets with a target that they can represent: half the dimension of the matrices, not of the weights.

    λ of Aoyagi & Watanabe (2005) for rank min(h, 2): 3/2 and 2, of 4 and 12 weights.
    """
    g = Generator().manual_seed(2)
    shapes = (hidden, 2), (2, hidden)
    first, second = (2 * torch.linalg.qr(torch.randn(max(s), 2, generator=g).double()).Q for s in shapes)
    first, second = (first if hidden > 2 else first[:, :hidden].T), (second.T if hidden > 2 else second[:, :hidden])
    target = second @ first

    def loss(w):
        a, b = w[:, : 2 * hidden].view(-1, hidden, 2), w[:, 2 * hidden :].view(-1, 2, hidden)
        return 0.5 * (b @ a - target).square().sum((1, 2))

    start = torch.cat([first.flatten(), second.flatten()])
    found = local_learning_coefficient(
        loss, start, 100, g, localisation=1000.0, inverse_temperature=1e4, chains=20, steps=5000
    )
    assert not found.refused, found
    assert found.value == pytest.approx(truth, abs=0.03 * truth + 4 * found.stderr)  # the prior takes 1-2 %
    assert found.stderr < 0.01 * truth


def test_what_has_not_converged_is_refused_with_the_reason():
    def bowl(w):
        return 0.5 * (w.square() * torch.tensor([1.0, 1e4]).double()).sum(1)

    options = {"localisation": 0.0, "inverse_temperature": 1e3}
    short = local_learning_coefficient(bowl, torch.zeros(2), 100, Generator(), steps=100, burn_in=50, **options)
    assert math.isnan(short.value)
    assert "the distance from the start" in short.refused  # the loss alone looks converged, at half of the truth
    assert short.chains.r_hat < 1.05
    assert short.chains.mean < 0.7

    slope = local_learning_coefficient(
        lambda w: (w - 1).square().sum(1), torch.zeros(2), 100, Generator(), localisation=1.0, steps=2000
    )
    assert "they are no minimum" in slope.refused
    broken = local_learning_coefficient(lambda w: w.sum(1) * math.nan, torch.zeros(2), 100, Generator(), steps=8)
    assert "not finite" in broken.refused


def test_diagnostics_of_an_autoregressive_chain():
    """Of ``x_t = ρ x_{t-1} + noise`` every n draws are worth n (1 - ρ) / (1 + ρ)."""
    rho, (count, steps) = 0.8, (8, 20_000)
    noise = torch.randn(count, steps, generator=Generator().manual_seed(0), dtype=torch.float64)
    x, chain = torch.zeros(count).double(), []
    for e in noise.T:
        x = rho * x + e
        chain.append(x)
    draws = torch.stack(chain, 1)
    found = chain_diagnostics(draws)
    assert found.effective_samples == pytest.approx(count * steps * (1 - rho) / (1 + rho), rel=0.1)
    assert found.r_hat == pytest.approx(1.0, abs=2e-3)
    assert abs(found.mean) < 4 * found.stderr
    assert abs(found.drift) < 4 * found.drift_stderr
    apart = chain_diagnostics(draws + torch.arange(count).unsqueeze(1))
    assert apart.r_hat > 1.2
    moving = chain_diagnostics(draws + torch.linspace(0, 2, steps))
    assert moving.drift == pytest.approx(1.0, abs=4 * moving.drift_stderr)
    assert moving.drift > 10 * moving.drift_stderr


def test_bad_arguments_are_refused():
    good = {"loss": lambda w: w.sum(1), "start": torch.zeros(2), "samples": 100, "generator": Generator()}
    for name, value in (("start", torch.zeros(2, 2)), ("samples", 2), ("localisation", -1.0), ("chains", 1)):
        with pytest.raises(ValueError, match=name):
            local_learning_coefficient(**{**good, name: value})
    with pytest.raises(ValueError, match="8 or more steps"):
        chain_diagnostics(torch.zeros(2, 4))
