import re
import types
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, data
from torch import nn

from lightning_info.functional.likelihoods import Huber
from lightning_info.replica.prediction import NoPrediction, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

X, Y = data(8).tensors
LABELS = (torch.arange(8 * CLASSES).reshape(8, CLASSES) % 2).float()
SOFT = torch.linspace(-1, 1, 8 * CLASSES).reshape(8, CLASSES).softmax(1)
WEIGHT = torch.tensor([0.2, 1.0, 3.0])
TARGETS = torch.linspace(-2, 2, 8 * CLASSES).reshape(8, CLASSES)


def module(step, net=None, **attributes):
    """A Classifier with another training_step, a function ``(self, batch, ...)``."""
    made = type("Custom", (Classifier,), {"training_step": step})(net)
    vars(made).update(attributes)
    return made


def stand_in(**attributes):
    return StandInTrainer(types.SimpleNamespace(**{"optimizers": [0], "lr_scheduler_configs": [], **attributes}))


def predict(pl_module, batch, adapter=None):
    return Predictor(stand_in(), adapter)(replicate(pl_module), batch)


def loss_step(loss):
    """A training_step that gives ``loss(outputs, targets)``."""
    return lambda self, batch, batch_idx: loss(self(batch[0]), batch[1])


# ---- which likelihood, and its gradient against the user's own loss


CALLS = {
    "cross_entropy": (partial(F.cross_entropy), Y, "categorical", 1.0),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), Y, "categorical", 1.0),
    "keywords": (lambda z, y: F.cross_entropy(input=z, target=y, reduction="sum"), Y, "categorical", 1.0),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), Y, "categorical", 1.0),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), Y, "categorical", 1.0),
    "weights and smoothing": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), Y, "categorical", 1.0),
    "ignored class": (nn.CrossEntropyLoss(ignore_index=1), Y, "categorical", 1.0),
    "soft targets": (nn.CrossEntropyLoss(WEIGHT), SOFT, "categorical", 1.0),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), LABELS, "bernoulli", 1.0),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), LABELS, "bernoulli", 1.0),
    "weight and pos_weight": (nn.BCEWithLogitsLoss(SOFT, pos_weight=WEIGHT), LABELS, "bernoulli", 1.0),
    # the likelihood of unit variance is half the squared error
    "MSELoss": (nn.MSELoss(), TARGETS, "gaussian", 0.5),
    "mse_loss": (partial(F.mse_loss, reduction="none"), TARGETS, "gaussian", 0.5),
    "mse_loss, target first": (lambda z, y: F.mse_loss(y, z), TARGETS, "gaussian", 0.5),
}


def summed(loss, z, y):
    """The user's loss as a sum over samples, whatever reduction it is written with."""

    class Sum(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **{**(kwargs or {}), "reduction": "sum"})

    with Sum():
        return loss(z, y)


@pytest.mark.parametrize("name", CALLS)
def test_outputs_likelihood_and_gradient_of_a_loss(name):
    loss, targets, likelihood, factor = CALLS[name]
    pl_module = module(loss_step(lambda z, y: loss(z, y).mean()))
    prediction = predict(pl_module, (X, targets))
    assert prediction.likelihood == likelihood
    assert prediction.extra_loss == 0.0
    logits = pl_module.eval()(X).detach()
    assert torch.equal(prediction.outputs, logits)

    z = logits.double().requires_grad_()
    (expected,) = torch.autograd.grad(factor * summed(double(loss), z, double(targets)), z)
    found = prediction.loss_gradient()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().sum() > 0


