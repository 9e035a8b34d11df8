"""Weights that are not trained, where they are many: shared, never converted, and safe from a module that writes."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, curves, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.callbacks import session
from lightning_info.gradients import contract, plan
from lightning_info.replica.replicate import replicate


class Adapted(Classifier):
    """A frozen body and a low-rank adapter beside its last layer."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES)))
        self.net.requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, CLASSES, bias=False)

    def forward(self, x):
        h = self.net[:2](x)
        return self.net[2](h) + self.up(self.down(h))


class Teacher(Adapted):
    """A frozen layer follows a trained one in every step, as a momentum teacher does."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(16, 2, bias=False).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(self.down.weight, alpha=0.1)
        return super().training_step(batch, batch_idx)


class Thawing(Adapted):
    """Its frozen layer is changed between the steps."""

    def on_train_batch_end(self, *args):
        self.net[2].weight.data.mul_(0.9)


def callbacks(**options):
    common = {"num_samples": 8, "every_n_train_steps": 8, "on_error": "raise", "summary": False, **options}
    return [
        FisherTraceCallback(estimator="exact", **common),
        InfoPlaneCallback(bins=4, label_information="binned", **common),
        WeightInfoCallback(draws=2, **common),
    ]


def fit(module, *ours):
    trainer(*ours, max_epochs=1).fit(module, loader(64, 8))
    return {tag: points for one in ours for tag, points in curves(one).items()}


@pytest.fixture
def many_are_frozen(monkeypatch):
    monkeypatch.setattr(contract, "LARGE_FROZEN", 8)


def test_frozen_weights_are_neither_copied_nor_converted(many_are_frozen, monkeypatch):
    module, replicas, copies = Adapted(), [], []

    def seen(original, **options):
        replicas.append((options["private"], replicate(original, **options)))
        return replicas[-1][1]

    deep_copy = plan.deep_copy
    monkeypatch.setattr(session, "replicate", seen)
    monkeypatch.setattr(plan, "deep_copy", lambda value: copies.append(value) or deep_copy(value))
    fit(module, *callbacks())
    frozen, trained = module.net[0].weight.data_ptr(), module.up.weight.data_ptr()
    assert copies == []
    assert {private for private, _ in replicas} == {True, False}
    for private, replica in replicas:
        assert replica.net[0].weight.data_ptr() == frozen
        assert (replica.up.weight.data_ptr() == trained) is not private


def test_values_are_those_of_a_module_whose_frozen_weights_are_copied(monkeypatch):
    truth = fit(Adapted(), *callbacks())
    monkeypatch.setattr(contract, "LARGE_FROZEN", 8)
    found = fit(Adapted(), *callbacks())
    assert found.keys() == truth.keys()
    assert len(truth["fisher/trace"]) == 2
    for tag, points in truth.items():
        assert found[tag] == [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in points], tag


def test_a_module_that_writes_to_frozen_weights_is_trained_as_without_callbacks(many_are_frozen):
    plain, watched, ours = Teacher(), Teacher(), callbacks()
    fit(plain)
    values = fit(watched, *ours)
    assert not torch.equal(plain.teacher.weight, Teacher().teacher.weight)
    assert all(map(torch.equal, plain.state_dict().values(), watched.state_dict().values()))
    assert all(torch.tensor(values["fisher/trace"]).isfinite().flatten())


def test_step_0_has_no_value_once_frozen_weights_have_changed(many_are_frozen):
    ours = FisherTraceCallback(num_samples=24, every_n_train_steps=4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        values = fit(Thawing(), ours)
    assert [step for step, _ in values["fisher/trace"]] == [4, 8]
    assert [one for one in told if "weights that are not trained have changed" in str(one.message)]
    assert [
        step for step, _ in fit(Adapted(), FisherTraceCallback(num_samples=24, every_n_train_steps=4))["fisher/trace"]
    ] == [0, 4, 8]


def test_what_lies_in_the_memory_of_a_trained_weight_is_copied_with_it(many_are_frozen):
    module = Adapted()
    module.net[2].weight = nn.Parameter(module.net[0].weight.data.view(6, 16)[:CLASSES], requires_grad=False)
    module.net[0].weight.requires_grad_(True)
    copied = replicate(module, private=True, frozen_too=False)
    with torch.no_grad():
        copied.net[0].weight.zero_()
    assert bool(module.net[0].weight.any())
    assert not copied.net[2].weight.any()
    assert copied.net[0].bias.data_ptr() == module.net[0].bias.data_ptr()


def test_the_loss_of_the_adapter_is_what_is_measured(many_are_frozen):
    module = Adapted()
    ours = FisherTraceCallback(estimator="empirical", num_samples=8, draws=None, every_n_train_steps=4)
    values, net = fit(module, ours), Adapted()
    truth = 0.0
    for x, y in zip(*next(iter(loader(64, 8))), strict=True):
        loss = F.cross_entropy(net(x[None]), y[None])
        weights = [net.down.weight, net.up.weight]
        truth += sum(g.square().sum().item() for g in torch.autograd.grad(loss, weights)) / 8
    assert values["fisher/trace"][0] == (0, pytest.approx(truth, rel=1e-5))
