"""Each predictive distribution against its own density, and names that are none."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Laplace, Normal, Poisson, kl_divergence
from torch.nn.functional import huber_loss

from lightning_info import metrics
from lightning_info.functional import (
    exact_cotangents,
    fisher_cotangent,
    fisher_trace,
    output_fisher_product,
    output_fisher_trace,
    output_kl,
    sampling_probabilities,
)
from lightning_info.functional.likelihoods import LIKELIHOODS, Huber, Product, likelihood_named
from lightning_info.gradients import ggn_diagonal, gram_matrix, squared_norms


class HuberDensity:
    """From Huber's loss alone, by sums over a fine grid of residuals."""

    def __init__(self, z, delta=1.0):
        self.mean, self.delta = z, delta
        self.residuals = torch.linspace(-60 / delta, 60 / delta, 400_001, dtype=torch.float64)
        p = (-self.rho(self.residuals)).exp()
        self.p, self.constant = p / p.sum(), p.sum() * (self.residuals[1] - self.residuals[0])

    def rho(self, residual):
        return huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=self.delta)

    def log_prob(self, y):
        return -self.rho(self.mean - y) - self.constant.log()

    @property
    def variance(self):
        return (self.p * self.residuals.square()).sum().expand_as(self.mean)

    def kl(self, other):
        d, inverse = torch.unique((self.mean - other.mean).flatten(), return_inverse=True)
        moved = [(self.p * (self.rho(self.residuals + one) - self.rho(self.residuals))).sum() for one in d]
        return torch.stack(moved)[inverse].reshape(self.mean.shape)


DENSITIES = {
    "categorical": lambda z: Categorical(logits=z),
    "bernoulli": lambda z: Bernoulli(logits=z),
    "gaussian": lambda z: Normal(z, 1.0),
    "laplace": lambda z: Laplace(z, 1.0),
    "huber": HuberDensity,
    "poisson": lambda z: Poisson(z.exp()),
}
Z = 2 * torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def kl(p, q):
    return p.kl(q) if isinstance(p, HuberDensity) else kl_divergence(p, q)


def every(name):
    return pytest.mark.parametrize(("name", "density"), DENSITIES.items(), ids=DENSITIES)(name)


def test_every_name_has_a_density_here():
    assert LIKELIHOODS.keys() == DENSITIES.keys()


@every
def test_the_score_is_the_gradient_of_the_density(name, density):
    z = Z.clone().requires_grad_()
    y = likelihood_named(name, "test").sample(Z, torch.Generator().manual_seed(1))
    (truth,) = torch.autograd.grad(-density(z).log_prob(y).sum(), z)
    torch.testing.assert_close(likelihood_named(name, "test").score(Z, y), truth, rtol=1e-12, atol=1e-12)
    (found,) = torch.autograd.grad(likelihood_named(name, "test").loss(z, y).sum(), z)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


@every
def test_samples_have_the_density(name, density):
    z = Z[0, 0].expand(40_000, 4)
    y = likelihood_named(name, "test").sample(z, torch.Generator().manual_seed(2)).double()
    if name == "categorical":
        y = torch.nn.functional.one_hot(y.long(), 4).double()
        mean, variance = density(z[0]).probs, density(z[0]).probs * (1 - density(z[0]).probs)
    else:
        mean, variance = density(z[0]).mean, density(z[0]).variance
    assert ((y.mean(0) - mean).abs() < 4 * (variance / len(z)).sqrt()).all()  # 4 standard errors


@every
def test_the_divergence_is_that_of_torch(name, density):
    other = Z.flip(0)
    torch.testing.assert_close(
        likelihood_named(name, "test").kl(Z, other), kl(density(Z), density(other)), rtol=1e-9, atol=1e-12
    )


def test_the_divergence_of_gaussians_with_variances_is_that_of_torch():
    v, u = Z.exp(), Z.flip(0).exp()
    truth = kl(Normal(Z, v.sqrt()), Normal(Z.flip(1), u.sqrt()))
    found = likelihood_named("gaussian", "test").kl(Z, Z.flip(1), (v, u))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


