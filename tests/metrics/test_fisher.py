"""The metric against the definition, over batches; over two processes: tests/integration/test_two_processes.py."""

from __future__ import annotations

import copy
import pickle
from unittest.mock import Mock

import pytest
import torch
from matplotlib import pyplot
from models import Classifier, data, loader, trainer
from oracle import fisher_trace_by_definition
from torch import nn
from torchmetrics import MetricCollection

from lightning_info.functional.standard_error import student_factor
from lightning_info.gradients import NotCovered, choose_engine
from lightning_info.metrics import FisherTrace

X, Y = data(30).tensors


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).eval()


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("batch_size", [7, 30])
def test_the_exact_trace_is_the_definition(likelihood, batch_size):
    module, metric = net(), FisherTrace(likelihood, "exact")
    for x in X.split(batch_size):
        metric.update(module, x)
    truth = sum(fisher_trace_by_definition(module, X, likelihood).values())
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "trace": pytest.approx(truth, rel=1e-5),
        "trace_stderr": 0,
    }


def test_the_estimate_is_unbiased_and_its_error_covers():
    module = net()
    truth = sum(fisher_trace_by_definition(module, X, "categorical").values())
    found = []
    for seed in range(200):
        metric = FisherTrace(estimator="rademacher", seed=seed)
        metric.update(module, X)
        found.append([value.item() for value in metric.compute().values()])
    trace, stderr = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert abs(trace.mean() - truth) <= 4 * trace.std() / len(trace) ** 0.5
    assert ((trace - truth).abs() <= 1.96 * stderr).double().mean() >= 0.9  # of 30 samples


def test_the_standard_error_is_that_of_the_mean_over_all_batches():
    module, together, apart = net(), FisherTrace("gaussian"), []
    for number, x in enumerate(X.split(7)):
        together.update(module, x)
        single = FisherTrace("gaussian")
        single._update_count = number  # the draws of that batch
        single.update(module, x)
        apart.append(single)
    assert together.squares.item() == pytest.approx(sum(m.squares.item() for m in apart))
    mean, stderr = (value.item() for value in together.compute().values())
    variance = (together.squares.item() - 30 * mean**2) / 29
    assert stderr == pytest.approx(student_factor(29) * (variance / 30) ** 0.5, rel=1e-9)


def test_nothing_global_and_nothing_of_the_module_changes():
    module, state = net(), torch.get_rng_state()
    before = copy.deepcopy(module.state_dict())
    with torch.inference_mode():
        metric = FisherTrace()
        metric.update(module, X)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_another_module_is_checked_again():
    metric = FisherTrace(estimator="exact")
    metric.update(net(), X)
    metric.reset()
    other = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    metric.update(other, X)
    truth = sum(fisher_trace_by_definition(other, X, "categorical").values())
    assert metric.compute()["trace"].item() == pytest.approx(truth, rel=1e-5)


class Mixed(nn.Module):
    """Outputs depend on the other samples of the batch: no engine is exact, and BackPACK's rules do not notice."""

    def __init__(self, mixes=True):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.mixes = nn.Linear(6, 3), mixes

    def forward(self, x):
        return self.layer(x - x.mean(0) * self.layer.weight.sum() if self.mixes else x)


def hook_a_layer(module):
    module[0].register_forward_hook(lambda layer, args, output: output - output.mean(0))


def forward_of_its_own(module):
    module[2].forward = lambda x: nn.functional.linear(x - x.mean(0), module[2].weight, module[2].bias)


@pytest.mark.parametrize("between", [lambda metric: metric, FisherTrace.clone, copy.deepcopy, lambda m: m.reset() or m])
@pytest.mark.parametrize("seen", [net, lambda: Mixed(mixes=False).eval()])
def test_another_module_never_has_the_plan_of_the_first(seen, between):
    metric = FisherTrace(estimator="exact")
    metric.update(seen(), X)
    metric = between(metric)
    with pytest.raises(NotCovered, match="other samples of the batch"):
        metric.update(Mixed().eval(), X)


