"""``training_step`` may return None: Lightning then skips the batch, which is no reason to refuse the module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, curves, trainer
from oracle import fisher_trace_by_definition
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.callbacks.preparing import MOST_SKIPPED

SIZE = 4
X = torch.randn(64, FEATURES, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % CLASSES


class Skips(Classifier):
    """No gradient for a batch with a label that is none."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return None if (y < 0).any() else F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(callback, broken, module=None, total=64):
    labels = Y[:total].clone()
    labels[torch.tensor(broken, dtype=torch.long)] = -1
    module = module or Skips()
    start = copy.deepcopy(module.state_dict())
    trainer(callback, max_epochs=1).fit(module, DataLoader(TensorDataset(X[:total], labels), SIZE))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, start[name])
    return labels


def by_definition(module, x):
    return sum(fisher_trace_by_definition(copy.deepcopy(module).double(), x.double(), "categorical").values())


BROKEN = {
    "a sample of the first batch": [1],
    "the whole first batch": [0, 1, 2, 3],
    "three batches at the start": [0, 5, 9],
    "a sample later": [29],
    "the last batch": [60, 61, 62, 63],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_trained_is_no_reference_sample_and_the_others_are_exact(name):
    module = Skips()
    callback = FisherTraceCallback("exact", num_samples=64, every_n_train_steps=4, on_error="raise", summary=False)
    labels = fit(callback, BROKEN[name], module)
    kept = labels >= 0
    values = [value for _, value in callback.history["fisher/trace"]]
    assert values
    assert values == pytest.approx([by_definition(module, X[kept])] * len(values), rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback, EffectiveInfoCallback],
    ids=lambda c: c.__name__,
)
def test_every_callback_waits_for_samples_that_are_trained(make):
    options = {"beta": 0.05, "draws": 4} if make is EffectiveInfoCallback else {}
    callback = make(num_samples=16, every_n_train_steps=8, on_error="raise", summary=False, **options)
    fit(callback, [0, 6])
    assert curves(callback)
    assert all(value == value for tag, curve in curves(callback).items() if "/I_" in tag for _, value in curve)


def test_a_module_that_never_trains_is_told_by_its_reason():
    every = list(range(64))
    with pytest.raises(MisconfigurationException, match=r"training_step.*None"):
        fit(FisherTraceCallback(on_error="raise"), every)
    callback = FisherTraceCallback()
    with pytest.warns(UserWarning, match=rf"returned None for the first {MOST_SKIPPED} batches"):
        fit(callback, every)
    assert callback.history == {}
