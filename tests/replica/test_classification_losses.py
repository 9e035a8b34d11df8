"""Cross entropies that a ``training_step`` writes by hand, recognised by their gradient, or not."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback, WeightInfoCallback
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


def of_each(z, loss):
    return loss(z)


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


EPSILON, CLASS_WEIGHTS, SOFT = 0.1, torch.tensor([0.5, 2.0, 0.0, 1.0]), torch.rand(N, C, generator=GENERATOR)
SOFT = SOFT / SOFT.sum(-1, keepdim=True)


def summed(log_p, q):
    return -(q * log_p).sum(-1)


def smoothed(y, epsilon=EPSILON):
    return (1 - epsilon) * one_hot(y) + epsilon / C


def each(z, y):
    return F.cross_entropy(z, y, reduction="none")


WITH_OPTIONS = {
    "smoothed mean": (
        lambda m, x, y: summed(m(x).log_softmax(-1), smoothed(y)).mean(),
        lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=EPSILON),
    ),
    "smoothed sum, rest to the others": (
        lambda m, x, y: summed(m(x).log_softmax(-1), (1 - 0.3) * one_hot(y) + 0.1 * (1 - one_hot(y))).sum(),
        lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.4, reduction="sum"),
    ),
    "smoothed, another factor": (
        lambda m, x, y: 7 * summed(m(x).log_softmax(-1), smoothed(y)).sum() / len(y) ** 1.5,
        lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=EPSILON),
    ),
    "probabilities": (
        lambda m, x, y: summed(m(x).log_softmax(-1), SOFT[: len(x)]).mean(),
        lambda m, x, y: F.cross_entropy(m(x), SOFT[: len(x)]),
    ),
    "two labels of a mixed sample": (
        lambda m, x, y: of_outputs(m(x).log_softmax(-1), lambda p: -0.7 * picked(p, y) - 0.3 * picked(p, y.flip(0))),
        lambda m, x, y: F.cross_entropy(m(x), 0.7 * one_hot(y).float() + 0.3 * one_hot(y.flip(0)).float()),
    ),
    "class weights": (
        lambda m, x, y: -(CLASS_WEIGHTS[y] * picked(m(x).log_softmax(-1), y)).mean(),
        lambda m, x, y: (CLASS_WEIGHTS[y] * each(m(x), y)).mean(),
    ),
    "class weights, mean over them": (
        lambda m, x, y: -(CLASS_WEIGHTS[y] * picked(m(x).log_softmax(-1), y)).sum() / CLASS_WEIGHTS[y].sum(),
        lambda m, x, y: (CLASS_WEIGHTS[y] * each(m(x), y)).sum() / CLASS_WEIGHTS[y].sum(),
    ),
    "weights of the samples": (
        lambda m, x, y: (x[:, 0].square() * summed(m(x).log_softmax(-1), smoothed(y))).sum(),
        lambda m, x, y: (x[:, 0].square() * F.cross_entropy(m(x), y, label_smoothing=EPSILON, reduction="none")).mean(),
    ),
    "binary, probabilities": (
        lambda m, x, y: of_outputs(m(x), lambda z: F.softplus(z) - SOFT[: len(x)] * z),
        lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), SOFT[: len(x)]),
    ),
    "binary, one output, positive weight": (
        lambda m, x, y: of_outputs(m(x)[:, 0], lambda z: -3 * (y > 1) * F.logsigmoid(z) - (y <= 1) * F.logsigmoid(-z)),
        lambda m, x, y: of_outputs(
            m(x)[:, 0],
            lambda z: (1 + 2.0 * (y > 1)) * F.binary_cross_entropy_with_logits(z, (y > 1).float(), reduction="none"),
        ),
    ),
}


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_smoothing_weights_and_probabilities_are_read_as_with_the_known_functions(name):
    by_hand, known = WITH_OPTIONS[name]
    outputs = 1 if "one output" in name else C
    module = Module(by_hand, outputs)
    found, predictor, replica = predict(module, (X, Y))
    truth, known_predictor, known_replica = predict(Module(known, outputs), (X, Y))
    assert "recognised by its gradient" in found.described
    assert ("weights" in found.described) == ("weight" in name)
    for size in (N, 5, 1):  # means of other numbers, too
        with torch.random.fork_rng():
            parts = predictor(replica, (X[:size], Y[:size])), known_predictor(known_replica, (X[:size], Y[:size]))
        found, truth = parts
        assert found.likelihood == truth.likelihood
        assert torch.equal(found.outputs.flatten(), truth.outputs.flatten())
        assert found.targets.dtype == truth.targets.dtype
        mask = torch.ones(truth.positions, dtype=torch.bool) if truth.mask is None else truth.mask
        assert torch.equal(torch.ones_like(mask) if found.mask is None else found.mask.reshape(mask.shape), mask)
        there = found.targets.reshape(truth.targets.shape)[mask]
        torch.testing.assert_close(there, truth.targets[mask], atol=1e-5, rtol=1e-5)
        expected = truth.loss_gradient()
        torch.testing.assert_close(found.loss_gradient().reshape(expected.shape), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_its_loss_is_that_of_the_formula():
    found, _, replica = predict(Module(WITH_OPTIONS["probabilities"][0]), (X, Y))
    torch.testing.assert_close(found.loss_gradient(), (replica(X).softmax(-1) - SOFT).double(), atol=1e-6, rtol=1e-5)


def test_labels_that_are_mixed_in_some_batches_only_are_probabilities_from_then_on():
    def mixed(m, x, q):
        return summed(m(x).log_softmax(-1), q).mean()

    plain, predictor, replica = predict(Module(mixed), (X, one_hot(Y).float()))
    assert torch.equal(plain.targets, Y)
    later = predictor(replica, (X, SOFT))
    torch.testing.assert_close(later.targets, SOFT)
    again = predictor(replica, (X[:3], one_hot(Y[:3]).float()))
    torch.testing.assert_close(again.targets, one_hot(Y[:3]).float())


OTHERS = {
    "focal": lambda m, x, y: of_outputs(picked(m(x).log_softmax(-1), y), lambda p: -((1 - p.exp()) ** 2) * p),
    "focal with class weights": lambda m, x, y: (
        CLASS_WEIGHTS[y] * of_each(picked(m(x).log_softmax(-1), y), lambda p: -((1 - p.exp()) ** 2) * p)
    ).mean(),
    "binary focal": lambda m, x, y: of_outputs(
        m(x), lambda z: (z.sigmoid() - one_hot(y)).square() * (F.softplus(z) - one_hot(y) * z)
    ),
    "focal, its weight without a graph": lambda m, x, y: of_outputs(
        picked(m(x).log_softmax(-1), y), lambda p: -(1 - p.detach().exp()) * p
    ),
    "poly": lambda m, x, y: of_outputs(picked(m(x).log_softmax(-1), y), lambda p: -p + 1 - p.exp()),
    "smoothed, with a temperature": lambda m, x, y: summed((m(x) / 2).log_softmax(-1), smoothed(y)).mean(),
    "distilled at a temperature": lambda m, x, y: (
        0.5 * summed((m(x) / 2).log_softmax(-1), SOFT).mean() + 0.5 * SOFTMAX["gather"](m, x, y)
    ),
    "of its own probabilities, sharpened": lambda m, x, y: of_outputs(
        m(x).log_softmax(-1), lambda p: summed(p, 0.5 * one_hot(y) + 0.5 * (2 * p.detach()).softmax(-1))
    ),
    "probabilities below 0": lambda m, x, y: summed(m(x).log_softmax(-1), smoothed(y, 1.5) - 0.1).mean(),
    "not one in sum": lambda m, x, y: of_outputs(m(x), lambda z: z.logsumexp(-1) - 0.9 * picked(z, y)),
    "confidence punished": lambda m, x, y: of_outputs(
        m(x).log_softmax(-1), lambda p: -picked(p, y) + 0.1 * (p.exp() * p).sum(-1)
    ),
    "hinge": lambda m, x, y: of_outputs(m(x), lambda z: F.relu(1 - (2 * one_hot(y) - 1) * z)),
    "squared error of the softmax": lambda m, x, y: (m(x).softmax(-1) - one_hot(y)).square().sum(-1).mean(),
    "squared error of sigmoids": lambda m, x, y: (m(x).sigmoid() - one_hot(y)).square().mean(),
    "generalised": lambda m, x, y: of_outputs(picked(m(x).log_softmax(-1), y), lambda p: 1 - (0.7 * p).exp()),
    "of sampled classes": lambda m, x, y: of_outputs(m(x), lambda z: z[:, :2].logsumexp(-1) - picked(z, y % 2)),
    "of drawn classes": lambda m, x, y: of_outputs(
        m(x), lambda z: z[:, torch.rand(C).topk(2).indices].logsumexp(-1) - picked(z, y)
    ),
    "contrastive": lambda m, x, y: of_outputs(m(x) @ m(x.flip(0)).T, lambda z: z.logsumexp(-1) - z.diagonal()),
    "over the samples of a class": lambda m, x, y: of_outputs(m(x), lambda z: z.logsumexp(0) - z.mean(0)),
    "of both axes": lambda m, x, y: (
        0.5 * SOFTMAX["gather"](m, x, y) + of_outputs(m(x), lambda z: z.logsumexp(0) - z.mean(0))
    ),
    "weighted by rewards": lambda m, x, y: -(picked(m(x).log_softmax(-1), y) * (y - 1.5)).mean(),
    "with a temperature": lambda m, x, y: -picked((m(x) / 2).log_softmax(-1), y).mean(),
    "with a penalty": lambda m, x, y: SOFTMAX["gather"](m, x, y) + 1e-3 * m.net[0].weight.square().sum(),
    "with a penalty of the logits": lambda m, x, y: SOFTMAX["gather"](m, x, y) + 1e-3 * m(x).square().sum(),
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


def test_logits_between_samples_are_refused_as_those_of_cross_entropy_are():
    """They are the module's, as in CLIP: each row is a cross entropy over the samples of the batch."""

    class Pairs(Module):
        def forward(self, x):
            return self.net(x) @ self.net(x + 1).T

    own = lambda x: torch.arange(len(x))  # noqa: E731
    steps = (
        lambda m, x, y: -picked(m(x).log_softmax(-1), own(x)).mean(),
        lambda m, x, y: F.cross_entropy(m(x), own(x)),
    )
    for step in steps:
        with pytest.raises(MisconfigurationException, match="must not depend on the others of its batch"):
            trainer(FisherTraceCallback(on_error="raise"), max_epochs=1).fit(Pairs(step), loader(16))


