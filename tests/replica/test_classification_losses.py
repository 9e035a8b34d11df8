"""Cross entropies that a ``training_step`` writes by hand, recognised by their gradient, or not."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback, WeightInfoCallback
from lightning_info.replica.classification_losses import ClassificationLoss
from lightning_info.replica.prediction import NoPrediction, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, T, C = 8, 5, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, FEATURES, generator=GENERATOR)
Y = torch.randint(C, (N,), generator=GENERATOR)
SEVERAL = torch.randint(2, (N, C), generator=GENERATOR)
WORDS = torch.randint(C, (N, T), generator=GENERATOR)


class Module(Classifier):
    def __init__(self, step, outputs=C):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs)))
        self.words = nn.Sequential(nn.Embedding(C, 6), nn.Tanh(), nn.Linear(6, C))
        self.log_softmax = nn.LogSoftmax(-1)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


def predict(module, batch):
    predictor = Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])))
    replica = replicate(module)
    return predictor(replica, batch), predictor, replica


def picked(log_p, y):
    return log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def one_hot(y):
    return F.one_hot(y, C).double()


def of_outputs(z, loss):
    return loss(z).mean()


SOFTMAX = {
    "gather": lambda m, x, y: -picked(m(x).log_softmax(-1), y).mean(),
    "index": lambda m, x, y: -m(x).log_softmax(1)[torch.arange(len(y)), y].sum(),
    "one-hot": lambda m, x, y: -(one_hot(y) * m(x).log_softmax(-1)).sum(-1).mean(),
    "logsumexp": lambda m, x, y: of_outputs(m(x), lambda z: z.logsumexp(-1) - picked(z, y)),
    "module": lambda m, x, y: -picked(m.log_softmax(m.net(x)), y).mean(),
    "softmax": lambda m, x, y: -picked(m(x).softmax(-1), y).log().mean(),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_it_is_read_as_cross_entropy_is(name):
    found, predictor, replica = predict(Module(SOFTMAX[name]), (X, Y))
    truth, *_ = predict(Module(lambda m, x, y: F.cross_entropy(m(x), y)), (X, Y))
    assert found.likelihood == "categorical"
    assert torch.equal(found.outputs, truth.outputs)
    assert torch.equal(found.targets, truth.targets)
    torch.testing.assert_close(found.loss_gradient(), truth.loss_gradient())
    assert "recognised by its gradient: cross entropy of the output of" in found.described
    with torch.no_grad():  # where there is no gradient there are no labels
        few = predictor(replica, (X[:2], Y[:2]))
    torch.testing.assert_close(few.outputs, truth.outputs[:2])
    assert few.targets is None


def test_labels_may_be_made_of_the_batch_and_some_left_out():
    def next_words(m, words):
        log_p, y = m.words(words[:, :-1]).log_softmax(-1), words[:, 1:]
        kept = y != 0
        return -(picked(log_p, y) * kept).sum() / kept.sum()

    found, *_ = predict(Module(next_words), (WORDS,))
    truth, *_ = predict(
        Module(lambda m, w: F.cross_entropy(m.words(w[:, :-1]).movedim(-1, 1), w[:, 1:], ignore_index=0)), (WORDS,)
    )
    assert found.outputs.shape == (N, T - 1, C)
    assert torch.equal(found.outputs, truth.outputs)
    assert torch.equal(found.mask, truth.mask)
    torch.testing.assert_close(found.loss_gradient(), truth.loss_gradient())


def test_rows_of_all_samples_get_their_axis_back():
    rows = lambda m, w: -picked(m.words(w[:, :-1].flatten()).log_softmax(-1), w[:, 1:].flatten()).mean()  # noqa: E731
    found, *_ = predict(Module(rows), (WORDS,))
    assert found.outputs.shape == (N, T - 1, C)
    assert torch.equal(found.targets, WORDS[:, 1:])


BINARY = {
    "softplus": lambda m, x, y: of_outputs(m(x), lambda z: F.softplus(z) - y * z),
    "logsigmoid": lambda m, x, y: of_outputs(m(x), lambda z: -y * F.logsigmoid(z) - (1 - y) * F.logsigmoid(-z)),
    "log": lambda m, x, y: of_outputs(m(x).sigmoid(), lambda p: -y * p.log() - (1 - y) * (1 - p).log()),
}


@pytest.mark.parametrize("name", BINARY)
def test_it_is_read_as_binary_cross_entropy_is(name):
    found, *_ = predict(Module(BINARY[name]), (X, SEVERAL))
    truth, *_ = predict(Module(lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y.float())), (X, SEVERAL))
    assert found.likelihood == "bernoulli"
    assert torch.equal(found.targets, truth.targets)
    torch.testing.assert_close(found.loss_gradient(), truth.loss_gradient())


def test_where_the_net_is_sure_the_label_is_its_own():
    module = Module(SOFTMAX["gather"])
    with torch.no_grad():
        module.net[2].bias += 200 * one_hot(torch.tensor(2)).float()
    found, *_ = predict(module, (X, torch.full((N,), 2)))
    assert found is not None
    assert torch.equal(found.targets, torch.full((N,), 2))
    assert found.mask is None or bool(found.mask.all())


@pytest.mark.parametrize(("kind", "axis"), [("categorical", 1), ("bernoulli", 0)])
def test_a_sure_output_among_others_counts_and_an_ignored_one_does_not(kind, axis):
    z = torch.randn(N, C, generator=GENERATOR)
    z[0] = torch.tensor([200.0, -200.0, -200.0, -200.0])
    y = torch.randint(C, (N,), generator=GENERATOR)
    y[0] = 0
    z.requires_grad_()
    each = (
        F.cross_entropy(z, y, reduction="none")
        if axis
        else F.binary_cross_entropy_with_logits(z, one_hot(y).float(), reduction="none").sum(1)
    )
    (gradient,) = torch.autograd.grad(each[:-1].mean(), z)
    found = ClassificationLoss(kind, "net", 0, axis).labels(gradient, z.detach(), 1e-3)
    assert bool(found.kept[:-1].all())
    assert not found.kept[-1].any()
    assert torch.equal(found.y[0].long(), y[0] if axis else one_hot(y)[0].long())


OTHERS = {
    "focal": lambda m, x, y: of_outputs(picked(m(x).log_softmax(-1), y), lambda p: -((1 - p.exp()) ** 2) * p),
    "smoothed": lambda m, x, y: -((0.9 * one_hot(y) + 0.1 / C) * m(x).log_softmax(-1)).sum(-1).mean(),
    "weighted by rewards": lambda m, x, y: -(picked(m(x).log_softmax(-1), y) * (y - 1.5)).mean(),
    "with a temperature": lambda m, x, y: -picked((m(x) / 2).log_softmax(-1), y).mean(),
    "with a penalty": lambda m, x, y: SOFTMAX["gather"](m, x, y) + 1e-3 * m.net[0].weight.square().sum(),
    "labels of its own": lambda m, x, y: -m(x).log_softmax(-1).amax(-1).mean(),
    "margin": lambda m, x, y: of_outputs(m(x), lambda z: F.relu(1 + z - picked(z, y).unsqueeze(-1))),
    "entropy": lambda m, x, y: of_outputs(m(x).log_softmax(-1), lambda p: -(p.exp() * p).sum(-1)) + 0 * y.sum(),
    "of labels it chooses": lambda m, x, y: of_outputs(m(x), lambda z: -picked(z.log_softmax(-1), z.argmax(-1))),
    "of two heads": lambda m, x, y: SOFTMAX["gather"](m, x, y) - picked(m.net(x.flip(0)).log_softmax(-1), y).mean(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_loss_is_refused(name):
    with pytest.raises(NoPrediction, match="calls no likelihood"):
        predict(Module(OTHERS[name]), (X, Y))


def test_a_loss_that_changes_is_no_more_taken_for_it():
    module = Module(lambda m, x, y: m.kinds[m.kind](m, x, y))
    module.kinds, module.kind = {"first": SOFTMAX["gather"], "then": OTHERS["focal"]}, "first"
    _, predictor, replica = predict(module, (X, Y))
    replica.kind = "then"
    with pytest.raises(NoPrediction, match="its gradient is another one now"):
        predictor(replica, (X, Y))


def run(step):
    class Run(Classifier):
        def training_step(self, batch, batch_idx):
            return step(self(batch[0]), batch[1])

    torch.manual_seed(0)
    callbacks = [
        FisherTraceCallback(num_samples=16, estimator="exact", also="empirical", every_n_epochs=1, on_error="raise"),
        WeightInfoCallback(num_samples=16, every_n_epochs=1, on_error="raise"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(*callbacks, max_epochs=1).fit(Run(), loader(16))
    return [{t: c for t, c in callback.history.items() if not t.endswith("overhead")} for callback in callbacks]


def test_a_run_measures_what_it_does_with_cross_entropy():
    assert CLASSES > 1
    found = run(lambda z, y: -picked(z.log_softmax(-1), y).mean())
    truth = run(F.cross_entropy)
    for one, other in zip(found, truth, strict=True):
        assert one.keys() == other.keys()
        for tag, curve in one.items():
            assert curve == [(step, pytest.approx(value, rel=1e-4, nan_ok=True)) for step, value in other[tag]], tag
