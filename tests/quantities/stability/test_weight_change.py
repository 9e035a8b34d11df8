"""Distance and divergence of two sets of weights, through the prediction of a module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models import FEATURES, Classifier, data, trainer
from torch import distributions as d
from torch import nn

from lightning_info.callbacks.session import new_snapshot
from lightning_info.quantities.stability.weight_change import fisher_distance, flat_weights, mean_output_kl, sample_loss
from lightning_info.replica.snapshot import Unavailable

X, Y = data(40).tensors


def snapshot_of(module, batch=(X, Y)):
    return new_snapshot(trainer(), module.double(), [batch], adapter=None, chunk=16, private=True)


class Net(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].double()), batch[1])


class Spread(Classifier):
    """Predicts a mean and a variance."""

    def __init__(self):
        super().__init__(nn.Linear(FEATURES, 2))

    def parts(self, x):
        mean, log_variance = self(x.double()).unbind(-1)
        return mean, log_variance.exp()

    def training_step(self, batch, batch_idx):
        mean, variance = self.parts(batch[0])
        return F.gaussian_nll_loss(mean, batch[1].double(), variance)


def moved(module, size, seed=0):
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return other


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_half_the_quadratic_form_is_the_divergence_of_small_changes(activation):
    """A ReLU network's kinks make it wrong for changes that are not small, and right in the limit."""
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.Linear(FEATURES, 16), activation(), nn.Linear(16, 3))).double()
    snapshot, errors = snapshot_of(module), []
    for size in (1.0, 1e-1, 1e-2, 1e-3):
        other = snapshot_of(moved(module, size))
        change = flat_weights(other.module) - flat_weights(snapshot.module)
        errors.append(abs(mean_output_kl(snapshot, other) / fisher_distance(snapshot, change) - 1))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.25
    assert errors[-1] < 0.005


def test_predicted_variances_count():
    torch.manual_seed(0)
    module = Spread().double()
    other = moved(module, 0.3)
    (m, v), (n, u) = module.parts(X), other.parts(X)
    expected = d.kl_divergence(d.Normal(m, v.sqrt()), d.Normal(n, u.sqrt())).mean().item()
    assert mean_output_kl(snapshot_of(module), snapshot_of(other)) == pytest.approx(expected, rel=1e-10)
    near = moved(module, 1e-4)
    quadratic = fisher_distance(snapshot_of(module), flat_weights(near) - flat_weights(module))
    assert mean_output_kl(snapshot_of(module), snapshot_of(near)) == pytest.approx(quadratic, rel=1e-2)


def test_the_loss_is_that_of_the_samples():
    module = Net().double()
    expected = F.cross_entropy(module(X[:3].double()), Y[:3]).item()
    assert sample_loss(snapshot_of(module), (X[:3], Y[:3])) == pytest.approx(expected, rel=1e-12)


def test_outputs_that_are_not_finite_have_no_value():
    module = Net().double()
    broken = copy.deepcopy(module)
    broken.net[0].weight.data[0, 0] = torch.nan
    with pytest.raises(Unavailable, match="not finite"):
        mean_output_kl(snapshot_of(module), snapshot_of(broken))
    with pytest.raises(Unavailable, match="not finite"):
        fisher_distance(snapshot_of(broken), torch.ones(len(flat_weights(broken)), dtype=torch.float64))
