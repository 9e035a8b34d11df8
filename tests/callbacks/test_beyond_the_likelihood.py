"""What is said where the likelihood that was recognised may not be the model's: weights that it does not reach."""

from __future__ import annotations

import warnings

import pytest
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback


class Heads(Classifier):
    """A body, a head, and another head beside them."""

    def __init__(self, step):
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)))
        self.other = nn.Linear(FEATURES, CLASSES)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


def focal(logits, y):
    log_p = logits.log_softmax(-1).gather(1, y[:, None])[:, 0]
    return -((1 - log_p.exp()) ** 2 * log_p).mean()


def contrastive(features, y):
    similar = F.normalize(features) @ F.normalize(features).T
    return (similar - (y[:, None] == y).float()).square().mean()


BODY = FEATURES * 8 + 8 + 8 * CLASSES + CLASSES
OTHER = FEATURES * CLASSES + CLASSES
FIRST = FEATURES * 8 + 8
WARNED = {
    "a hand-written main loss beside an auxiliary head": (
        lambda m, x, y: focal(m(x), y) + 0.1 * F.cross_entropy(m.other(x), y),
        BODY,
    ),
    "a small hand-written loss beside the main head": (
        lambda m, x, y: F.cross_entropy(m(x), y) + 0.01 * focal(m.other(x), y),
        OTHER,
    ),
    "weights behind a detached input": (
        lambda m, x, y: F.cross_entropy(m.net[2](m.net[:2](x).detach()), y) + focal(m.net(x), y),
        FIRST,
    ),
}


def messages_of(step):
    callback = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=100, on_error="raise", summary=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback, max_epochs=1).fit(Heads(step), loader(16))
    return [str(w.message) for w in caught if "adapter=" in str(w.message)], callback.report()


@pytest.mark.parametrize("name", WARNED)
def test_weights_that_the_likelihood_does_not_reach_are_said_with_the_fix(name):
    step, beyond = WARNED[name]
    said, report = messages_of(step)
    assert len(said) == 1
    assert "FisherTraceCallback(adapter=...)" in said[0]
    assert f"unmeasured  {beyond:,} of the {BODY + (0 if beyond == FIRST else OTHER):,} weights" in report


def test_a_main_loss_that_shares_all_weights_is_told_by_its_share():
    said, _ = messages_of(lambda m, x, y: 0.01 * F.cross_entropy(m(x), y) + contrastive(m(x), y))
    assert [text for text in said if "most of the loss" in text]


UNSAID = {
    "one likelihood": lambda m, x, y: F.cross_entropy(m(x), y),
    "a penalty on the weights of the other head": lambda m, x, y: (
        F.cross_entropy(m(x), y) + 0.01 * m.other.weight.square().sum()
    ),
    "another head with a factor of 0": lambda m, x, y: F.cross_entropy(m(x), y) + 0.0 * focal(m.other(x), y),
    "another head under no_grad": lambda m, x, y: F.cross_entropy(m(x), y) + focal(m.other(x), y).detach() * 0.01,
}


@pytest.mark.parametrize("name", UNSAID)
def test_nothing_is_said_of_weights_that_train_no_prediction(name):
    said, report = messages_of(UNSAID[name])
    assert said == []
    assert "unmeasured" not in report
