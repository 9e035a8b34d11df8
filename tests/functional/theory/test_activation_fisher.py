from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import functional_call

from lightning_info.functional import linear_information
from lightning_info.functional.theory.activation_covariance import (
    activation_covariance,
    diagonal_activation_covariance,
    low_rank_activation_covariance,
)
from lightning_info.functional.theory.activation_fisher import (
    activation_fisher,
    brunel_nadal_information,
    gaussian_channel_information,
    layer_fisher,
)

BETA, LAMBDA, HIDDEN = 0.02, 0.7, 4


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def two_layers(params, x):
    return params["b"] + params["v"] @ torch.tanh(params["w"] @ x + params["a"])


def weights_of(p, d):
    return {"w": normal(HIDDEN, p), "a": normal(HIDDEN), "v": normal(d, HIDDEN), "b": normal(d)}


class Channel:
    """``N(f(x), Σ_z(x))`` written out: the weights in one vector, the inverse of H, plain autograd."""

    def __init__(self, params, h):
        self.params = params
        k = sum(value.numel() for value in params.values())
        self.noise = BETA * torch.linalg.inv(h + BETA / LAMBDA**2 * torch.eye(k, dtype=torch.float64))

    def at(self, x):
        leaves = {name: value.clone().requires_grad_() for name, value in self.params.items()}
        z = two_layers(leaves, x)
        rows = [torch.autograd.grad(unit, list(leaves.values()), retain_graph=True) for unit in z]
        j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        return MultivariateNormal(z.detach(), j @ self.noise @ j.T)


def numerical_fisher(distribution_at, x, step=5e-4):
    """Second derivatives of ``KL(p(z|x) ‖ p(z|x+dx))`` at ``dx = 0``, by central differences; error ~ step²."""
    here, axes = distribution_at(x), step * torch.eye(len(x), dtype=x.dtype)
    kl = lambda dx: kl_divergence(here, distribution_at(x + dx)).item()  # noqa: E731
    return torch.tensor(
        [[(kl(a + b) - kl(a - b) - kl(b - a) + kl(-a - b)) / (4 * step**2) for b in axes] for a in axes],
        dtype=x.dtype,
    )


@pytest.fixture(params=[(3, 3), (4, 2), (2, 5)], ids=["3 to 3", "4 to 2", "2 to 5"])
def problem(request):
    p, d = request.param
    params = weights_of(p, d)
    k = sum(value.numel() for value in params.values())
    a = normal(2 * k, k)
    return params, a, normal(3, p)


def error(found, truth):
    """Largest over inputs of the relative error of a matrix."""
    norms = torch.linalg.matrix_norm
    return (norms(found - truth) / norms(truth).clamp_min(1e-300)).max().item()


def jacobians(params, x):
    """In the weights, ``(N, d, k)``, and in the input, ``(N, d, p)``."""
    j_w, j_x = torch.vmap(torch.func.jacrev(two_layers, argnums=(0, 1)), (None, 0))(params, x)
    return torch.cat([j.flatten(2) for j in j_w.values()], 2), j_x


def printed_fisher(params, h, x):
    j_w, j_x = jacobians(params, x)
    return j_x.mT @ j_w @ h @ j_w.mT @ j_x / BETA


def test_the_fisher_is_the_curvature_of_the_kl(problem):
    params, a, x = problem
    h = a.T @ a
    channel = Channel(params, h)
    plain = []
    for point in x:
        sigma = channel.at(point).covariance_matrix
        at = lambda y, sigma=sigma: MultivariateNormal(two_layers(params, y), sigma)  # noqa: E731
        plain.append(numerical_fisher(at, point))
    whole = torch.stack([numerical_fisher(channel.at, point) for point in x])
    covariance = lambda j: activation_covariance(j, h, BETA, LAMBDA)  # noqa: E731
    found = layer_fisher(two_layers, params, x, covariance)
    found_whole = layer_fisher(two_layers, params, x, covariance, with_covariance_term=True)
    assert error(found, torch.stack(plain)) < 1e-4
    assert error(found_whole, whole) < 1e-4
    assert error(found, whole) > 1e-3  # the term is there
    assert error(printed_fisher(params, h, x), torch.stack(plain)) > 10