def double(value):
    if isinstance(value, nn.Module):
        return value.double()
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("positions", [(5,), (2, 3)])
def test_the_class_axis_goes_last_and_ignored_positions_are_masked(positions):
    targets = torch.randint(CLASSES, (8, *positions))
    targets[0], targets[1, 0] = -1, -1
    loss = nn.CrossEntropyLoss(WEIGHT, ignore_index=-1, label_smoothing=0.1)
    net = nn.Sequential(nn.Linear(FEATURES, CLASSES * targets[0].numel()), nn.Unflatten(1, (CLASSES, *positions)))
    pl_module = module(loss_step(loss), net)
    prediction = predict(pl_module, (X, targets))
    logits = net(X).detach()
    assert torch.equal(prediction.outputs, logits.movedim(1, -1))
    assert torch.equal(prediction.mask, targets != -1)

    z = logits.double().requires_grad_()
    loss = nn.CrossEntropyLoss(WEIGHT.double(), ignore_index=-1, label_smoothing=0.1, reduction="sum")
    (expected,) = torch.autograd.grad(loss(z, targets), z)
    found = prediction.loss_gradient()
    torch.testing.assert_close(found, expected.movedim(1, -1), rtol=1e-6, atol=1e-9)
    assert found[~prediction.mask].abs().sum() == 0


def test_the_default_ignore_index_is_masked_and_soft_targets_have_no_mask():
    targets = Y.clone()
    targets[3] = -100
    assert torch.equal(predict(Classifier(), (X, targets)).mask, targets != -100)
    assert predict(Classifier(), (X, SOFT)).mask is None
    assert predict(module(loss_step(F.mse_loss)), (X, TARGETS)).mask is None


def test_gradients_of_the_outputs_reach_the_replicas_parameters():
    pl_module = module(loss_step(lambda z, y: F.cross_entropy(z, y)))
    replica = replicate(pl_module)
    outputs = Predictor(stand_in())(replica, (X, Y)).outputs
    gradients = torch.autograd.grad(outputs.sum(), list(replica.parameters()))
    expected = torch.autograd.grad(pl_module(X).sum(), list(pl_module.parameters()))
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted)


# ---- a batch of one


@pytest.mark.parametrize(
    ("squeeze", "loss", "outputs", "target"),
    [
        (lambda z: z.squeeze(0), F.cross_entropy, CLASSES, lambda y: y.squeeze(0)),
        (lambda z: z.squeeze(), F.mse_loss, 1, lambda y: y.float().squeeze()),
        (lambda z: z.squeeze(), F.mse_loss, CLASSES, lambda y: F.one_hot(y, CLASSES).float().squeeze()),
        (lambda z: z.squeeze(), F.binary_cross_entropy_with_logits, 1, lambda y: y.float().squeeze()),
    ],
)
def test_a_batch_of_one_that_was_squeezed_has_its_sample_axis_back(squeeze, loss, outputs, target):
    def step(self, batch, batch_idx):
        return loss(squeeze(self(batch[0])), target(batch[1]))

    pl_module = module(step, nn.Linear(FEATURES, outputs))
    one = predict(pl_module, (X[:1], Y[:1] % 2))
    three = predict(pl_module, (X[:3], Y[:3] % 2))
    assert one.outputs.shape == (1, *three.outputs.shape[1:])
    torch.testing.assert_close(one.outputs, three.outputs[:1])
    torch.testing.assert_close(one.loss_gradient(), three.loss_gradient()[:1])


# ---- what else a training_step does


def with_metric(self, batch, batch_idx):
    logits = self(batch[0])
    with torch.no_grad():
        self.log("error", F.mse_loss(logits, TARGETS[: len(logits)]))
        self.log("loss", F.cross_entropy(logits, batch[1]))
    return F.cross_entropy(logits, batch[1])


def with_loss_between_data(self, batch, batch_idx):
    self.log("spread", F.mse_loss(batch[0], torch.zeros_like(batch[0])))
    return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("step", [with_metric, with_loss_between_data])
def test_a_likelihood_that_trains_nothing_is_passed_over(step):
    prediction = predict(module(step), (X, Y))
    assert prediction.likelihood == "categorical"
    assert prediction.extra_loss == 0.0


def test_a_penalty_is_told_as_extra_loss():
    def step(self, batch, batch_idx):
        penalty = 0.5 * sum(p.square().sum() for p in self.parameters())
        return {"loss": F.cross_entropy(self(batch[0]), batch[1]) + penalty}

    pl_module = module(step)
    expected = 0.5 * sum(p.square().sum().item() for p in pl_module.parameters())
    assert predict(pl_module, (X, Y)).extra_loss == pytest.approx(expected, rel=1e-5)


