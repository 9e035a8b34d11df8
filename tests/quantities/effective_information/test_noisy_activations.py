"""Noisy passes that look only at some modules: the same activations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.quantities.effective_information.noisy_activations import NoisyFeatures, _Passes, noisy_activations
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.layer_selection import find_layers
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

N = 12


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(F.relu(self.conv(x)).mean((2, 3)))


def convolutions(last: nn.Module) -> nn.Module:
    """Fourteen pixels of as many channels, so that the axes look alike."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), last, nn.Flatten(), nn.Linear(16, 3)).eval()


def snapshot_of(net: nn.Module, x: torch.Tensor, chunk: int = 5) -> ModelSnapshot:
    predictor = Predictor(StandInTrainer(None), lambda module, batch: (module(batch[0]), batch[1], "categorical"))
    return ModelSnapshot(net, predictor, [(x, torch.arange(len(x)) % 3)], chunk, torch.device("cpu"))


@pytest.mark.parametrize(("net", "is_light"), [(convolutions(nn.ReLU(inplace=True)), True), (Functional(), False)])
def test_what_is_read_of_modules_alone_is_what_a_full_pass_gives(monkeypatch, net, is_light):
    torch.manual_seed(0)
    side = 4 if is_light else 5
    snapshot = snapshot_of(net, torch.randn(N, 1, side, side))
    layers, _ = find_layers(net, snapshot.predictor, snapshot.first_chunk(), None)
    reader = NoisyFeatures(tuple(layers), 512, 0)
    noises = 0.1 * torch.randn(3, sum(p.numel() for p in net.parameters()))
    found = noisy_activations(snapshot, reader, noises)
    expected = []
    for noise in noises:
        with moved(snapshot, noise):
            expected.append(snapshot.on(snapshot.groups).read(reader))
    assert len(found.units) == len(layers) >= 2
    for layer in layers:
        assert torch.equal(found.units[layer.label], torch.stack([one[f"units/{layer.label}"] for one in expected]))
    assert torch.equal(found.losses, torch.stack([one["loss"] for one in expected]).mean(1))
    passes = _Passes(snapshot, reader)
    passes.look_at_modules_alone(passes.read())
    assert (passes._known is not None) is is_light
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_layer_that_is_another_one_alone_is_looked_at_as_before():
    net = convolutions(nn.ReLU())
    snapshot = snapshot_of(net, torch.randn(N, 1, 4, 4))
    layers, _ = find_layers(net, snapshot.predictor, snapshot.first_chunk(), None)
    passes = _Passes(snapshot, NoisyFeatures(tuple(layers), 512, 0))
    read = passes.read()
    passes.look_at_modules_alone(read | {"loss": read["loss"] + 1})
    assert passes._known is None
