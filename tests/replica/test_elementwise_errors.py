"""Errors that a ``training_step`` writes by hand, recognised by their gradient, or not."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from models import FEATURES, Classifier, trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_info import FisherTraceCallback
from lightning_info.replica.activations import Capture
from lightning_info.replica.outputs_only import OutputsOnly
from lightning_info.replica.prediction import NoPrediction, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N = 8
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, FEATURES, generator=GENERATOR)
Y = torch.randn(N, 3, generator=GENERATOR)
ONE = torch.randn(N, generator=GENERATOR)
MASK = (torch.rand(N, 3, generator=GENERATOR) < 0.6).float()


class Module(Classifier):
    def __init__(self, step, outputs=3):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, outputs)))
        self.head = nn.Linear(4, 3)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


class MaskedMSE(nn.Module):
    def forward(self, y, y_hat, mask):
        return ((y - y_hat) ** 2 * mask).sum() / mask.sum()


def predict(module, batch):
    predictor = Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])))
    replica = replicate(module)
    return predictor(replica, batch), predictor, replica


SQUARED = {
    "power": lambda m, x, y: ((y - m(x)) ** 2).mean(),
    "square": lambda m, x, y: torch.mean(torch.square(m(x) - y)),
    "root": lambda m, x, y: ((y - m(x)) ** 2).mean().sqrt(),
    "sum of the submodule": lambda m, x, y: 0.5 * (m.net(x) - y).pow(2).sum(),
    "norm": lambda m, x, y: torch.linalg.vector_norm(m(x) - y),
    "dict": lambda m, x, y: {"loss": (m(x) - y).square().mean()},
}


@pytest.mark.parametrize("name", SQUARED)
def test_a_squared_error_is_read_as_mse_loss_is(name):
    found, predictor, replica = predict(Module(SQUARED[name]), (X, Y))
    truth, *_ = predict(Module(lambda m, x, y: F.mse_loss(m(x), y)), (X, Y))
    assert found.likelihood == "gaussian"
    assert torch.equal(found.outputs, truth.outputs)
    assert torch.equal(found.targets, truth.targets)
    torch.testing.assert_close(found.loss_gradient(), truth.loss_gradient())
    assert found.described.endswith(
        "recognised by its gradient: squared error between the output of "
        f"{'net' if 'sub' in name else 'the module'} and batch[1]"
    )
    with torch.no_grad():  # where there is no gradient what was found before is taken
        assert torch.equal(predictor(replica, (X[:2], Y[:2])).outputs, truth.outputs[:2])


def test_an_absolute_error_is_read_as_l1_loss_is():
    found, *_ = predict(Module(lambda m, x, y: (m(x) - y).abs().mean()), (X, Y))
    truth, *_ = predict(Module(lambda m, x, y: F.l1_loss(m(x), y)), (X, Y))
    assert found.likelihood == "laplace"
    torch.testing.assert_close(found.loss_gradient(), truth.loss_gradient())
    assert "absolute error" in found.described


def test_axes_of_one_element_do_not_count():
    found, *_ = predict(Module(lambda m, x, y: (m(x).squeeze(-1) - y).square().mean(), outputs=1), (X, ONE))
    assert found.outputs.shape == found.targets.shape == (N, 1)


def test_a_mask_is_that_of_the_loss():
    loss = MaskedMSE()
    found, *_ = predict(Module(lambda m, x, y, mask: loss(y, m(x), mask)), (X, Y, MASK))
    assert torch.equal(found.mask, MASK.bool())


def test_the_target_may_be_the_input():
    module = Module(lambda m, x: (m(x) - x).square().mean(), outputs=FEATURES)
    found, *_ = predict(module, (X,))
    assert found.recognised == "squared error between the output of the module and batch[0]"


def far(module, x, y):
    return (module(x) - y).abs() > 5


OTHERS = {
    "with a penalty": lambda m, x, y: (m(x) - y).square().mean() + 1e-3 * m.net[0].weight.square().sum(),
    "of two heads": lambda m, x, y: (m(x) - y).square().mean() + (m.head(m.net[:2](x)) - y).square().mean(),
    "of two calls": lambda m, x, y: (m(x).square() - 2 * m(x) * y).mean(),
    "scaled": lambda m, x, y: (2 * m(x) - y).square().mean(),
    "of a broadcast": lambda m, x, y: (m(x)[:, :1] - y[:, 0]).square().mean(),
    "weighted": lambda m, x, y: ((m(x) - y).square() * torch.arange(1.0, 4.0)).mean(),
    "a root of each sample": lambda m, x, y: (m(x) - y).square().mean(1).sqrt().mean(),
    "Huber's": lambda m, x, y: torch.where(far(m, x, y), 10 * (m(x) - y).abs() - 25, (m(x) - y).square()).mean(),
    "log cosh": lambda m, x, y: (m(x) - y).cosh().log().mean(),
    "a quantile": lambda m, x, y: torch.maximum(0.9 * (y - m(x)), 0.1 * (m(x) - y)).mean(),
    "insensitive": lambda m, x, y: ((m(x) - y).abs() - 0.1).clamp_min(0).mean(),
    "a critic": lambda m, x, y: m(x).mean() + 0 * y.sum(),
    "cubic": lambda m, x, y: (m(x) - y).abs().pow(3).mean(),
    "no target": lambda m, x, y: m(x).square().mean(),
    "contrastive": lambda m, x, y: (m(x) @ m(x).T - y @ y.T).square().mean(),
    "of other targets": lambda m, x, y: (m(x) - y.roll(1, 0)).square().mean(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_loss_is_not_taken_for_one(name):
    with pytest.raises(NoPrediction, match="calls no likelihood that is known here"):
        predict(Module(OTHERS[name]), (X, Y))


def test_a_critic_below_all_targets_is_not_taken_for_an_absolute_error():
    with pytest.raises(NoPrediction, match="calls no likelihood"):
        predict(Module(OTHERS["a critic"]), (X, Y - 100))


def test_a_loss_that_is_another_one_later_is_refused():
    module = Module(lambda m, x, y: (m(x) - y).square().mean())
    _, predictor, replica = predict(module, (X, Y))
    replica.step = lambda m, x, y: (m(x) - y).abs().mean()
    with pytest.raises(NoPrediction, match="and its gradient is another one now"):
        predictor(replica, (X, Y))


def test_too_few_values_tell_nothing():
    with pytest.raises(NoPrediction, match="calls no likelihood"):
        predict(Module(lambda m, x, y: (m(x) - y).square().mean()), (X[:1], Y[:1]))


def test_a_run_has_the_trace_of_mse_loss_and_is_not_changed():
    rows = list(zip(X, Y, strict=True))

    def fit(step, *callbacks):
        module = Module(step)
        trainer(*callbacks, max_epochs=1).fit(module, DataLoader(rows, 4))
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    options = {"estimator": "exact", "num_samples": N, "every_n_train_steps": 1, "on_error": "raise"}
    by_hand, known = FisherTraceCallback(**options), FisherTraceCallback(**options)
    changed = fit(SQUARED["power"], by_hand)
    assert torch.equal(changed, fit(SQUARED["power"]))
    fit(lambda m, x, y: F.mse_loss(m(x), y), known)
    assert dict(by_hand.history["fisher/trace"]) == pytest.approx(dict(known.history["fisher/trace"]), rel=1e-5)
    assert "recognised by its gradient: squared error" in " ".join(by_hand.report().split())


def test_whoever_watches_the_calls_of_the_module_sees_those_of_one_pass():
    """An experiment that fails leaves the outputs of the pass itself, and activations of one call a layer."""
    module = Module(OTHERS["with a penalty"])
    predictor = OutputsOnly(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])))
    replica, seen = replicate(module), []
    with Capture(replica, lambda call, tensor, before: seen.append((call.name, call.index))):
        prediction = predictor(replica, (X, Y))
    assert torch.equal(prediction.outputs, module(X))
    assert len(seen) == len(set(seen))
    assert {index for _, index in seen} == {0}
