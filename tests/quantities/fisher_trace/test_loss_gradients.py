"""The trace of the loss's own gradients, where no likelihood is known: against plain autograd on single samples."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, Classifier, curves, data, trainer
from torch.utils.data import DataLoader

from lightning_info import FisherTraceCallback

X, Y = data(32).tensors
TAG = "fisher/loss_gradient_trace"


def quantiles(z, y):
    error = F.one_hot(y, CLASSES) - z
    return torch.maximum(0.9 * error, -0.1 * error).mean()


def soft_dice(z, y):
    p = z.softmax(1).gather(1, y[:, None])
    return (1 - 2 * p / (1 + p)).sum()


def contrastive(z, y):
    z = F.normalize(z)
    return (z @ z.T - (y[:, None] == y).float()).square().mean()


def batch_dice(z, y):
    p = z.softmax(1)
    return 1 - 2 * (p * F.one_hot(y, CLASSES)).sum() / (p.square().sum() + len(y))


class Net(Classifier):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])


def fit(loss, *, batch_size=8, **options):
    torch.manual_seed(1)
    module = Net(loss)
    start = copy.deepcopy(module)
    callback = FisherTraceCallback(
        **{"num_samples": 32, "draws": None, "every_n_epochs": 1, "on_error": "raise", **options}
    )
    trainer(callback, max_epochs=1).fit(module, DataLoader(list(zip(X, Y, strict=True)), batch_size))
    return callback, start, module


def squares(module, loss):
    found = []
    for n in range(len(X)):
        gradients = torch.autograd.grad(loss(module.double()(X[n : n + 1].double()), Y[n : n + 1]), module.parameters())
        found.append(sum(g.square().sum() for g in gradients))
    return torch.stack(found)


@pytest.mark.parametrize("loss", [quantiles, soft_dice])
def test_it_is_the_mean_of_the_squared_gradients_of_single_samples(loss):
    with pytest.warns(UserWarning, match="There is no fisher/trace of this run, but fisher/loss_gradient_trace"):
        callback, start, end = fit(loss)
    assert curves(callback).keys() == {TAG, f"{TAG}_stderr"}  # and nothing under the name of the Fisher information
    for (_, value), (_, error), module in zip(*curves(callback).values(), (start, end), strict=True):
        truth = squares(module, loss)
        assert value == pytest.approx(truth.mean().item(), rel=1e-4)
        assert error == pytest.approx(truth.std().item() / 32**0.5, rel=0.05)  # by Student's factor larger
    report = " ".join(callback.report().split())
    assert "no likelihood is known" in report
    assert f"are the {'sum' if loss is soft_dice else 'mean'} of those of its samples" in report


def test_some_samples_are_drawn_with_their_error():
    with pytest.warns(UserWarning, match="loss_gradient_trace"):
        (whole, *_), (part, *_) = fit(quantiles), fit(quantiles, draws=16)
    for (_, all_of_them), (_, some), (_, error) in zip(
        curves(whole)[TAG], curves(part)[TAG], curves(part)[f"{TAG}_stderr"], strict=True
    ):
        assert 0 < abs(all_of_them - some) < 4 * error


@pytest.mark.parametrize("loss", [contrastive, batch_dice])
def test_a_loss_that_is_no_mean_over_samples_is_refused_with_the_reason(loss):
    with pytest.raises(MisconfigurationException, match="neither the mean nor the sum of the losses of its samples"):
        fit(loss)


def test_a_single_sample_tells_nothing():
    with pytest.raises(MisconfigurationException, match="cannot be seen from a single sample"):
        fit(quantiles, batch_size=1)


def test_the_gradients_of_the_samples_must_add_up_as_well():
    with pytest.raises(MisconfigurationException, match="neither the mean nor the sum"):
        fit(lambda z, y: (z.mean(0) - z.mean(0).detach()).square().sum() + (z - z.detach()).sum() * (len(z) > 1))


def test_training_is_not_changed():
    torch.manual_seed(1)
    alone = Net(quantiles)
    trainer(max_epochs=1).fit(alone, DataLoader(list(zip(X, Y, strict=True)), 8))
    with pytest.warns(UserWarning, match="loss_gradient_trace"):
        _, _, module = fit(quantiles)
    assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), module.parameters(), strict=True))


def test_a_known_likelihood_has_the_trace_and_no_other():
    callback, _, _ = fit(lambda z, y: F.cross_entropy(z, y))
    assert "fisher/trace" in callback.history
    assert TAG not in callback.history
