"""The callback's numbers, through a real Trainer, against the definition."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import zoo
from models import Classifier, loader, trainer
from oracle import fisher_trace_by_definition
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback

LOSSES = {
    "categorical": F.cross_entropy,
    "bernoulli": F.binary_cross_entropy_with_logits,
    "gaussian": F.mse_loss,
}


class Raw(pl.LightningModule):
    def __init__(self, net, likelihood):
        super().__init__()
        self.net, self.loss = net, LOSSES[likelihood]

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(name: str, *callbacks, **options):
    net, x, likelihood, engine = zoo.make(name)
    start = copy.deepcopy(net)
    outputs = net(x).detach()
    y = outputs.argmax(1) if likelihood == "categorical" else outputs.sign().clamp_min(0)
    samples = DataLoader(TensorDataset(x, y), batch_size=4)
    module = Raw(net, likelihood)
    trainer(*callbacks, max_epochs=1, **options).fit(module, samples)
    return start, x, likelihood, engine


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_exact_total_and_per_module_traces_equal_the_definition(name, precision):
    callback = FisherTraceCallback("exact", every_n_train_steps=1, on_error="raise", summary=False)
    start, x, likelihood, engine = fit(name, callback, precision=precision)
    truth = fisher_trace_by_definition(start, x, likelihood)
    total = sum(truth.values())
    tolerance = 1e-5 if precision == "32-true" else 1e-10

    assert callback.plan.engine == engine
    assert callback.history["fisher/trace"][0] == (0, pytest.approx(total, rel=tolerance))
    assert callback.history["fisher/coverage"][0] == (0, 1.0)
    assert callback.history["fisher/trace_stderr"][0] == (0, 0.0)
    modules: dict[str, float] = {}
    for parameter, value in truth.items():
        owner = f"net.{parameter}".rpartition(".")[0]
        modules[owner] = modules.get(owner, 0.0) + value
    found = {tag.removeprefix("fisher_layers/"): c[0][1] for tag, c in callback.history.items() if "_layers/" in tag}
    assert found.keys() == modules.keys()
    for owner, value in modules.items():
        assert abs(found[owner] - value) <= tolerance * max(value, 1e-6 * total), owner


@pytest.mark.parametrize("engine", ["backpack", "func", "loop"])
def test_every_engine_gives_the_same_curve(engine):
    curves = []
    for chosen in ("auto", engine):
        callback = FisherTraceCallback(
            "exact", engine=chosen, every_n_train_steps=1, num_samples=4, on_error="raise", summary=False
        )
        fit("residual", callback)
        curves.append(callback.history["fisher/trace"])
        assert chosen in ("auto", callback.plan.engine)
    assert [step for step, _ in curves[0]] == [0, 1, 2]
    assert [v for _, v in curves[1]] == pytest.approx([v for _, v in curves[0]], rel=1e-5)


def test_an_engine_asked_for_by_name_that_cannot_do_it_is_refused_with_the_reason():
    callback = FisherTraceCallback(engine="backpack", on_error="raise", summary=False)
    with pytest.raises(
        Exception, match=r"(?s)cannot be computed exactly.*no rule for the operator that uses .*net\.scale"
    ):
        fit("depthwise", callback)


def test_the_cotangent_engine_says_what_it_is(monkeypatch):
    callback = FisherTraceCallback(num_samples=32, every_n_train_steps=4, engine="cotangent", on_error="raise")
    assert "nothing is known" in callback.report()
    trainer(callback, max_epochs=1).fit(Classifier(), loader())
    assert "unbiased with a larger error" in callback.report()
    assert [value for _, value in callback.history["fisher/coverage"]] == [0.0, 0.0, 0.0]
    assert all(error > 0 for _, error in callback.history["fisher/trace_stderr"])


@pytest.mark.parametrize("options", [{"estimator": "exact"}, {"also": ["exact"]}])
def test_the_cotangent_engine_is_never_exact(options):
    with pytest.raises(ValueError, match="never exact"):
        FisherTraceCallback(engine="cotangent", **options)