def test_diagonal_and_rows_are_the_matrices_that_they_stand_for(problem):
    params, a, x = problem
    diagonal, rows = a[0].square(), a[: len(a.T) // 2]
    for first, second in (
        (
            lambda j: diagonal_activation_covariance(j, diagonal, BETA, LAMBDA),
            lambda j: activation_covariance(j, torch.diag(diagonal), BETA, LAMBDA),
        ),
        (
            lambda j: low_rank_activation_covariance(j @ j.mT, j @ rows.T, rows @ rows.T, BETA, LAMBDA),
            lambda j: activation_covariance(j, rows.T @ rows, BETA, LAMBDA),
        ),
    ):
        for term in (False, True):
            found, truth = (layer_fisher(two_layers, params, x, c, with_covariance_term=term) for c in (first, second))
            assert error(found, truth) < 1e-9


def test_it_scales_as_the_noise_and_the_covariance_term_does_not(problem):
    params, a, x = problem
    h = a.T @ a

    def at(beta, term):  # λ² ∝ β: then Σ* ∝ β
        return layer_fisher(
            two_layers, params, x, lambda j: activation_covariance(j, h, beta, beta**0.5), with_covariance_term=term
        )

    plain, smaller = at(1.0, False), at(1e-3, False)
    assert error(1e-3 * smaller, plain) < 1e-9
    assert error(at(1e-3, True) - smaller, at(1.0, True) - plain) < 1e-9


def test_less_fisher_information_in_the_weights_is_less_in_the_activations(problem):
    params, a, x = problem
    cov = torch.eye(x.shape[1])
    information = []
    for scale in (0.0, 1e-4, 1e-2, 1.0):
        covariance = lambda j, h=scale * a.T @ a: activation_covariance(j, h, BETA, LAMBDA)  # noqa: E731
        information.append(gaussian_channel_information(layer_fisher(two_layers, params, x, covariance), cov))
    assert 0 < information[0] < information[1] < information[2] < information[3]
    # with a prior it ends where all noise is the prior's, not at zero
    j_w, j_x = jacobians(params, x)
    of_prior = activation_fisher(j_x, LAMBDA**2 * j_w @ j_w.mT)
    assert information[0] == pytest.approx(gaussian_channel_information(of_prior, cov), rel=1e-9)


def relu_net(upto):
    def f(params, x):
        h = params["w1"] @ x + params["b1"]
        return h if upto == 1 else params["w2"] @ torch.relu(h) + params["b2"]

    return f


@pytest.mark.parametrize("upto", [1, 2])
def test_prior_of_the_size_of_each_weight_makes_it_invariant_to_rescaling(upto):
    # units of the first layer times positive factors, their outgoing weights divided by them: the same function
    params = {"w1": normal(6, 3), "b1": normal(6), "w2": normal(2, 6), "b2": normal(2)}
    factors, x, data = (3 * normal(6)).exp(), normal(5, 3), normal(40, 3)
    other = {
        "w1": params["w1"] * factors[:, None],
        "b1": params["b1"] * factors,
        "w2": params["w2"] / factors,
        "b2": params["b2"],
    }

    def fisher(params, prior):
        rows = torch.vmap(torch.func.jacrev(relu_net(2)), (None, 0))(params, data)  # unit variance: F = Σ JᵀJ
        diagonal = torch.cat([r.flatten(2) for r in rows.values()], 2).square().sum((0, 1))
        w = torch.cat([value.flatten() for value in params.values()])
        lambda_ = w.abs() if prior == "size" else 0.5
        return layer_fisher(
            relu_net(upto),
            params,
            x,
            lambda j: diagonal_activation_covariance(j, diagonal, BETA, lambda_),
            with_covariance_term=True,
        )

    assert error(fisher(other, "size"), fisher(params, "size")) < 1e-8
    assert error(fisher(other, "global"), fisher(params, "global")) > 1e-3


def test_noise_on_the_biases_of_a_linear_layer_is_a_gaussian_channel():
    layer = nn.Linear(4, 3)
    root, h = normal(4, 4), normal(3, 3)
    cov, h = root @ root.T, h @ h.T
    curvature = torch.zeros(15, 15, dtype=torch.float64)
    curvature[12:, 12:] = h
    prior = torch.cat(
        [torch.zeros(12), torch.full((3,), LAMBDA, dtype=torch.float64)]
    )  # no noise on the weights: Σ_z is constant
    fisher = layer_fisher(
        lambda params, x: functional_call(layer, params, (x,)),
        dict(layer.named_parameters()),
        torch.randn(6, 4),
        lambda j: activation_covariance(j, curvature, BETA, prior),
        with_covariance_term=True,
    )
    found = gaussian_channel_information(fisher, cov)
    w = layer.weight.detach().double()
    noise = BETA * torch.linalg.inv(h + BETA / LAMBDA**2 * torch.eye(3, dtype=torch.float64))
    z_cov = w @ cov @ w.T + noise
    joint = torch.cat([torch.cat([cov, cov @ w.T], 1), torch.cat([w @ cov, z_cov], 1)])
    exact = (cov.logdet() + z_cov.logdet() - joint.logdet()) / 2
    assert found == pytest.approx(exact.item(), rel=1e-9)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(noise), w, upper=False)
    assert found == pytest.approx(linear_information(whitened, cov, 1.0, unit="nats")[0], rel=1e-9)