def loss_of(self, batch):
    return F.cross_entropy(self(batch[0]), batch[1])


FORMS = {
    "(batch)": lambda self, batch: loss_of(self, batch),
    "(batch, batch_idx)": lambda self, batch, batch_idx: loss_of(self, batch) + 0 * batch_idx,
    "(batch, _)": lambda self, batch, _: loss_of(self, batch) + 0 * _,
    "(data, nb)": lambda self, data, nb: loss_of(self, data) + 0 * nb,
    "(batch, *args)": lambda self, batch, *args: loss_of(self, batch) + 0 * args[0],
    "(batch, **kwargs)": lambda self, batch, **kwargs: loss_of(self, batch),
    "(batch, *, batch_idx)": lambda self, batch, *, batch_idx: loss_of(self, batch) + 0 * batch_idx,
    "(batch, batch_idx, dataloader_idx)": lambda self, batch, batch_idx, dataloader_idx: (
        loss_of(self, batch) + 0 * dataloader_idx
    ),
    "(batch, batch_idx, extra=1)": lambda self, batch, batch_idx, extra=1: loss_of(self, batch) * extra,
    "dict returned": lambda self, batch, batch_idx: {"loss": loss_of(self, batch), "more": 1},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_training_step(name):
    pl_module = module(FORMS[name])
    prediction = predict(pl_module, (X, Y))
    assert torch.equal(prediction.outputs, pl_module(X))
    assert prediction.extra_loss == 0.0


@dataclass
class Pair:
    x: Any
    y: Any


BATCHES = {
    "tuple": ((X, Y), lambda b: b),
    "dict": ({"x": X, "y": Y}, lambda b: (b["x"], b["y"])),
    "nested": ({"x": [X, {"y": Y}], "scale": torch.ones(())}, lambda b: (b["x"][0], b["x"][1]["y"])),
    "dataclass": (Pair(X, Y), lambda b: (b.x, b.y)),
    "with strings": ({"name": ["a"] * 8, "x": X, "y": Y}, lambda b: (b["x"], b["y"])),
}


@pytest.mark.parametrize("name", BATCHES)
def test_every_form_of_batch(name):
    batch, read = BATCHES[name]
    pl_module = module(lambda self, batch, batch_idx: loss_of(self, read(batch)))
    assert torch.equal(predict(pl_module, batch).outputs, pl_module(X))


def manual(backward):
    def step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        optimizer.zero_grad()
        backward(self, loss)
        optimizer.step()
        self.lr_schedulers()

    return step


@pytest.mark.parametrize(
    "backward",
    [
        lambda self, loss: loss.backward(),
        lambda self, loss: torch.Tensor.backward(loss, retain_graph=False),
        lambda self, loss: self.manual_backward(loss),
    ],
)
def test_manual_optimisation_leaves_graph_and_gradients_alone(backward):
    pl_module = module(manual(backward))
    replica = replicate(pl_module)
    outputs = Predictor(stand_in())(replica, (X, Y)).outputs
    assert all(p.grad is None for p in (*replica.parameters(), *pl_module.parameters()))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(outputs.sum(), list(replica.parameters())))


def test_a_training_step_that_sets_train_mode_is_run_in_eval_mode():
    def step(self, batch, batch_idx):
        self.train()
        self.net.train(True)
        return F.cross_entropy(self(batch[0]), batch[1])

    pl_module = module(step, Classifier(dropout=0.5, batch_norm=True).net)
    replica = replicate(pl_module)
    statistics = replica.net[1].running_mean.clone()
    outputs = Predictor(stand_in())(replica, (X, Y)).outputs
    assert torch.equal(outputs, pl_module.eval()(X))
    assert torch.equal(replica.net[1].running_mean, statistics)