@pytest.mark.parametrize("change", [hook_a_layer, forward_of_its_own])
def test_a_module_that_has_changed_is_checked_again(change):
    module, metric = net(), FisherTrace(estimator="exact")
    metric.update(module, X)
    change(module)
    with pytest.raises(NotCovered):
        metric.update(module, X)


def test_a_switch_of_a_layer_is_a_change():
    module, metric = Mixed(mixes=False).eval(), FisherTrace(estimator="exact")
    metric.update(module, X)
    module.mixes = True
    with pytest.raises(NotCovered):
        metric.update(module, X)


def test_parameters_that_are_frozen_between_two_accumulations_are_left_out():
    module, metric = net(), FisherTrace(estimator="exact")
    metric.update(module, X)
    metric.reset()
    module[0].requires_grad_(False)
    metric.update(module, X)
    truth = sum(v for name, v in fisher_trace_by_definition(module, X, "categorical").items() if name[0] == "2")
    assert metric.compute()["trace"].item() == pytest.approx(truth, rel=1e-5)


def test_the_same_module_is_checked_once(monkeypatch):
    counted = Mock(wraps=choose_engine)
    monkeypatch.setattr("lightning_info.metrics.fisher.choose_engine", counted)
    module, metric = net(), FisherTrace(estimator="exact")
    for x in X.split(10):
        metric.update(module, x)
    assert counted.call_count == 1


def test_a_module_in_train_mode_is_refused():
    with pytest.raises(ValueError, match=r"call module\.eval\(\)"):
        FisherTrace().update(net().train(), X)


def test_it_pickles_and_clones():
    metric = FisherTrace(estimator="exact")
    metric.update(net(), X)
    for other in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert other.compute() == metric.compute()


def test_in_a_validation_step():
    class Validated(Classifier):
        def __init__(self):
            super().__init__(dropout=0.5, batch_norm=True)
            self.fisher = FisherTrace(estimator="exact")

        def validation_step(self, batch, batch_idx):
            self.fisher.update(self, batch[0])

        def on_validation_epoch_end(self):
            self.log_dict(self.fisher.compute())
            self.fisher.reset()

    module = Validated()
    run = trainer()
    for evaluate in (
        lambda: run.fit(module, loader(24), loader(30)),
        lambda: run.validate(module, loader(30), verbose=False),
    ):
        evaluate()
        truth = sum(fisher_trace_by_definition(module.net, X, "categorical").values())
        assert run.callback_metrics["trace"].item() == pytest.approx(truth, rel=1e-5)
        assert run.callback_metrics["trace_stderr"] == 0


def test_in_a_collection_values_keep_their_names_as_long_as_they_differ():
    module = net()
    one = MetricCollection({"fisher": FisherTrace(estimator="exact")}, prefix="val_")
    two = MetricCollection({"drawn": FisherTrace(seed=1), "sum": FisherTrace(estimator="exact")}, compute_groups=False)
    for collection in (one, two):
        for x in X.split(10):
            collection.update(module, x)
    truth = sum(fisher_trace_by_definition(module, X, "categorical").values())
    found = {**one.compute(), **two.compute()}
    assert list(found) == [
        "val_trace",
        "val_trace_stderr",
        *(f"{m}_{v}" for m in ("drawn", "sum") for v in ("trace", "trace_stderr")),
    ]
    assert found["val_trace"].item() == found["sum_trace"].item() == pytest.approx(truth, rel=1e-5)
    assert 0 < found["drawn_trace_stderr"] < found["drawn_trace"]


def test_values_over_time_are_plotted_as_torchmetrics_does():
    metric, values = FisherTrace(), []
    for scale in (1.0, 2.0):
        module = net()
        module[2].weight.data.mul_(scale)
        metric.reset()
        metric.update(module, X)
        values.append(metric.compute())
    figure, axes = metric.plot(values)
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert drawn == [pytest.approx([value[name].item() for value in values]) for name in ("trace", "trace_stderr")]
    pyplot.close(figure)
