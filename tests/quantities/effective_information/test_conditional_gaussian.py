"""Which layers an ``nn.Linear`` gives, and the Gaussian of its output under its own noise against draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_info.quantities.effective_information.conditional_gaussian import find_linear_layers, linear_noises
from lightning_info.quantities.effective_information.noisy_activations import NoisyFeatures, noisy_activations
from lightning_info.replica.layer_selection import find_layers
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

N = 12


def snapshot_of(net: nn.Module, x: torch.Tensor, chunk: int = 5) -> ModelSnapshot:
    y = torch.arange(len(x)) % 3
    predictor = Predictor(StandInTrainer(None), lambda module, batch: (module(batch[0]), batch[1], "categorical"))
    return ModelSnapshot(net, predictor, [(x, y)], chunk, torch.device("cpu"))


def found(net: nn.Module, named=None, x: torch.Tensor | None = None) -> dict[str, str]:
    torch.manual_seed(0)
    snapshot = snapshot_of(net, torch.randn(N, 4) if x is None else x)
    layers, _ = find_layers(net, snapshot.predictor, snapshot.groups[0], named)
    before = [p.detach().clone() for p in net.parameters()]
    names = find_linear_layers(snapshot, layers)
    assert all(map(torch.equal, before, net.parameters()))
    assert not any(part._forward_hooks for part in net.modules())
    return names


def mlp(act: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), act(), nn.Linear(5, 5), act(), nn.Linear(5, 3))


def test_layers_are_followed_to_their_linear():
    assert found(mlp(nn.Tanh)) == {"1": "0", "3": "2", "4": "4"}
    assert found(mlp(nn.ReLU)) == {"4": "4"}  # behind a ReLU is not before it
    assert found(mlp(nn.ReLU), "Linear") == {"0": "0", "2": "2", "4": "4"}


def test_layers_that_give_the_same_zeros_are_told_apart():
    net = mlp(nn.Tanh)
    for part in net:
        for p in part.parameters():
            nn.init.zeros_(p)
    assert found(net) == {"1": "0", "3": "2", "4": "4"}


class Recurrent(nn.Module):
    """The same layer twice; the second reads what the first gave."""

    def __init__(self):
        super().__init__()
        self.inside, self.act, self.out = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.act(self.inside(self.act(self.inside(x)))))


class Tied(nn.Module):
    """The input of the second layer depends on its weights, through another module."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.inside(x.view(len(x), 2, 2))).mean(1))


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_where_it_is_not_exact_there_is_none():
    assert found(Recurrent()) == {"out": "out"}
    assert found(Tied()) == {"tanh:0": "first", "out": "out"}
    assert found(Positions()) == {"out": "out"}
    net = mlp(nn.Tanh)
    net[0] = nn.utils.weight_norm(net[0])
    net[2] = nn.utils.parametrizations.weight_norm(net[2])
    assert found(net) == {"4": "4"}


def test_the_gaussian_given_the_input_is_that_of_draws_of_the_own_weights():
    """10,000 draws: every mean and variance within 5 standard errors, the latter 1.4 % of it."""
    torch.manual_seed(0)
    net, h, draws = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(6, 3), 10_000
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    deviations = torch.rand(6)
    given = linear_noises(net, ["2"], deviations)["2"].given(h)
    w = net[2].weight + torch.randn(draws, 6).mul(deviations).view(draws, 2, 3)
    z = h @ w.mT + net[2].bias
    assert ((z.mean(0) - given.mean).abs() < 5 * (given.variance / draws).sqrt()).all()
    assert (z.var(0) / given.variance - 1).abs().max() < 5 * (2 / draws) ** 0.5


def test_every_draw_and_sample_has_its_own():
    torch.manual_seed(0)
    net, x = mlp(nn.Tanh), torch.randn(N, 4)
    snapshot = snapshot_of(net, x)
    layers, _ = find_layers(net, snapshot.predictor, snapshot.groups[0], None)
    k = sum(p.numel() for p in net.parameters())
    deviations, noises = torch.rand(k), 0.1 * torch.randn(3, k)
    linear = linear_noises(net, ["0", "2"], deviations)
    noisy = noisy_activations(snapshot, NoisyFeatures(tuple(layers), 512, 0), noises, linear)
    assert {name: given.mean.shape for name, given in noisy.given_below.items()} == {"0": (3, N, 5), "2": (3, N, 5)}
    first, second = net[0], net[2]
    torch.testing.assert_close(noisy.given_below["0"].mean, first(x).expand(3, N, 5))
    w = first.weight + noises[:, :20].view(3, 5, 4)
    h = torch.tanh(x @ w.mT + (first.bias + noises[:, 20:25])[:, None])
    torch.testing.assert_close(noisy.given_below["2"].mean, second(h))
    parts = deviations.square()[25:55].split([25, 5])
    torch.testing.assert_close(noisy.given_below["2"].variance, h.square() @ parts[0].view(5, 5).T + parts[1])
