"""What rescaling the layers of a net leaves: the scale-invariant trace and w'Fw, against closed forms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from models import Classifier, data, loader, strict, trainer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info import FisherTraceCallback
from lightning_info.functional import output_fisher_product
from lightning_info.gradients import choose_engine
from lightning_info.quantities.fisher_trace.sampling import pool_trace
from lightning_info.quantities.fisher_trace.scale_invariance import rao_norm
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

X, Y = data(40).tensors
X = X.double()


def snapshot(module):
    predictor = Predictor(StandInTrainer(None), lambda m, b: (m(b[0]), b[1], "categorical"))
    return ModelSnapshot(module, predictor, [(X, Y)], 9, torch.device("cpu"))


def traces(module, estimator="exact", draws=None):
    """The trace, the scale-invariant one, and the trace of the first layer's weights."""
    one = snapshot(module)
    plan = choose_engine(module, one.outputs, (X[:4], Y[:4]), "auto")
    found = pool_trace(one, plan, estimator, draws, torch.Generator().manual_seed(0))
    return found.estimate, found.scale_invariant, found.per_parameter["0.weight"]


def net(bias=True, norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(12)] if norm else []
    layers = [
        nn.Linear(6, 12, bias=bias),
        *middle,
        nn.ReLU(),
        nn.Linear(12, 8, bias=bias),
        nn.ReLU(),
        nn.Linear(8, 3, bias=bias),
    ]
    return nn.Sequential(*layers).double().eval()


def test_it_is_the_sum_over_tensors_of_squared_norm_times_trace():
    module = net()
    _, found, _ = traces(module)
    truth = 0.0
    for p in module.parameters():
        rows = torch.stack([torch.autograd.grad(z, p, retain_graph=True)[0].flatten() for z in module(X).flatten()])
        rows = rows.reshape(len(X), 3, -1)
        h = torch.stack([output_fisher_product(module(X), "categorical", e.expand(len(X), 3)) for e in torch.eye(3)], 1)
        truth += p.square().sum().item() * torch.einsum("nkp,nkl,nlp->", rows, h, rows).item() / len(X)
    assert found.trace == pytest.approx(truth, rel=1e-9)
    assert found.stderr == 0


@pytest.mark.parametrize("seed", range(3))
def test_rescaling_layers_of_a_relu_net_moves_the_trace_and_not_this(seed):
    module, generator = net(), torch.Generator().manual_seed(seed)
    rescaled = copy.deepcopy(module)
    product = 1.0
    for layer in [m for m in rescaled if isinstance(m, nn.Linear)][:-1]:
        a = 10 ** (2 * torch.rand((), generator=generator).item())
        product *= a
        layer.weight.data *= a
        layer.bias.data *= product  # what comes in is larger by the factors before it
    rescaled[-1].weight.data /= product
    torch.testing.assert_close(rescaled(X), module(X))
    (before, kept, _), (after, still, _) = traces(module), traces(rescaled)
    assert still.trace == pytest.approx(kept.trace, rel=1e-10)
    assert not 0.5 < after.trace / before.trace < 2


def test_the_scale_of_weights_before_batch_norm_does_not_matter():
    module = net(bias=False, norm=True)
    module[1].running_mean.normal_(), module[1].running_var.uniform_(0.5, 2)
    rescaled = copy.deepcopy(module)
    rescaled[0].weight.data *= 30.0
    rescaled[1].running_mean *= 30.0
    rescaled[1].running_var *= 900.0
    rescaled[1].eps, module[1].eps = 0.0, 0.0
    torch.testing.assert_close(rescaled(X), module(X))
    (_, kept, before), (_, still, after) = traces(module), traces(rescaled)
    assert still.trace == pytest.approx(kept.trace, rel=1e-10)
    assert after == pytest.approx(before / 900)


def test_draws_are_unbiased_and_the_error_covers():
    """100 estimates: the mean within four errors of it, and at least 85 of the intervals cover."""
    module = net()
    _, truth, _ = traces(module)
    one, generator = snapshot(module), torch.Generator().manual_seed(1)
    plan = choose_engine(module, one.outputs, (X[:4], Y[:4]), "auto")
    found = [pool_trace(one, plan, "importance", 30, generator).scale_invariant for _ in range(100)]
    values, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert abs(values.mean() - truth.trace) < 4 * values.std() / 10
    assert ((values - truth.trace).abs() <= 1.96 * errors).double().mean() >= 0.85


def test_the_rao_norm_of_a_relu_net_without_biases_is_that_of_its_outputs():
    """``Jw = L f``: the closed form of a homogeneous net of depth 3."""
    module = net(bias=False)
    outputs = module(X).detach()
    truth = 9 * (outputs * output_fisher_product(outputs, "categorical", outputs)).sum(1).mean().item()
    assert rao_norm(snapshot(module)) == pytest.approx(truth, rel=1e-9)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.stack([x, x.tanh()], 1)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("make", [net, Attends])
def test_the_rao_norm_is_the_quadratic_form_of_the_fisher_information(make):
    torch.manual_seed(0)
    module = make().double()
    weights = dict(module.named_parameters())
    of = lambda w: torch.func.functional_call(module, w, (X,))  # noqa: E731
    with sdpa_kernel(SDPBackend.MATH):
        outputs, tangent = torch.func.jvp(of, (weights,), (weights,))
    truth = (tangent * output_fisher_product(outputs, "categorical", tangent)).sum(1).mean().item()
    assert rao_norm(snapshot(module)) == pytest.approx(truth, rel=1e-9)


def test_both_in_the_callback_in_the_unit_of_the_run():
    ours = FisherTraceCallback(
        also=["rao_norm"], every_n_train_steps=4, reference=(X.float(), Y), draws=None, estimator="exact", unit="bits"
    )
    trainer(*strict(ours), max_epochs=1).fit(Classifier(), loader(64))
    tags = ("fisher/scale_invariant_trace", "fisher/scale_invariant_trace_stderr", "fisher/rao_norm")
    assert all(len(ours.history[tag]) == 3 for tag in tags)
    assert all(value > 0 for _, value in ours.history["fisher/rao_norm"])
    in_bits = ours.history["fisher/rao_norm"]
    other = FisherTraceCallback(also="rao_norm", every_n_train_steps=4, reference=(X.float(), Y))
    torch.manual_seed(0)
    module = Classifier()
    for callback in (ours, other):
        trainer(*strict(callback), max_epochs=1).fit(copy.deepcopy(module), loader(64))
    nats, bits = other.history["fisher/rao_norm"][0][1], ours.history["fisher/rao_norm"][0][1]
    assert bits == pytest.approx(nats / math.log(2))
    assert len(in_bits) == 3
