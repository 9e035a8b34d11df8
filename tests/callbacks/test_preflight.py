"""What the check before the first step finds besides a missing likelihood; see test_bad_input.py for that."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback


def fit(module, **options):
    callback = FisherTraceCallback(every_n_train_steps=4, num_samples=8, on_error="raise", summary=False, **options)
    run = trainer(callback, max_epochs=1)
    run.fit(module, loader())
    return callback


class Closure(Classifier):
    """Its copy's training_step computes with the original's weights, whose gradients would be missing."""

    def __init__(self):
        super().__init__()
        self.encode = lambda x: self.net(x)

    def forward(self, x):
        return self.encode(x)


def test_a_copy_that_computes_with_the_originals_weights_is_refused():
    with pytest.raises(MisconfigurationException, match="a copy of Closure still computes with the original's"):
        fit(Closure())


class Noisy(Classifier):
    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))


def test_outputs_that_are_random_in_eval_mode_are_refused():
    with pytest.raises(MisconfigurationException, match=r"noise belongs under `if self\.training`"):
        fit(Noisy())


class Penalised(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.net[0].weight.square().sum()


def test_a_penalty_is_named_once(monkeypatch):
    said = []
    monkeypatch.setattr("lightning_info.callbacks.base.rank_zero_info", said.append)
    module = Penalised()
    penalty = module.net[0].weight.square().sum().item()
    fit(module)
    (line,) = [line for line in said if "beyond the likelihood" in line]
    assert f"holds {penalty:.4g} beyond" in line


@pytest.mark.parametrize(("batch_norm", "statistics"), [(True, "running"), (True, "reference"), (False, "running")])
def test_running_statistics_are_named_where_they_are_used(monkeypatch, batch_norm, statistics):
    said = []
    monkeypatch.setattr("lightning_info.callbacks.base.rank_zero_info", said.append)
    fit(Classifier(batch_norm=batch_norm), batch_norm=statistics)
    lines = [line for line in said if "BatchNorm is measured with its running statistics" in line]
    assert len(lines) == (batch_norm and statistics == "running")


class Tokens(Classifier):
    """An embedding that renormalises the rows it reads: the forward pass writes to the weights."""

    def __init__(self, max_norm):
        super().__init__(nn.Sequential(nn.Embedding(10, 4, max_norm=max_norm), nn.Linear(4, CLASSES)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x.abs().sum(1).long() % 10), y)


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_a_module_that_writes_to_its_weights_is_measured_on_private_ones(max_norm):
    trained = []
    for callbacks in ([], [FisherTraceCallback(every_n_train_steps=1, num_samples=32, on_error="raise")]):
        torch.manual_seed(0)
        module = Tokens(max_norm)
        trainer(*callbacks, max_epochs=1).fit(module, loader())
        trained.append(module.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())
    assert [step for step, _ in callbacks[0].history["fisher/trace"]] == [0, 3, 4, 5, 6, 7, 8]
