"""State kept on ``self`` between batches: every pass starts from it, and training keeps its own."""

from __future__ import annotations

import copy
from collections import OrderedDict

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader, trainer
from oracle import fisher_trace_by_definition
from torch import nn

from lightning_info import FisherTraceCallback


class Centred(Classifier):
    """Takes off a running mean that every step moves: in place, or by binding it anew."""

    def __init__(self, in_place=True):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.record = {"steps": [0], "last": None}

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x - self.mean), y)
        if self.in_place:
            self.mean.mul_(0.5).add_(x.detach().mean(0).to(self.mean) + 1)
        else:
            self.mean = 0.5 * self.mean + x.detach().mean(0).to(self.mean) + 1
        self.record["steps"].append(self.record["steps"][-1] + 1)
        self.record["last"] = loss.detach()
        return loss


class BeforeUse(Centred):
    """The state is written before it is used, and the graph holds it."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            self.mean.add_(0.1)
        return F.cross_entropy(self(x * self.mean), y)


class Recurrent(Classifier):
    """Truncated backpropagation: the hidden state of a batch is where the next one begins."""

    def __init__(self):
        super().__init__(nn.Linear(8, CLASSES))
        self.cell = nn.GRUCell(FEATURES, 8)
        self.hidden = None

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.hidden is None or len(self.hidden) != len(x):
            self.hidden = x.new_zeros(len(x), 8)
        hidden = self.cell(x, self.hidden)
        self.hidden = hidden.detach()
        return F.cross_entropy(self.net(hidden), y)


class Queue(Classifier):
    """A list that grows with every step and scales the inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(len(x))
        return F.cross_entropy(self(x / len(self.seen)), y)


class Counting(Classifier):
    """State on which nothing depends."""

    def __init__(self):
        super().__init__()
        self.count, self.losses = 0, []

    def training_step(self, batch, batch_idx):
        self.count += 1
        self.losses.append(super().training_step(batch, batch_idx))
        return self.losses[-1]


def fit(module, **options):
    callback = FisherTraceCallback(
        every_n_train_steps=1, num_samples=16, estimator="exact", on_error="raise", summary=False, **options
    )
    trainer(callback, max_epochs=1).fit(module, loader(32))
    return callback