@every
def test_the_fisher_information_is_the_second_moment_of_the_score(name, density):
    """Exact sums over all labels; Gaussian labels by two nodes, which are exact for squares; grids of the others."""
    z, one = Z[:2, :1], likelihood_named(name, "test")
    if name == "categorical":
        labels = [(torch.full(z.shape[:-1], c), density(z).probs[..., c]) for c in range(4)]
    elif name == "bernoulli":
        labels = [(torch.ones_like(z), z.sigmoid()), (torch.zeros_like(z), (-z).sigmoid())]
    elif name == "poisson":
        counts = (torch.full_like(z, count) for count in range(400))
        labels = [(y, density(z).log_prob(y).exp()) for y in counts]
    elif name == "huber":
        grid = HuberDensity(z)
        labels = [(z + r, torch.full_like(z, p)) for r, p in zip(grid.residuals[::80], 80 * grid.p[::80], strict=True)]
    else:
        labels = [(z + sign, torch.full_like(z, 0.5)) for sign in (-1.0, 1.0)]
    total = torch.zeros(z.shape[:-1] if one.has_class_axis else z.shape, dtype=torch.float64)
    for y, weight in labels:
        squared = one.score(z, y).square()
        total += weight * (squared.sum(-1) if one.has_class_axis else squared)
    error = {"rtol": 1e-4 if name == "huber" else 1e-12, "atol": 1e-12}
    torch.testing.assert_close(one.fisher_trace(z), total, **error)
    columns = torch.stack(list(one.fisher_root(z)))
    torch.testing.assert_close(columns.square().sum((0, -1)).sum(1), total.flatten(1).sum(1), **error)


