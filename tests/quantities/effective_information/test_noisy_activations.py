"""Noisy passes that look only at some modules, or make one call in place of a whole step: the same activations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.quantities.effective_information.noisy_activations import NoisyFeatures, _Passes, noisy_activations
from lightning_info.quantities.weight_information.direct_call import DirectCall
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.layer_selection import find_layers
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, DRAWS = 12, 20


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(F.relu(self.conv(x)).mean((2, 3)))


def convolutions(last: nn.Module) -> nn.Module:
    """Fourteen pixels of as many channels, so that the axes look alike."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), last, nn.Flatten(), nn.Linear(16, 3)).eval()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def adapter(module, batch):
    return module(batch[0]), batch[1], "categorical"


def scaled(module, batch):
    """Outputs that no call gives."""
    return 2 * module(batch[0]), batch[1], "categorical"


def by_weights(module, batch):
    """What the call takes depends on the weights."""
    with torch.no_grad():
        x = batch[0] + module[1].bias.sum()
    return module(x), batch[1], "categorical"


def snapshot_of(net: nn.Module, x: torch.Tensor, chunk: int = 5, predict=adapter) -> ModelSnapshot:
    predictor = Predictor(StandInTrainer(None), predict)
    return ModelSnapshot(net, predictor, [(x, torch.arange(len(x)) % 3)], chunk, torch.device("cpu"))


def reader_of(snapshot: ModelSnapshot) -> NoisyFeatures:
    return NoisyFeatures(
        tuple(find_layers(snapshot.module, snapshot.predictor, snapshot.first_chunk(), None)[0]), 512, 0
    )


def draws_of(net: nn.Module) -> torch.Tensor:
    return 0.1 * torch.randn(DRAWS, sum(p.numel() for p in net.parameters()))


def whole_passes(snapshot: ModelSnapshot, reader: NoisyFeatures, noises: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    expected = []
    for noise in noises:
        with moved(snapshot, noise):
            expected.append(snapshot.on(snapshot.groups).read(reader))
    return expected


@pytest.fixture
def as_one(monkeypatch):
    """How many times the network of a direct call ran, at all weights as one or at its own."""
    ran = {"as one": 0, "one by one": 0}
    run = DirectCall.run

    def counted(call, weights=None):
        ran["one by one" if weights is None else "as one"] += 1
        return run(call, weights)

    monkeypatch.setattr(DirectCall, "run", counted)
    return ran


@pytest.mark.parametrize(
    ("net", "side", "predict", "way"),
    [
        (convolutions(nn.ReLU(inplace=True)), 4, adapter, "one by one"),
        (Functional(), 5, adapter, "one by one"),
        (mlp(), 4, adapter, "as one"),
        (mlp(), 4, scaled, ""),
    ],
    ids=["modules", "functions", "matrices", "no call"],
)
def test_what_is_read_is_what_whole_passes_give(as_one, net, side, predict, way):
    """To 1e-5 of the largest: as one, matrices are multiplied in another order."""
    torch.manual_seed(0)
    snapshot = snapshot_of(net, torch.randn(N, 1, side, side), predict=predict)
    reader, noises = reader_of(snapshot), draws_of(net)
    found = noisy_activations(snapshot, reader, noises)
    expected = whole_passes(snapshot, reader, noises)
    assert len(found.units) == len(reader.layers) >= 2
    for layer in reader.layers:
        truth = torch.stack([one[f"units/{layer.label}"] for one in expected])
        assert (found.units[layer.label] - truth).abs().max() <= 1e-5 * truth.abs().max()
        assert truth.std(0).max() > 1e-3
    torch.testing.assert_close(found.losses, torch.stack([one["loss"] for one in expected]).mean(1), rtol=1e-5, atol=0)
    ran = {name for name, count in as_one.items() if count}
    assert ran == ({way} if way else set())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_call_that_takes_what_depends_on_the_weights_is_not_made_by_itself(as_one):
    """It is tried, and its first pass is another one."""
    torch.manual_seed(0)
    net = mlp()
    snapshot = snapshot_of(net, torch.randn(N, 1, 4, 4), predict=by_weights)
    reader, noises = reader_of(snapshot), draws_of(net)
    found = noisy_activations(snapshot, reader, noises)
    expected = whole_passes(snapshot, reader, noises)
    assert sum(as_one.values()) == 2 * 3  # as one and one by one, three chunks
    for layer in reader.layers:
        assert torch.equal(found.units[layer.label], torch.stack([one[f"units/{layer.label}"] for one in expected]))


class Counts(nn.Module):
    """Keeps how often it ran."""

    def __init__(self):
        super().__init__()
        self.out, self.ran = nn.Linear(16, 3), torch.zeros(())

    def forward(self, x):
        self.ran = self.ran + 1
        return self.out(x.flatten(1)) * self.ran


class Draws(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(F.dropout(x.flatten(1), 0.3, training=True))


@pytest.mark.parametrize("net", [Counts(), Draws()], ids=["keeps state", "draws noise"])
def test_a_pass_that_does_more_than_its_call_is_made_whole(as_one, net):
    torch.manual_seed(0)
    snapshot = snapshot_of(net, torch.randn(N, 1, 4, 4))
    reader, noises = reader_of(snapshot), draws_of(net)
    found, expected = noisy_activations(snapshot, reader, noises), whole_passes(snapshot, reader, noises)
    assert not any(as_one.values())
    for layer in reader.layers:
        assert torch.equal(found.units[layer.label], torch.stack([one[f"units/{layer.label}"] for one in expected]))


@pytest.mark.parametrize(("net", "is_light"), [(convolutions(nn.ReLU(inplace=True)), True), (Functional(), False)])
def test_without_a_call_the_modules_alone_are_looked_at_where_they_are_enough(net, is_light):
    torch.manual_seed(0)
    side = 4 if is_light else 5
    snapshot = snapshot_of(net, torch.randn(N, 1, side, side), predict=scaled)
    reader, noises = reader_of(snapshot), draws_of(net)
    found, expected = noisy_activations(snapshot, reader, noises), whole_passes(snapshot, reader, noises)
    for layer in reader.layers:
        assert torch.equal(found.units[layer.label], torch.stack([one[f"units/{layer.label}"] for one in expected]))
    passes = _Passes(snapshot, reader, {})
    passes.look_at_modules_alone(passes.read())
    assert (passes._known is not None) is is_light
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_layer_that_is_another_one_alone_is_looked_at_as_before():
    net = convolutions(nn.ReLU())
    snapshot = snapshot_of(net, torch.randn(N, 1, 4, 4))
    passes = _Passes(snapshot, reader_of(snapshot), {})
    read = passes.read()
    passes.look_at_modules_alone(read | {"loss": read["loss"] + 1})
    assert passes._known is None