@pytest.mark.parametrize("d", [3, 5])
def test_equation_10_is_the_limit_of_small_noise(d):
    jacobian, root = torch.eye(d, 3) + 0.2 * normal(20, d, 3), normal(3, 3)
    cov = root @ root.T
    entropy = MultivariateNormal(torch.zeros(3).double(), cov).entropy().item()
    gaps = []
    for variance in (1e-4, 1e-5, 1e-6):
        fisher = activation_fisher(jacobian, variance * torch.eye(d).double().expand(20, d, d))
        gaps.append(gaussian_channel_information(fisher, cov) - brunel_nadal_information(fisher, entropy))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.05)  # in proportion to the noise
    assert gaps[2] < 1e-2


def test_equation_10_needs_as_many_units_as_inputs():
    fisher = activation_fisher(normal(5, 2, 3), torch.eye(2).expand(5, 2, 2))
    with pytest.raises(ValueError, match=r"at 5 of 5 inputs; at input 0 it has rank 2 of p = 3.*dim z >= dim x"):
        brunel_nadal_information(fisher, 1.0)
    assert 0 < gaussian_channel_information(fisher, torch.eye(3)) < math.inf


def test_the_channel_of_constant_inputs_and_of_deaf_layers():
    fisher = activation_fisher(normal(5, 2, 3), torch.eye(2).expand(5, 2, 2))
    cov = torch.diag(torch.tensor([1.0, 2.0, 0.0]))  # the third input never changes
    alone = gaussian_channel_information(fisher[:, :2, :2], cov[:2, :2])
    assert gaussian_channel_information(fisher, cov) == pytest.approx(alone, rel=1e-12)
    assert gaussian_channel_information(0 * fisher, cov) == 0


def test_a_singular_covariance_is_told_and_a_small_one_is_not_taken_for_it():
    sigma = torch.eye(3).double().repeat(4, 1, 1)
    sigma[1, 2, 2] = 0
    with pytest.raises(
        ValueError, match=r"at 1 of 4 inputs; at input 1 it has rank 2 of 3; units that do not move at all: 1"
    ):
        activation_fisher(normal(4, 3, 2), sigma)
    twice = sigma.clone()
    twice[1, 1:, 1:] = 1  # two units that move together
    with pytest.raises(ValueError, match=r"rank 2 of 3; units that do not move at all: 0"):
        activation_fisher(normal(4, 3, 2), twice)
    jacobian, units = normal(4, 3, 2), torch.tensor([1.0, 1e-9, 1e9]).double()  # one network in other units
    sigma[1, 2, 2] = 1
    found = activation_fisher(units[:, None] * jacobian, units[:, None] * sigma * units)
    torch.testing.assert_close(found, activation_fisher(jacobian, sigma), rtol=1e-12, atol=0)


F, EYE = torch.eye(3).expand(2, 3, 3), torch.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation_fisher(EYE, F), r"jacobian of shape \(3, 3\): expected \(N, d, p\)"),
        (lambda: activation_fisher(F, EYE), r"covariance of shape \(3, 3\): expected \(2, 3, 3\)"),
        (lambda: activation_fisher(F, math.nan * F), "values of covariance are not finite"),
        (lambda: activation_fisher(F, F, F), r"covariance_derivative of shape \(2, 3, 3\): expected \(2, 3, 3, 3\)"),
        (lambda: gaussian_channel_information(EYE, EYE), r"fisher of shape \(3, 3\): expected \(3, 3, 3\)"),
        (lambda: gaussian_channel_information(F, EYE[:2]), r"input_cov of shape \(2, 3\): expected \(3, 3\)"),
        (lambda: gaussian_channel_information(F, math.inf * EYE), "values of input_cov are not finite"),
        (lambda: gaussian_channel_information(F, -EYE), "input_cov is not positive semi-definite"),
        (lambda: gaussian_channel_information(-F, EYE), "fisher is not positive semi-definite"),
        (lambda: brunel_nadal_information(EYE, 0.0), r"fisher of shape \(3, 3\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
