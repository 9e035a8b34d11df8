"""Several likelihood calls in one ``training_step``: which of them count, and what they say together."""

from __future__ import annotations

import re
import types

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback, LikelihoodCall, WeightInfoCallback
from lightning_info.functional.fisher import exact_cotangents
from lightning_info.gradients import choose_engine
from lightning_info.replica.prediction import NoPrediction, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, T = 5, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, FEATURES, generator=GENERATOR, dtype=torch.float64)
TOKENS = torch.randn(N, T, FEATURES, generator=GENERATOR, dtype=torch.float64)
Y, OTHER = torch.randint(0, CLASSES, (2, N), generator=GENERATOR)
WORDS, MORE = torch.randint(0, CLASSES, (2, N, T), generator=GENERATOR)
VALUES = torch.randn(N, CLASSES, generator=GENERATOR, dtype=torch.float64)


class Module(Classifier):
    """Two heads, and a training_step of one's own: ``step(module, *batch)``."""

    def __init__(self, step):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double())
        self.head = nn.Linear(FEATURES, CLASSES).double()
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


def predict(module, batch, adapter=None):
    return predictor(adapter)(replicate(module), batch)


def predictor(adapter=None):
    return Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])), adapter)


def traces(step, batch, engine="loop", adapter=None):
    module, one = Module(step).eval(), predictor(adapter)
    replica = replicate(module)
    prediction = one(replica, batch)
    plan = choose_engine(replica, one.outputs, batch, engine)
    columns = exact_cotangents(prediction.outputs, prediction.likelihood, prediction.mask)
    return sum(plan.squared_norms(replica, one.outputs, batch, columns).values())


def plain(module, x, y, *_):
    return F.cross_entropy(module(x), y)


def of_tokens(module, x, y, *_):
    return F.cross_entropy(module(x).view(-1, CLASSES), y.flatten())


def logged_each(module, x, y):
    z = module(x)
    module.log("worst", F.cross_entropy(z, y, reduction="none").max())
    return F.cross_entropy(z, y)


def logged_head(module, x, y):
    module.log("teacher", F.mse_loss(module.head(x), module(x).detach()))
    return F.cross_entropy(module(x), y)


def logged_first(module, x, y):
    z = module(x)
    module.log("smooth", F.cross_entropy(z, y, label_smoothing=0.1))
    module.log("error", F.mse_loss(z, VALUES[: len(z)]))
    return F.cross_entropy(z, y)


def mixed(share):
    def step(module, x, y, other):
        z = module(x)
        return share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, other)

    return step


def mixed_each(module, x, y, other):
    z = module(x)
    return (0.3 * F.cross_entropy(z, y, reduction="none") + 0.7 * F.cross_entropy(z, other, reduction="none")).mean()


def mixed_tokens(module, x, y, other):
    z = module(x)
    one = F.cross_entropy(z.view(-1, CLASSES), y.flatten())
    return 0.5 * one + 0.5 * F.cross_entropy(z.view(-1, CLASSES), other.flatten())


SAME = {
    "logged for each sample": (logged_each, plain, (X, Y)),
    "logged, of another head": (logged_head, plain, (X, Y)),
    "logged with a metric": (logged_first, plain, (X, Y)),
    "two labels": (mixed(0.3), plain, (X, Y, OTHER)),
    "two labels, one of no weight": (mixed(1.0), plain, (X, Y, OTHER)),
    "two labels, each sample": (mixed_each, plain, (X, Y, OTHER)),
    "two labels, views": (mixed_tokens, of_tokens, (TOKENS, WORDS, MORE)),
}


@pytest.mark.parametrize("engine", ["loop", "func", "backpack", "backpack_vmap"])
@pytest.mark.parametrize("name", SAME)
def test_one_distribution_is_measured_whatever_else_is_called(name, engine):
    step, alone, batch = SAME[name]
    torch.testing.assert_close(traces(step, batch, engine), traces(alone, batch), rtol=1e-9, atol=0)


@pytest.mark.parametrize("step", [logged_each, logged_head, logged_first])
def test_what_is_only_logged_is_no_part_of_the_loss(step):
    prediction, expected = predict(Module(step), (X, Y)), predict(Module(plain), (X, Y))
    assert prediction.extra_loss == 0.0
    assert torch.equal(prediction.targets, Y)
    assert torch.equal(prediction.loss_gradient(), expected.loss_gradient())