def test_the_batch_is_not_changed_by_a_training_step_that_edits_it():
    def step(self, batch, batch_idx):
        batch[0].mul_(2)
        batch.append("more")
        return F.cross_entropy(self(batch[0]), batch[1])

    batch = [X.clone(), Y]
    pl_module = module(step)
    for _ in range(2):
        torch.testing.assert_close(predict(pl_module, batch).outputs, pl_module(2 * X))
    assert torch.equal(batch[0], X)
    assert len(batch) == 2


# ---- the weights, which the replica shares, are safe


WRITES = {
    "method": lambda self, w: w.mul_(2),
    "view": lambda self, w: w.view(-1)[:3].zero_(),
    "data": lambda self, w: w.data.copy_(w + 1),
    "operator": lambda self, w: w.__imul__(2),
    "item": lambda self, w: w.__setitem__(0, 1.0),
    "out": lambda self, w: torch.mul(w, 2, out=w.data),
    "foreach": lambda self, w: torch._foreach_mul_([w.data], 2),
    "init": lambda self, w: nn.init.zeros_(w),
    "average": lambda self, w: [p.lerp_(torch.zeros_like(p), 0.1) for p in self.parameters()],
    "inplace=True": lambda self, w: F.relu(w.data, inplace=True),
    "optimiser": lambda self, w: descend(self),
}


def descend(self):
    optimizer = torch.optim.SGD(self.parameters(), 0.1)
    for parameter in self.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def writing(name):
    """A module whose training_step writes to a weight, and its state before."""

    def step(self, batch, batch_idx):
        with torch.no_grad():
            WRITES[name](self, self.net[0].weight)
        return F.cross_entropy(self(batch[0]), batch[1])

    pl_module = module(step)
    return pl_module, {key: value.clone() for key, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("name", WRITES)
def test_a_training_step_that_writes_to_the_weights_is_refused_before_it_does(name):
    pl_module, before = writing(name)
    with pytest.raises(NoPrediction, match="changes the module's parameters"):
        predict(pl_module, (X, Y))
    assert all(torch.equal(value, before[key]) for key, value in pl_module.state_dict().items())


@pytest.mark.parametrize("name", WRITES)
def test_a_training_step_may_write_to_weights_that_are_not_shared(name):
    pl_module, before = writing(name)
    prediction = Predictor(stand_in(), shared=False)(replicate(pl_module, private=True), (X, Y))
    assert not torch.equal(prediction.outputs, pl_module(X))
    assert all(torch.equal(value, before[key]) for key, value in pl_module.state_dict().items())


def test_an_embedding_that_renormalises_itself_leaves_the_users_weights_alone():
    net = nn.Sequential(nn.Embedding(10, FEATURES, max_norm=0.1), nn.Linear(FEATURES, CLASSES))
    pl_module = module(loss_step(F.cross_entropy), net)
    before = net[0].weight.detach().clone()
    with suppress(NoPrediction):
        predict(pl_module, (torch.arange(8), Y))
    assert torch.equal(net[0].weight, before)


def test_requires_grad_and_buffers_may_be_changed_on_the_replica():
    def step(self, batch, batch_idx):
        self.net[0].requires_grad_(False)
        self.average.mul_(0.5)
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.net[0].requires_grad_(True)
        return loss

    pl_module = module(step)
    pl_module.register_buffer("average", torch.ones(2))
    assert predict(pl_module, (X, Y)).outputs.requires_grad
    assert torch.equal(pl_module.average, torch.ones(2))


# ---- what is refused, and how


def two_likelihoods(self, batch, batch_idx):
    z = self(batch[0])
    return F.cross_entropy(z, batch[1]) + F.mse_loss(z, TARGETS)


def by_hand(self, batch, batch_idx):
    p = self(batch[0]).softmax(1).gather(1, batch[1][:, None])
    return -((1 - p) ** 2 * p.log()).mean()


def against_itself(self, batch, batch_idx):
    return F.mse_loss(self(batch[0]), self(batch[0] + 1))


def half_the_batch(self, batch, batch_idx):
    return F.cross_entropy(self(batch[0])[:4], batch[1][:4])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (two_likelihoods, "calls 2 likelihoods"),
        (by_hand, "calls no likelihood that is known here, such as cross_entropy"),
        (against_itself, "compares two quantities that both depend on the parameters"),
        (half_the_batch, "the outputs have shape (4, 3) for 8 samples"),
    ],
)
def test_an_unclear_training_step_is_refused(step, message):
    with pytest.raises(NoPrediction, match=re.escape(message)):
        predict(module(step), (X, Y))


