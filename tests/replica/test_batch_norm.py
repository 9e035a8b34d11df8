from __future__ import annotations

import copy

import pytest
import torch
from models import Classifier, data, loader, trainer
from oracle import fisher_trace_by_definition
from torch import nn

from lightning_info import FisherTraceCallback
from lightning_info.replica.batch_norm import on_batch_statistics, use_statistics_of


def test_statistics_are_the_mean_over_the_batches():
    layer = nn.BatchNorm1d(3).eval()
    batches = torch.randn(4, 10, 3).unbind()
    use_statistics_of([layer], layer, batches)
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.var(0, correction=0) for b in batches]).mean(0))
    assert not layer.training
    assert layer.momentum == 0.1


@pytest.mark.parametrize("samples", [2, 3, 32])
def test_activations_of_one_batch_are_those_of_training(samples):
    """Deep and of few samples, where the least difference of a layer's statistics is blown up by the next ones."""
    torch.manual_seed(0)
    parts = [(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(12)]
    net = nn.Sequential(*(layer for part in parts for layer in part)).double()
    x = torch.randn(samples, 16, dtype=torch.float64)
    trained = copy.deepcopy(net)(x)
    use_statistics_of([layer for layer in net if isinstance(layer, nn.BatchNorm1d)], net, [x])
    net.eval()
    torch.testing.assert_close(net(x), trained, rtol=1e-6, atol=1e-6)


def test_a_pass_that_fails_leaves_no_hook():
    layer = nn.BatchNorm1d(3).eval()
    with pytest.raises(ValueError, match="more than 1 value"):
        use_statistics_of([layer], layer, [torch.randn(1, 3)])
    assert not layer._forward_pre_hooks


def test_frozen_layers_and_layers_without_running_statistics_are_left_alone():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.ReLU())
    net[1].eval()
    assert on_batch_statistics(net) == ["0"]


@pytest.mark.parametrize("num_samples", [8, 24])
def test_trace_with_reference_statistics_is_that_of_the_net_with_these_statistics(num_samples):
    module = Classifier(batch_norm=True)
    start = copy.deepcopy(module.net)
    callback = FisherTraceCallback(
        "exact", num_samples=num_samples, batch_norm="reference", every_n_epochs=1, on_error="raise", summary=False
    )
    trainer(callback, max_epochs=1).fit(module, loader(batch_size=8))
    x = data().tensors[0][:num_samples]
    use_statistics_of([start[1]], start, x.split(8))
    truth = sum(fisher_trace_by_definition(start, x, "categorical").values())
    assert callback.history["fisher/trace"][0] == (0, pytest.approx(truth, rel=1e-4))
    running = copy.deepcopy(start)
    running[1].reset_running_stats()
    assert sum(fisher_trace_by_definition(running, x, "categorical").values()) != pytest.approx(truth, rel=0.05)