class Frozen(torch.nn.Module):
    """The net at a state."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.net(self.change(x))


@pytest.mark.parametrize("in_place", [True, False])
def test_every_pass_starts_from_the_state_of_the_point(in_place):
    torch.manual_seed(0)
    module = Centred(in_place)
    states = []
    step = module.training_step

    def spied(batch, batch_idx):
        states.append((copy.deepcopy(module.net), module.mean.clone()))
        return step(batch, batch_idx)

    module.training_step = spied
    callback = fit(module)
    taken = [states[i] for i, (_, mean) in enumerate(states)]
    history = dict(callback.history["fisher/trace"])
    x = data(32).tensors[0][:16]
    expected = []
    for net, mean in taken:
        one = sum(fisher_trace_by_definition(Frozen(net, lambda x, mean=mean: x - mean), x, "categorical").values())
        expected.append(one)
    assert any(history[0] == pytest.approx(one, rel=1e-5) for one in expected[:1])
    assert module.record["steps"] == [0, 1, 2, 3, 4]
    assert "kept on self from batch to batch (self.mean" in " ".join(callback.report().split())


@pytest.mark.parametrize(("kind", "named"), [(BeforeUse, "self.mean"), (Queue, "self.seen")])
def test_what_a_pass_changes_does_not_reach_the_next(kind, named):
    torch.manual_seed(0)
    module = kind()
    net = copy.deepcopy(module.net)
    factor = 0.1 if kind is BeforeUse else 1.0
    callback = fit(module)
    x = data(32).tensors[0][:16]
    expected = sum(fisher_trace_by_definition(Frozen(net, lambda x: factor * x), x, "categorical").values())
    assert dict(callback.history["fisher/trace"])[0] == pytest.approx(expected, rel=1e-5)
    assert f"kept on self from batch to batch ({named}" in " ".join(callback.report().split())


class FirstState(nn.Module):
    """What a :class:`Recurrent` predicts where no batch has gone before."""

    def __init__(self, module):
        super().__init__()
        self.cell, self.net = module.cell, module.net

    def forward(self, x):
        return self.net(self.cell(x, x.new_zeros(len(x), 8)))


def test_state_of_the_samples_is_what_it_is_before_the_first_step():
    torch.manual_seed(0)
    module = Recurrent()
    start = copy.deepcopy(module)
    callback = fit(module)
    x = data(32).tensors[0][:16]
    for step, net in ((0, start), (4, module)):
        expected = sum(fisher_trace_by_definition(FirstState(net), x, "categorical").values())
        assert dict(callback.history["fisher/trace"])[step] == pytest.approx(expected, rel=1e-5)
    assert "of self.hidden, with a row a sample, from what it is before the first step" in " ".join(
        callback.report().split()
    )
    assert module.hidden.shape == (8, 8)
    assert module.hidden.any()


def test_state_of_the_samples_of_another_batch_is_refused_by_name():
    module = Recurrent()
    module.hidden = torch.ones(8, 8)
    with pytest.raises(
        MisconfigurationException, match=r"(?s)state kept on self .*\(self\.hidden\).*def adapter"
    ) as told:
        fit(module)
    assert "noise" not in str(told.value)


class Synchronised(Classifier):
    """The first step gives a target network the weights of the other."""

    def __init__(self):
        super().__init__()
        self.target = copy.deepcopy(self.net)
        with torch.no_grad():
            self.target[0].weight.mul_(-1)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            aim = self.target(batch[0])
            self.target.load_state_dict(self.net.state_dict())
        return F.mse_loss(self(batch[0]), 0.5 * aim)


def test_a_first_pass_that_copies_weights_is_not_compared_with_later_ones():
    torch.manual_seed(0)
    assert fit(Synchronised()).history["fisher/trace"]


def test_state_on_which_nothing_depends_is_not_spoken_of():
    module = Counting()
    callback = fit(module)
    assert "kept on self" not in callback.report()
    assert module.count == len(module.losses) == 4


class FixedOptions(OrderedDict):
    """Like the configuration of a diffusers model: once made, nothing is written to it, not even what it holds."""

    def _refuse(self, *args, **kwargs):
        raise TypeError("you cannot write to a FixedOptions")

    update = clear = pop = setdefault = _refuse


class Configured(Counting):
    """Keeps options and state."""

    def __init__(self):
        super().__init__()
        self.options = FixedOptions(width=8)


def test_what_cannot_be_written_to_is_left_alone():
    assert np.isfinite([value for _, value in fit(Configured()).history["fisher/trace"]]).all()


class Detector(Classifier):
    def forward(self, x, y=None):
        z = self.net(x)
        return {"class": F.cross_entropy(z, y)} if self.training else [z]

    def training_step(self, batch, batch_idx):
        return sum(self(*batch).values())


class OfTwoHeads(Detector):
    """As detectors of several losses, no one likelihood in train mode either."""

    def forward(self, x, y=None):
        z = self.net(x)
        boxes = self.net(x.flip(0))
        return {"class": F.cross_entropy(z, y), "box": F.smooth_l1_loss(boxes, 0 * boxes)} if self.training else [z]


@pytest.mark.parametrize("kind", [Detector, OfTwoHeads])
def test_losses_that_exist_in_train_mode_only_are_told_with_the_fix(kind):
    with pytest.raises(MisconfigurationException, match=r"(?s)copy runs in eval mode.*`self\.training`.*def adapter"):
        fit(kind())


def test_a_fault_in_both_modes_is_not_blamed_on_the_mode():
    class Broken(Classifier):
        def training_step(self, batch, batch_idx):
            if not isinstance(self.trainer, pl.Trainer):
                raise ValueError("a fault of mine")
            return self(batch[0]).sum()

    with pytest.raises(MisconfigurationException, match="a fault of mine") as told:
        fit(Broken())
    assert "train mode" not in str(told.value)
