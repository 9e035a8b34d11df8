"""Forward passes over more samples at once than in training: what is read of them is the same."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback, InfoPlaneCallback
from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import Batch, Layout
from lightning_info.quantities.weight_information.noisy_loss import mean_loss
from lightning_info.replica import samples_at_once as of_samples
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.samples_at_once import samples_at_once
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer


def snapshot_of(net: nn.Module, batch: object) -> ModelSnapshot:
    predictor = Predictor(StandInTrainer(None), lambda module, batch: (module(batch[0]), batch[1], "categorical"))
    return ModelSnapshot(net, predictor, [batch], 5, torch.device("cpu"))


def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def test_as_many_as_give_few_activations(monkeypatch):
    net, seen = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), []
    snapshot = snapshot_of(net, samples(40))
    net.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    loss = mean_loss(snapshot)
    assert max(seen) == 5
    assert samples_at_once(snapshot, 40) == 40
    assert samples_at_once(snapshot, 17) == 17
    monkeypatch.setattr(of_samples, "MOST_NUMBERS", 10 * (6 + 6 + 3))
    snapshot.at_once = samples_at_once(snapshot, 40)
    seen.clear()
    assert mean_loss(snapshot.in_larger_chunks()) == pytest.approx(loss, rel=1e-6)
    assert snapshot.at_once == max(seen) == 10
    monkeypatch.setattr(of_samples, "MOST_NUMBERS", 1)
    assert samples_at_once(snapshot, 40) == 5


@pytest.mark.parametrize("fault", ["refuses", "differs"])
def test_a_module_that_depends_on_its_batch_stays_with_it(fault):
    class Dependent(nn.Linear):
        def forward(self, x):
            if len(x) > 5 and fault == "refuses":
                raise RuntimeError("expected a batch of 5")
            return super().forward(x) * (2 if len(x) > 5 else 1)

    assert samples_at_once(snapshot_of(Dependent(4, 3), samples(40)), 40) == 5


def test_samples_that_must_stay_in_order_do():
    layout = Layout({(0,): 0, (1,): 0}, frozenset(), ordered=True)
    assert samples_at_once(snapshot_of(nn.Linear(4, 3), Batch(samples(40), layout)), 40) == 5


def curves(monkeypatch, most):
    monkeypatch.setattr(of_samples, "MOST_NUMBERS", most)
    sizes = []

    class Counting(Classifier):
        def training_step(self, batch, batch_idx):
            sizes.append(num_samples(batch))
            return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    callbacks = [
        FisherTraceCallback(num_samples=64, draws=16, every_n_train_steps=4),
        InfoPlaneCallback(num_samples=64, every_n_train_steps=4),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(*callbacks, max_epochs=1).fit(Counting(), loader(64, batch_size=8))
    return sizes, [callback.history for callback in callbacks]


def test_the_curves_of_a_run_do_not_depend_on_it(monkeypatch):
    small, expected = curves(monkeypatch, 1)
    large, found = curves(monkeypatch, 1 << 22)
    assert max(small) == 8
    assert max(large) == 64
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for tag, curve in one.items():
            if not tag.endswith("/overhead"):
                assert curve == [(step, pytest.approx(value, rel=1e-4, nan_ok=True)) for step, value in other[tag]]
