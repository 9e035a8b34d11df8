"""Divergence of predictions, against torch.distributions and its second-order limit."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as d

from lightning_info.functional import output_fisher_product, output_kl

SHAPE = (5, 3, 4)


def outputs(seed):
    return 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DISTRIBUTIONS = {
    "categorical": lambda z: d.Categorical(logits=z),
    "bernoulli": lambda z: d.Bernoulli(logits=z),
    "gaussian": lambda z: d.Normal(z, torch.ones_like(z)),
    "laplace": lambda z: d.Laplace(z, torch.ones_like(z)),
    "poisson": lambda z: d.Poisson(z.exp()),
}


@pytest.mark.parametrize("likelihood", DISTRIBUTIONS)
def test_it_is_that_of_the_distributions_summed_over_positions(likelihood):
    z, y, make = outputs(0), outputs(1), DISTRIBUTIONS[likelihood]
    expected = d.kl_divergence(make(z), make(y)).reshape(5, -1).sum(1)
    torch.testing.assert_close(output_kl(z, y, likelihood), expected, rtol=1e-10, atol=0)


def test_predicted_variances_count():
    m, n, v, u = outputs(0), outputs(1), outputs(2).exp(), outputs(3).exp()
    expected = d.kl_divergence(d.Normal(m, v.sqrt()), d.Normal(n, u.sqrt())).reshape(5, -1).sum(1)
    torch.testing.assert_close(output_kl(m, n, "gaussian", variances=(v, u)), expected, rtol=1e-10, atol=0)


def test_ignored_positions_and_excluded_classes_count_nothing():
    z, y = outputs(0), outputs(1)
    mask = torch.rand(5, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    each = d.kl_divergence(d.Categorical(logits=z), d.Categorical(logits=y))
    torch.testing.assert_close(output_kl(z, y, "categorical", mask), (each * mask).sum(1), rtol=1e-10, atol=0)
    z[..., 0] = y[..., 0] = -1e4
    rest = output_kl(z[..., 1:], y[..., 1:], "categorical")
    torch.testing.assert_close(output_kl(z, y, "categorical"), rest, rtol=1e-10, atol=0)


def test_of_confident_networks_that_disagree_it_is_finite():
    z = torch.tensor([[900.0, 0.0]])
    assert output_kl(z, -z, "categorical").item() == pytest.approx(900)


@pytest.mark.parametrize("likelihood", [*(name for name in DISTRIBUTIONS if name != "laplace"), "huber"])
def test_for_small_changes_it_is_half_the_quadratic_form_of_the_fisher_information(likelihood):
    z, t = outputs(0), outputs(1)
    quadratic = 0.5 * (t * output_fisher_product(z, likelihood, t)).reshape(5, -1).sum(1)
    torch.testing.assert_close(output_kl(z, z + 1e-5 * t, likelihood) / 1e-10, quadratic, rtol=1e-3, atol=0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must have the same shape"):
        output_kl(torch.zeros(2, 3), torch.zeros(2, 4), "gaussian")
