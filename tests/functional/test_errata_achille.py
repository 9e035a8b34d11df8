"""Formulas of Achille, Paolini & Soatto: the corrected form passes, the printed one fails the same test."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, optimize, stats
from torch.distributions import Categorical, MultivariateNormal, Normal, kl_divergence

from lightning_info.functional.pac_bayes import PREFACTORS, mcallester_bound
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.theory.activation_covariance import activation_covariance
from lightning_info.functional.theory.activation_fisher import (
    activation_fisher,
    brunel_nadal_information,
    gaussian_channel_information,
)
from lightning_info.functional.weight_information import optimal_lambda, posterior_trace, weight_information

K, BETA, LAMBDA = 8, 0.3, 0.7
GRID = [-1 + i / 200 for i in range(401)]


@pytest.fixture
def problem():
    a = torch.randn(5, K, dtype=torch.float64)
    return a.T @ a, torch.randn(K, dtype=torch.float64)


def exact(covariance, w):
    prior = MultivariateNormal(torch.zeros_like(w), LAMBDA**2 * torch.eye(K, dtype=torch.float64))
    return kl_divergence(MultivariateNormal(w, covariance), prior).item()


def printed_covariance(h):
    return BETA / 2 * torch.linalg.inv(h + BETA / (2 * LAMBDA**2) * torch.eye(K, dtype=torch.float64))


@pytest.fixture
def classifier():
    """A net 3-4-3 as a function of flat weights and inputs, weights, 20 inputs with classes, and its F of these."""
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(3, (20,))

    def logits(w, x=x):
        a, b = w[:12].view(4, 3), w[12:].view(3, 4)
        return (x @ a.T).tanh() @ b.T

    w = torch.randn(24, dtype=torch.float64)
    j, p = torch.autograd.functional.jacobian(logits, w), logits(w).softmax(1)
    h = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return logits, w, y, torch.einsum("nck,ncd,ndl->kl", j, h, j) / len(x)


def loss_of(logits, y, w):
    """L_D of section 1.2: summed over the data set."""
    return torch.nn.functional.cross_entropy(logits(w), y, reduction="sum")


def test_section_1_2_lacks_the_half_of_the_second_order_kl(classifier):
    logits, w, _, f = classifier
    delta = torch.randn_like(w)
    for size in (1e-2, 1e-3):
        step = size * delta / delta.norm()
        kl = kl_divergence(Categorical(logits=logits(w)), Categorical(logits=logits(w + step))).mean().item()
        printed = (step @ f @ step).item()
        assert printed / 2 == pytest.approx(kl, rel=20 * size)  # what is left out is of third order
        assert printed != pytest.approx(kl, rel=0.5)


def test_section_1_2_takes_a_mean_over_the_batch_for_the_gradient_of_a_sum(classifier):
    logits, w, y, _ = classifier
    w.requires_grad_()
    (summed,) = torch.autograd.grad(loss_of(logits, y, w), w)
    batches = torch.randperm(20).split(5)  # of equal size and disjoint: their mean is the expectation
    of_batches = []
    for batch in batches:
        mean = torch.nn.functional.cross_entropy(logits(w)[batch], y[batch])
        of_batches.append(torch.autograd.grad(mean, w)[0])
    expected = torch.stack(of_batches).mean(0)
    torch.testing.assert_close(expected, summed / 20, rtol=1e-10, atol=1e-12)
    assert (expected - summed).norm() > 0.9 * summed.norm()


def test_lemma_2_4_is_of_the_mean_of_the_loss_not_of_its_sum(classifier):
    logits, w, y, f = classifier
    hessian = torch.autograd.functional.hessian(lambda w: loss_of(logits, y, w), w)
    slope = logits(w).softmax(1) - torch.nn.functional.one_hot(y, 3)
    # the residual: Hessians of the logits, weighted by the slope of the loss
    residual = torch.autograd.functional.hessian(lambda w: (slope * logits(w)).sum(), w)
    torch.testing.assert_close(20 * f + residual, hessian, rtol=1e-8, atol=1e-10)
    printed = f + residual / 20
    torch.testing.assert_close(printed, hessian / 20, rtol=1e-8, atol=1e-10)
    assert (printed - hessian).norm() > 0.9 * hessian.norm()


def test_lemma_2_4_does_not_follow_from_confidence(classifier):
    """The residual beside F, as all samples become certain of their labels: both fall alike, and the ratio stays."""
    logits, w, y, _ = classifier
    label, ratios, slopes = torch.nn.functional.one_hot(y, 3), [], []
    for certainty in (10.0, 15.0, 20.0):
        p = (logits(w) + certainty * label).softmax(1)  # added to the logits of the labels
        slope = p - label
        j = torch.autograd.functional.jacobian(logits, w)
        f = torch.einsum("nck,ncd,ndl->kl", j, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1), j)
        residual = torch.autograd.functional.hessian(lambda w, slope=slope: (slope * logits(w)).sum(), w)
        ratios.append((residual.norm() / f.norm()).item())
        slopes.append(slope.norm().item())
    assert slopes[2] < 1e-3 * slopes[0]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=0.01)
    assert ratios[0] > 0.1


def test_equation_1_has_the_noise_with_the_wrong_sign(classifier):
    """With the mean loss in place of the sum, see above."""
    logits, w, y, _ = classifier
    eta, batch = 0.1, torch.arange(5)

    def slope(index):
        return torch.autograd.functional.jacobian(
            lambda w: torch.nn.functional.cross_entropy(logits(w)[index], y[index]), w
        )

    whole, part = slope(torch.arange(20)), slope(batch)
    noise = math.sqrt(eta) * (part - whole)
    corrected, printed = (w - eta * whole + sign * math.sqrt(eta) * noise for sign in (-1, 1))
    torch.testing.assert_close(corrected, w - eta * part, rtol=1e-12, atol=1e-12)
    assert (printed - (w - eta * part)).norm() > 0.1 * eta * part.norm()


def test_proposition_2_8_needs_the_hessian_at_the_saddle():
    """Regression through w² on 1: minima at ±1, F = 4w², and the saddle at 0 with the Hessian -2 and F = 0."""

    def loss(w):
        return (w * w - 1) ** 2 / 2

    errors = []
    for at in (0.1, 0.05, 0.025):
        # mean first passage from -1 to 1 of dw = -L' dt + √(2T) dW, exactly
        inner = [integrate.quad(lambda z, at=at: math.exp(-loss(z) / at), -4, y)[0] for y in GRID]
        exact = integrate.simpson([math.exp(loss(y) / at) * i / at for y, i in zip(GRID, inner, strict=True)], x=GRID)
        prefactor, rise = 2 * math.pi / 2, loss(0) - loss(1)
        corrected = prefactor * math.exp((rise + at / 2 * (math.log(2) - math.log(4))) / at)  # log |H|
        errors.append(abs(corrected / exact - 1))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03
    printed = Spectrum(torch.tensor([4.0 * 0**2]), 1).log_det(1e-300)  # log |F| at the saddle, next to -inf
    assert prefactor * math.exp((rise + at / 2 * (printed - math.log(4))) / at) < 1e-100


def test_the_gaussian_information_of_one_weight_in_figure_3_is_no_thousands_of_nats():
    means, variances = torch.tensor([-0.6, 0.5, 1.7, -1.5]).double(), torch.tensor([1e-3, 2e-3, 5e-3, 3e-3]).double()

    def expected(parameters, means=means, variances=variances):
        prior = Normal(parameters[0], math.exp(parameters[1]))
        return kl_divergence(Normal(means, variances.sqrt()), prior).mean().item()

    least = optimize.minimize(expected, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12})
    best = means.var(correction=0) + variances.mean()
    assert least.fun == pytest.approx((best.log() - variances.log().mean()).item() / 2, abs=1e-8)
    assert least.fun < 5
    # weights as far apart, and as certain, as double precision can tell: printed 4000 to 5000
    means, variances = torch.tensor([-1e150, 1e150], dtype=torch.float64), torch.tensor(1e-300, dtype=torch.float64)
    assert (means.var(correction=0).log() - variances.log()).item() / 2 < 700


def test_theorem_2_2_bounds_the_error_by_the_mean_loss_not_by_its_sum():
    # one network that does not depend on the data, KL = 0, which errs on a tenth: every number of errors, exactly
    samples, truth, delta = 1000, 0.1, 0.05
    errors = [int(stats.binom.ppf(q, samples, truth)) for q in (0.001, 0.01, 0.5, 0.99)]
    for wrong in errors:
        corrected = mcallester_bound(wrong / samples, [0.0], samples, delta).value
        price = math.log(len(PREFACTORS) / delta)
        printed = min((wrong + b / samples * price) / (1 - 1 / (2 * b)) for b in PREFACTORS)
        assert corrected < 0.25
        assert printed > 50  # of a loss that is 1 at most
    fails = sum(
        stats.binom.pmf(wrong, samples, truth)
        for wrong in range(samples + 1)
        if mcallester_bound(wrong / samples, [0.0], samples, delta).value < truth
    )
    assert fails <= delta


def test_equation_8_has_half_of_k_too_little(problem):
    h, w = problem
    covariance, identity = printed_covariance(h), torch.eye(K, dtype=torch.float64)
    printed = (
        torch.logdet(h + BETA / (2 * LAMBDA**2) * identity).item() / 2
        + K / 2 * math.log(2 * LAMBDA**2 / BETA)
        - K
        + (w.square().sum() + covariance.trace()).item() / (2 * LAMBDA**2)
    )
    truth = exact(covariance, w)  # of its own covariance
    assert printed == pytest.approx(truth - K / 2, rel=1e-10)
    assert printed != pytest.approx(truth, rel=1e-2)
    corrected = weight_information(Spectrum.of_matrix(h, K), w.square().sum().item(), BETA / 2, LAMBDA)
    assert corrected == pytest.approx(truth, rel=1e-10)


def test_proposition_2_5_has_half_of_beta(problem):
    h, w = problem

    def lagrangian(covariance):  # definition 2.1 with the loss to second order
        return (h @ covariance).trace().item() / 2 + BETA * exact(covariance, w)

    best = BETA * torch.linalg.inv(h + BETA / LAMBDA**2 * torch.eye(K, dtype=torch.float64))
    assert lagrangian(best) < min(lagrangian(0.99 * best), lagrangian(1.01 * best))
    assert lagrangian(printed_covariance(h)) > lagrangian(best) + 1e-2


def test_the_minimiser_of_the_kl_alone_is_not_that_of_the_lagrangian(problem):
    h, w = problem
    spectrum, distance = Spectrum.of_matrix(h, K), 0.01 * w.square().sum().item()
    best = optimal_lambda(spectrum, distance, BETA).lambda_
    assert best**2 == pytest.approx((distance + posterior_trace(spectrum, BETA, best)) / K, rel=1e-10)
    grid = torch.logspace(-2, 1, 600).tolist()
    of_kl_alone = min(grid, key=lambda lambda_: weight_information(spectrum, distance, BETA, lambda_))
    assert of_kl_alone > 1.05 * best


@pytest.mark.parametrize("units", [2, 3])
def test_proposition_3_2_inverts_the_wrong_matrix(problem, units):
    h, _ = problem
    h = h + 0.1 * torch.eye(K, dtype=torch.float64)  # of full rank and without a prior, as the proposition has it
    j_w, j_x = torch.randn(units, K, dtype=torch.float64), torch.randn(units, 3, dtype=torch.float64)
    noise = j_w @ (BETA * torch.linalg.inv(h)) @ j_w.T
    here = MultivariateNormal(torch.zeros(units, dtype=torch.float64), noise)
    fisher = activation_fisher(j_x[None], activation_covariance(j_w, h, BETA, 1e6)[None])[0]
    truth, found, printed = [], [], []
    for u in torch.eye(3, dtype=torch.float64):  # f linear in x: the KL is ½ uᵀFu, exactly
        truth.append(2 * kl_divergence(here, MultivariateNormal(j_x @ u, noise)).item())
        found.append((u @ fisher @ u).item())
        printed.append((u @ j_x.T @ j_w @ h @ j_w.T @ j_x @ u).item() / BETA)
    assert found == pytest.approx(truth, rel=1e-6)
    assert sum(printed) > 10 * sum(truth)
    # a layer whose weights move it more has more noise, and so less information; as printed it has more
    more = activation_fisher(j_x[None], activation_covariance(2 * j_w, h, BETA, 1e6)[None])[0]
    torch.testing.assert_close(more, fisher / 4, rtol=1e-6, atol=0)


def test_proposition_3_2_lacks_the_sign_of_its_proof(problem):
    _, w = problem
    x = w[:2].clone()
    jacobian, noise = torch.randn(2, 2, dtype=torch.float64), torch.diag(torch.tensor([0.5, 2.0])).double()

    def mean_log_density(y):  # of z ~ p(z|x), as a function of y in log p(z|y)
        at, here = MultivariateNormal(jacobian @ y, noise), MultivariateNormal(jacobian @ x, noise)
        return -kl_divergence(here, at) - here.entropy()

    printed = torch.autograd.functional.hessian(mean_log_density, x)
    found = activation_fisher(jacobian[None], noise[None])[0]
    torch.testing.assert_close(found, -printed, rtol=1e-10, atol=0)
    assert (torch.linalg.eigvalsh(printed) < 0).all()


def test_equation_10_counts_inputs_and_exists_for_as_many_units_only():
    p, variance = 3, 1e-6
    for units in (2, 3, 5):
        j_x = torch.randn(units, p, dtype=torch.float64)
        noise = variance * torch.eye(units, dtype=torch.float64)
        entropy = MultivariateNormal(torch.zeros(p).double(), torch.eye(p).double()).entropy().item()
        exact = torch.logdet(torch.eye(units) + j_x @ j_x.T / variance).item() / 2  # x ~ N(0, I), linear layer
        fisher = activation_fisher(j_x[None], noise[None])
        assert gaussian_channel_information(fisher, torch.eye(p)) == pytest.approx(exact, rel=1e-8)
        if units < p:
            with pytest.raises(ValueError, match="dim z >= dim x"):
                brunel_nadal_information(fisher, entropy)
            continue
        printed = entropy - (K * math.log(2 * math.pi * math.e) - torch.logdet(fisher[0]).item()) / 2
        assert brunel_nadal_information(fisher, entropy) == pytest.approx(exact, abs=1e-4)
        assert printed < exact - 5