def test_a_module_that_gives_one_logit_a_sample():
    class Squeezed(Module):
        def forward(self, x):
            return self.net(x).squeeze(-1)

    y = (Y > 1).float()
    step = lambda m, x, y: of_outputs(m(x), lambda z: F.softplus(z) - y * z)  # noqa: E731
    found, *_ = predict(Squeezed(step, 1), (X, y))
    truth, *_ = predict(Squeezed(lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y), 1), (X, y))
    assert found.likelihood == "bernoulli"
    assert torch.equal(found.targets, truth.targets)
    torch.testing.assert_close(found.loss_gradient(), truth.loss_gradient())


def test_a_batch_that_is_left_out_completely_counts_nothing():
    step = lambda m, x, y: -(CLASS_WEIGHTS[y] * picked(m(x).log_softmax(-1), y)).mean()  # noqa: E731
    _, predictor, replica = predict(Module(step), (X, Y))
    found = predictor(replica, (X, torch.full((N,), 2)))  # of weight 0
    assert not found.mask.any()
    assert not found.loss_gradient().any()


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


RUNS = {
    "labels": (lambda z, y: -picked(z.log_softmax(-1), y).mean(), F.cross_entropy),
    "smoothed": (
        lambda z, y: -0.8 * picked(z.log_softmax(-1), y).mean() - 0.2 * z.log_softmax(-1).mean(),
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2),
    ),
    "weighted": (
        lambda z, y: -((1 + y) * picked(z.log_softmax(-1), y)).mean(),
        lambda z, y: ((1 + y) * each(z, y)).mean(),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_measures_what_it_does_with_cross_entropy(name):
    assert CLASSES > 1
    found, truth = map(run, RUNS[name])
    for one, other in zip(found, truth, strict=True):
        assert one.keys() == other.keys()
        for tag, curve in one.items():
            if "gibbs" in tag or "pac_bayes" in tag:  # of fewer draws where each takes a pass of its own
                continue
            assert curve == [(step, pytest.approx(value, rel=1e-4, nan_ok=True)) for step, value in other[tag]], tag