def test_an_error_of_the_training_step_is_the_users_to_see():
    def step(self, batch, batch_idx):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        predict(module(step), (X, Y))


# ---- adapters


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [(None, Y), ("categorical", Y), ("categorical", SOFT), ("bernoulli", LABELS), ("gaussian", TARGETS)],
)
def test_an_adapter_takes_the_training_steps_place(likelihood, targets):
    def adapter(module, batch):
        outputs = module(batch[0])
        return (outputs, batch[1]) if likelihood is None else (outputs, batch[1], likelihood)

    pl_module = module(by_hand)
    prediction = predict(pl_module, (X, targets), adapter)
    assert prediction.likelihood == (likelihood or "categorical")
    assert torch.equal(prediction.outputs, pl_module(X))
    loss, factor = {
        "categorical": (F.cross_entropy, 1.0),
        "bernoulli": (F.binary_cross_entropy_with_logits, 1.0),
        "gaussian": (F.mse_loss, 0.5),
    }[prediction.likelihood]
    z = pl_module(X).detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(factor * loss(z, double(targets), reduction="sum"), z)
    torch.testing.assert_close(prediction.loss_gradient(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [("laplace", F.l1_loss), ("huber", F.huber_loss), ("poisson", F.poisson_nll_loss), (Huber(1.0), F.huber_loss)],
)
def test_an_adapter_names_any_likelihood(likelihood, expected):
    def adapter(module, batch):
        return module(batch[0]), batch[1], likelihood

    prediction = predict(module(by_hand), (X, LABELS), adapter)
    assert prediction.likelihood == likelihood
    z = prediction.outputs.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(expected(z, LABELS.double(), reduction="sum"), z)
    torch.testing.assert_close(prediction.loss_gradient(), gradient)


def test_an_adapter_without_targets_has_outputs_but_no_loss_gradient():
    prediction = predict(Classifier(), (X, Y), lambda module, batch: (module(batch[0]), None, "categorical"))
    assert prediction.outputs.shape == (8, CLASSES)
    assert prediction.mask is None
    with pytest.raises(NoPrediction, match="no targets"):
        prediction.loss_gradient()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda z: z, "a tensor of shape (8, 3) instead of (outputs, targets)"),
        (lambda z: (z,), "tuple instead of (outputs, targets)"),
        (lambda z: (z.argmax(1), Y), "outputs are a tensor of shape (8,); they must be a floating-point tensor"),
        (lambda z: ([z], Y), "outputs are list"),
        (lambda z: (z, "labels"), "targets are str"),
        (lambda z: (z, Y, "multinomial"), "'multinomial'; choose one of categorical, bernoulli, gaussian"),
        (lambda z: (z, TARGETS), 'for example (outputs, targets, "gaussian")'),
        (lambda z: (z, None), "leave the likelihood open"),
        (lambda z: (z[:5], Y, "categorical"), "shape (5, 3) for 8 samples"),
        (lambda z: (z[:, 0], Y, "categorical"), "have no class axis"),
    ],
)
def test_an_adapter_that_returns_something_else_is_told_what_to_return(returned, message):
    with pytest.raises(NoPrediction, match=re.escape(message)):
        predict(Classifier(), (X, Y), lambda module, batch: returned(module(batch[0])))


def test_gaussian_targets_of_another_shape_are_told():
    prediction = predict(Classifier(), (X, Y), lambda module, batch: (module(batch[0]), batch[0], "gaussian"))
    with pytest.raises(NoPrediction, match=re.escape("(8, 6) do not match outputs of shape (8, 3)")):
        prediction.loss_gradient()
