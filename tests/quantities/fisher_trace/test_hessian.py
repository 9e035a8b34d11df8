"""The trace of the Hessian against an explicit Hessian of the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, data, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback
from lightning_info.quantities.fisher_trace.hessian import hessian_trace
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

X, Y = (tensor.double() if tensor.is_floating_point() else tensor for tensor in data(50).tensors)
WEIGHT = torch.tensor([0.5, 1.0, 2.0]).double()
LOSSES = {
    "categorical": (lambda z: F.cross_entropy(z, Y), lambda m, b: (m(b[0]), b[1], "categorical")),
    "gaussian": (
        lambda z: 0.5 * (z - X[:, :3]).square().sum(1).mean(),
        lambda m, b: (m(b[0]), b[0][:, :3], "gaussian"),
    ),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()


def exact(module, loss):
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    flat = torch.nn.utils.parameters_to_vector(parameters.values())

    def of(vector):
        pieces = vector.split([p.numel() for p in parameters.values()])
        named = {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}
        return loss(torch.func.functional_call(module, named, (X,)))

    return torch.func.hessian(of)(flat).trace().item()


@pytest.mark.parametrize("draws", [None, 20])
@pytest.mark.parametrize("likelihood", LOSSES)
def test_it_is_unbiased_and_its_error_covers(likelihood, draws):
    loss, adapter = LOSSES[likelihood]
    module = net()
    snapshot = ModelSnapshot(module, Predictor(StandInTrainer(None), adapter), [(X, Y)], 7, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    found = torch.tensor([hessian_trace(snapshot, draws, generator) for _ in range(100)], dtype=torch.float64)
    trace, stderr = found.unbind(1)
    truth = exact(module, loss)
    assert abs(trace.mean() - truth) <= 4 * trace.std() / 10
    assert ((trace - truth).abs() <= 1.96 * stderr).double().mean() >= 0.85


def test_in_the_callback():
    callback = FisherTraceCallback(num_samples=32, every_n_train_steps=4, also=["hessian"], on_error="raise")
    module = Classifier()
    trainer(callback, max_epochs=1).fit(module, loader())
    for tag in ("fisher/hessian_trace", "fisher/hessian_trace_stderr"):
        assert [step for step, _ in callback.history[tag]] == [0, 4, 8]
    assert all(error > 0 for _, error in callback.history["fisher/hessian_trace_stderr"])


@pytest.mark.parametrize("also", ["hessian", "rao_norm"])
def test_attention_has_a_second_derivative_and_an_operator_without_one_is_refused(also):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * 2

    class Net(nn.Module):
        def __init__(self, once):
            super().__init__()
            self.a, self.b, self.once = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3), once

        def forward(self, x):
            x = x.unsqueeze(1).expand(-1, 3, -1)
            h = self.b(self.a(x, x, x, need_weights=False)[0].mean(1))
            return Once.apply(h) if self.once else h

    callback = FisherTraceCallback(num_samples=8, every_n_train_steps=4, also=[also], on_error="raise")
    trainer(callback, max_epochs=1).fit(Classifier(Net(False)), loader(16))
    assert len(callback.history["fisher/rao_norm" if also == "rao_norm" else "fisher/hessian_trace"]) == 2
    refused = FisherTraceCallback(num_samples=8, also=[also], on_error="raise")
    with pytest.raises(MisconfigurationException, match="no second derivative"):
        trainer(refused, max_epochs=1).fit(Classifier(Net(True)), loader(16))