@every
def test_sampled_scores_have_the_fisher_information(name, density):
    """100 000 targets a row of outputs; within 5 standard errors of the mean square, seeded."""
    one, z = likelihood_named(name, "test"), Z[0]
    many = z.expand(100_000, *z.shape)
    squared = one.score(many, one.sample(many, torch.Generator().manual_seed(3))).square()
    squared = squared.sum(-1) if one.has_class_axis else squared
    error = squared.std(0) / len(many) ** 0.5
    assert ((squared.mean(0) - one.fisher_trace(z)).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("delta", [0.2, 1.0, 3.0])
def test_the_huber_density_of_any_threshold(delta):
    one, z = Huber(delta), torch.linspace(-7, 7, 15, dtype=torch.float64)
    density, other = HuberDensity(z, delta), HuberDensity(torch.zeros_like(z), delta)
    information = (density.p * density.residuals.clamp(-delta, delta).square()).sum()
    torch.testing.assert_close(one.fisher_trace(z), information.expand_as(z), rtol=1e-6, atol=0)
    torch.testing.assert_close(one.kl(z, other.mean), density.kl(other), rtol=1e-6, atol=1e-9)
    y = one.sample(z.expand(100_000, 15), torch.Generator().manual_seed(4)) - z
    inside = (y.abs() < delta).double()
    assert abs(inside.mean() - one.fisher_trace(z)[0]) < 4 * inside.std() / y.numel() ** 0.5  # 4 standard errors
    squares = y.square()
    assert abs(squares.mean() - density.variance[0]) < 4 * squares.std() / y.numel() ** 0.5


def test_huber_tends_to_gauss_and_to_laplace():
    z, zero = Z[0], torch.zeros_like(Z[0])
    gauss, laplace = likelihood_named("gaussian", "test"), likelihood_named("laplace", "test")
    torch.testing.assert_close(Huber(30.0).kl(z, zero), gauss.kl(z, zero), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(Huber(1e-3).fisher_trace(z), 1e-6 * laplace.fisher_trace(z), rtol=1e-5, atol=0)
    torch.testing.assert_close(Huber(1e-3).kl(1e3 * z, zero), laplace.kl(z, zero), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match=r"delta=1\.0"):
        Huber(delta)


# ---- several heads

HEADS = [("categorical", (2, 3)), ("laplace", (2,)), ("poisson", (1,)), ("categorical", (4,))]
PRODUCT = Product([(LIKELIHOODS[name], shape) for name, shape in HEADS])
SIDE = Z.flatten(1).repeat(1, 2)[:, : 6 + 2 + 1 + 4]
PARTS = [part.reshape(6, *shape) for part, (_, shape) in zip(SIDE.split([6, 2, 1, 4], 1), HEADS, strict=True)]


def test_the_information_of_a_product_has_the_blocks_of_its_heads():
    columns = torch.stack([u.flatten(1) for u in exact_cotangents(SIDE, PRODUCT)])
    whole = torch.einsum("cni,cnj->nij", columns, columns)
    blocks = []
    for part, (name, _) in zip(PARTS, HEADS, strict=True):
        own = torch.stack([u.flatten(1) for u in exact_cotangents(part, name)])
        blocks.append(torch.einsum("cni,cnj->nij", own, own))
    truth = torch.stack([torch.block_diag(*(block[n] for block in blocks)) for n in range(6)])
    torch.testing.assert_close(whole, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output_fisher_trace(SIDE, PRODUCT), truth.diagonal(0, 1, 2).sum(1))
    t = SIDE.flip(0)
    product = output_fisher_product(SIDE, PRODUCT, t)
    torch.testing.assert_close(product, torch.einsum("nij,nj->ni", truth, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ["importance", "rademacher", "sampled"])
def test_cotangents_of_a_product_have_its_information(estimator):
    """Every element of the second moment over 50 000 draws, within 5 standard errors, cross terms of heads included."""
    z = SIDE[:1].expand(50_000, -1)
    u = fisher_cotangent(z, PRODUCT, estimator, generator=torch.Generator().manual_seed(5))
    columns = torch.stack(list(exact_cotangents(SIDE[:1], PRODUCT)))[:, 0]
    squares = u[:, :, None] * u[:, None, :]
    error = squares.std(0) / len(z) ** 0.5
    assert ((squares.mean(0) - columns.T @ columns).abs() <= 5 * error + 1e-9).all()


def test_divergence_score_and_mask_of_a_product_are_those_of_its_heads():
    other = SIDE.flip(0)
    parts = [output_kl(part, part.flip(0), name) for part, (name, _) in zip(PARTS, HEADS, strict=True)]
    torch.testing.assert_close(output_kl(SIDE, other, PRODUCT), torch.stack(parts).sum(0))
    y = PRODUCT.sample(SIDE, torch.Generator().manual_seed(6))
    assert y.shape == PRODUCT.positions(SIDE) == (6, 2 + 2 + 1 + 1)
    z = SIDE.clone().requires_grad_()
    (truth,) = torch.autograd.grad(PRODUCT.loss(z, y).sum(), z)
    torch.testing.assert_close(PRODUCT.score(SIDE, y), truth, rtol=1e-12, atol=1e-12)
    mask = torch.tensor([True, False, True, False, True, False]).expand(6, -1)  # a token, a value and the last head out
    u = fisher_cotangent(SIDE, PRODUCT, mask=mask, generator=torch.Generator().manual_seed(7))
    assert (u != 0)[0].tolist() == [True] * 3 + [False] * 3 + [True, False, True] + [False] * 4


net, x = torch.nn.Linear(3, 2).eval(), torch.randn(4, 3)
UNKNOWN = {
    "output_fisher_trace": lambda: output_fisher_trace(Z, "softmax"),
    "fisher_cotangent": lambda: fisher_cotangent(Z, "softmax"),
    "fisher_cotangent estimator": lambda: fisher_cotangent(Z, "gaussian", "hutchinson"),
    "exact_cotangents": lambda: exact_cotangents(Z, "softmax"),
    "output_fisher_product": lambda: output_fisher_product(Z, "softmax", Z),
    "output_kl": lambda: output_kl(Z, Z, "softmax"),
    "fisher_trace": lambda: fisher_trace(Z, lambda u: u, "softmax"),
    "fisher_trace estimator": lambda: fisher_trace(Z, lambda u: u, "gaussian", "sampeld"),
    "squared_norms": lambda: squared_norms(net, x, torch.ones(4, 2), engine="backpak"),
    "gram_matrix": lambda: gram_matrix(net, x, torch.ones(1, 4, 2), engine="backpack"),
    "ggn_diagonal": lambda: ggn_diagonal(net, x, "softmax"),
    "ggn_diagonal estimator": lambda: ggn_diagonal(net, x, "categorical", "exakt"),
    "FisherTrace": lambda: metrics.FisherTrace("softmax", "exact"),
    "FisherTrace estimator": lambda: metrics.FisherTrace("categorical", "sampeld"),
    "FisherTrace engine": lambda: metrics.FisherTrace("categorical", engine="backpak"),
}


@pytest.mark.parametrize("call", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_name_is_refused_with_the_known_ones(call):
    with pytest.raises(ValueError, match=r"unknown \w+ .*choose one of .*for example"):
        call()


@pytest.mark.parametrize(
    ("scores", "admixture"),
    [([-1.0, 2.0], 0.1), ([1.0, float("nan")], 0.1), ([1.0, float("inf")], 0.1), ([1.0, 2.0], 1.5)],
)
def test_probabilities_of_no_distribution_are_refused(scores, admixture):
    with pytest.raises(ValueError, match="sampling_probabilities"):
        sampling_probabilities(torch.tensor(scores), admixture)