@pytest.mark.parametrize(("step", "share"), [(mixed(0.3), 0.3), (mixed(1.0), 1.0), (mixed_each, 0.3)])
def test_the_loss_of_two_labels_is_that_of_both(step, share):
    module = Module(step)
    prediction = predict(module, (X, Y, OTHER))
    z = module(X).detach().requires_grad_()
    loss = share * F.cross_entropy(z, Y, reduction="sum") + (1 - share) * F.cross_entropy(z, OTHER, reduction="sum")
    torch.testing.assert_close(prediction.loss_gradient(), torch.autograd.grad(loss, z)[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(prediction.summed_loss(), loss)
    assert prediction.extra_loss == 0.0
    assert torch.equal(prediction.targets, Y if share > 0.5 else OTHER)


def test_positions_that_one_of_two_labels_leaves_out_are_predicted():
    ignored, more = WORDS.clone(), MORE.clone()
    ignored[0], ignored[1, 2:], more[0, :2] = -100, -100, -100
    prediction = predict(Module(mixed_tokens), (TOKENS, ignored, more))
    assert prediction.mask.tolist() == ((ignored != -100) | (more != -100)).tolist()
    assert not prediction.mask.all()


def test_labels_that_are_mixed_differently_leave_the_loss_unknown_and_the_trace_known():
    share = torch.linspace(0.1, 0.9, N, dtype=torch.float64)

    def step(module, x, y, other):
        z = module(x)
        one, two = (F.cross_entropy(z, labels, reduction="none") for labels in (y, other))
        return (share[: len(z)] * one + (1 - share[: len(z)]) * two).mean()

    torch.testing.assert_close(traces(step, (X, Y, OTHER)), traces(plain, (X, Y)), rtol=1e-9, atol=0)
    with pytest.raises(NoPrediction, match="weighs its 2 likelihood calls"):
        predict(Module(step), (X, Y, OTHER)).loss_gradient()


# ---- several predictions


def two_heads(module, x, y, other):
    return F.cross_entropy(module(x), y) + F.mse_loss(module.head(x), VALUES[: len(x)])


def two_kinds(module, x, y, other):
    z = module(x)
    return F.cross_entropy(z, y) + F.mse_loss(z, VALUES[: len(z)])


def two_passes(module, x, y, other):
    return F.cross_entropy(module(x), y) + F.cross_entropy(module(-x), other)


def two_thresholds(module, x, y, other):
    z = module(x)
    return F.huber_loss(z, VALUES[: len(z)]) + F.huber_loss(z, VALUES[: len(z)], delta=0.5)


def both_backward(module, x, y, other):
    module.manual_backward(F.cross_entropy(module(x), y))
    module.manual_backward(F.cross_entropy(module.head(x), other))


def adversarial(module, x, y, other):
    return F.cross_entropy(module(x), y) - 0.1 * F.cross_entropy(module.head(x), other)


@pytest.mark.parametrize("step", [two_heads, two_kinds, two_passes, two_thresholds, both_backward, adversarial])
def test_several_predictions_are_refused_with_their_list(step):
    module = Module(step)
    module.automatic_optimization = step is not both_backward
    with pytest.raises(NoPrediction, match="calls 2 likelihoods of different outputs or kinds") as refusal:
        predict(module, (X, Y, OTHER))
    assert re.search(r"\(0: \w+ of outputs \(5, 3\) \(test_likelihood_calls.py:\d+, in ", str(refusal.value))
    assert "LikelihoodCall(0)" in str(refusal.value)


def test_outputs_that_are_written_to_afterwards_are_refused():
    def step(module, x, y):
        z = module(x) * 1.0
        loss = F.cross_entropy(z, y)
        module.log("probability", z.exp_().max())
        return loss

    with pytest.raises(NoPrediction, match=r"writes to the outputs that it has given to cross_entropy \(test_"):
        predict(Module(step), (X, Y))


def test_one_of_several_is_picked():
    batch = (X, Y, OTHER)
    first, second = (traces(two_heads, batch, "auto", LikelihoodCall(number)) for number in (0, 1))
    torch.testing.assert_close(first, traces(plain, batch), rtol=1e-9, atol=0)
    alone = traces(lambda m, x, y, other: F.mse_loss(m.head(x), VALUES[: len(x)]), batch)
    torch.testing.assert_close(second, alone, rtol=1e-9, atol=0)
    prediction = predict(Module(two_heads), batch, LikelihoodCall(0))
    rest = F.mse_loss(Module(two_heads).head(X), VALUES).item()
    assert prediction.extra_loss == pytest.approx(rest)


def three_heads(module, x, y, other):
    """Classes, values, and classes of which some are ignored."""
    z, values = module(x), module.head(x)
    loss = 3 * F.cross_entropy(z, y) + 0.1 * F.l1_loss(values, VALUES[: len(x)])
    return loss + F.cross_entropy(2 * z, other, ignore_index=0)


@pytest.mark.parametrize("engine", ["loop", "func", "backpack", "backpack_vmap"])
def test_the_information_of_several_heads_is_the_sum(engine):
    batch = (X, Y, OTHER)
    parts = [traces(three_heads, batch, "loop", LikelihoodCall(number)) for number in range(3)]
    found = traces(three_heads, batch, engine, LikelihoodCall([0, 1, 2]))
    torch.testing.assert_close(found, torch.stack(parts).sum(0), rtol=1e-9, atol=0)


def test_several_heads_are_one_prediction():
    module, batch = Module(three_heads), (X, Y, OTHER)
    whole = predict(module, batch, LikelihoodCall([0, 1, 2]))
    parts = [predict(module, batch, LikelihoodCall(number)) for number in range(3)]
    assert whole.outputs.shape == (N, 3 * CLASSES)
    assert whole.positions == (N, 1 + CLASSES + 1)
    assert torch.equal(whole.mask, torch.cat([torch.ones(N, 1 + CLASSES), (OTHER != 0)[:, None]], 1).bool())
    torch.testing.assert_close(whole.summed_loss(), sum(part.summed_loss() for part in parts))
    gradient = torch.cat([part.loss_gradient() for part in parts], 1)
    torch.testing.assert_close(whole.loss_gradient(), gradient, rtol=1e-9, atol=1e-12)
    assert whole.extra_loss == 0.0
    assert whole.described == (
        "categorical (3,) and laplace (3,) and categorical (3,) outputs (9,) a sample (unit scale, by convention)"
    )


def test_a_head_with_a_predicted_variance_stands_alone():
    def step(module, x, y, other):
        values = module.head(x)
        return F.cross_entropy(module(x), y) + F.gaussian_nll_loss(values, VALUES[: len(x)], values.exp())

    with pytest.raises(NoPrediction, match="only by itself"):
        predict(Module(step), (X, Y, OTHER), LikelihoodCall([0, 1]))
    assert predict(Module(step), (X, Y, OTHER), LikelihoodCall(1)).variance is not None


def test_a_number_without_a_call_is_refused():
    with pytest.raises(NoPrediction, match=r"LikelihoodCall\(2\) is none of the 2 likelihoods .*0: cross_entropy"):
        predict(Module(two_heads), (X, Y, OTHER), LikelihoodCall(2))
    for number in (-1, 1.0, True, "", [], [0, 0], ["a", "a"], [0, -1]):
        with pytest.raises(ValueError, match="does not count calls from 0"):
            LikelihoodCall(number)


def test_a_loss_that_depends_on_none_is_refused():
    def step(module, x, y):
        z = module(x)
        module.log("a", F.cross_entropy(z, y))
        module.log("b", F.mse_loss(z, VALUES[: len(z)]))
        return z.square().mean()

    with pytest.raises(NoPrediction, match="its loss depends on none of them"):
        predict(Module(step), (X, Y))


# ---- in a run


class Mixed(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self(x)
        self.log("each", F.cross_entropy(z, y, reduction="none").max())
        return 0.25 * F.cross_entropy(z, y) + 0.75 * F.cross_entropy(z, (y + 1) % 3)


class Heads(Mixed):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(FEATURES, 1)

    def training_step(self, batch, batch_idx):
        return (
            F.cross_entropy(self(batch[0]), batch[1])
            + self.head(batch[0]).square().mean()
            + F.l1_loss(self.head(batch[0]), batch[0][:, :1])
        )


@pytest.mark.filterwarnings("ignore:.*the loss of Heads.training_step")
@pytest.mark.parametrize(
    ("kind", "adapter", "engine"),
    [
        (Mixed, None, "auto"),
        (Mixed, None, "func"),
        (Mixed, None, "backpack_vmap"),
        (Heads, LikelihoodCall(0), "auto"),
        (Heads, LikelihoodCall(1), "auto"),
        (Heads, LikelihoodCall([0, 1]), "auto"),
    ],
)
def test_a_run_is_measured_and_not_changed(kind, adapter, engine):
    options = {"num_samples": 8, "every_n_train_steps": 5, "adapter": adapter, "on_error": "raise"}
    callbacks = [FisherTraceCallback(engine=engine, **options), WeightInfoCallback(**options)]
    weights = []
    for some in (callbacks, []):
        torch.manual_seed(0)
        module = kind()
        trainer(*some, max_epochs=1).fit(module, loader())
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)
    assert all(value > 0 for _, value in callbacks[0].history["fisher/trace"])
    assert "weight_info/trace" in callbacks[1].history
