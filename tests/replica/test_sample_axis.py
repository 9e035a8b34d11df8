"""Which leaves carry samples is told by experiment; modules that mix samples are refused, whatever callback asks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_info import FisherTraceCallback, InfoPlaneCallback

N, SIZE, T = 24, 8, 8
CLASSES = 3


class Module(pl.LightningModule):
    def __init__(self, step, net):
        super().__init__()
        self.step, self.net = step, net

    def training_step(self, batch, batch_idx):
        return self.step(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@dataclass
class Fields:
    mean: Tensor
    x: Tensor
    y: Tensor


class Named(NamedTuple):
    x: Tensor
    mean: Tensor
    y: Tensor


X, Y = torch.randn(N, SIZE, generator=torch.Generator().manual_seed(0)), torch.arange(N) % CLASSES
WORDS = torch.randn(N, T, 4, generator=torch.Generator().manual_seed(1))
MEAN, TABLE = torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, T * 4).reshape(T, 4)
PROTOTYPES = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def pair(i):
    return X[i], Y[i]


def run(step, collate, *, net=None, size=SIZE, callback=None, **options):
    """The exact trace at s = 0, in order of the samples 0, 1, ..."""
    callback = callback or FisherTraceCallback(
        "exact", every_n_train_steps=100, on_error="raise", summary=False, **{"num_samples": N, **options}
    )
    loader = DataLoader(range(N), size, collate_fn=lambda numbers: collate(torch.tensor(numbers)))
    trainer(callback, max_epochs=1).fit(Module(step, net or nn.Linear(SIZE, CLASSES)), loader)
    return callback


def trace(callback):
    return callback.history["fisher/trace"][0][1]


def truth(net, logits, samples=N):
    """One label of one position at a time, plain autograd in float64."""
    net = copy.deepcopy(net).double()
    parameters, total = list(net.parameters()), 0.0
    for n in range(samples):
        for log_p in logits(net, n).reshape(-1, CLASSES).log_softmax(-1):
            for value in log_p:
                gradients = torch.autograd.grad(value, parameters, retain_graph=True)
                total += value.exp().item() * sum(g.square().sum().item() for g in gradients)
    return total / samples


def centred(net, n):
    return net((X[n] - MEAN).double())


CENTRED = {
    "tuple": (lambda m, b: F.cross_entropy(m(b[1] - b[0]), b[2]), lambda i: (MEAN, X[i], Y[i])),
    "list": (lambda m, b: F.cross_entropy(m(b[0] - b[1]), b[2]), lambda i: [X[i], MEAN, Y[i]]),
    "dict": (
        lambda m, b: F.cross_entropy(m(b["x"] - b["mean"]), b["y"]),
        lambda i: {"mean": MEAN, "x": X[i], "y": Y[i]},
    ),
    "nested": (
        lambda m, b: F.cross_entropy(m(b[0]["x"] - b[1][0]), b[0]["y"]),
        lambda i: ({"x": X[i], "y": Y[i]}, [MEAN]),
    ),
    "dataclass": (lambda m, b: F.cross_entropy(m(b.x - b.mean), b.y), lambda i: Fields(MEAN, X[i], Y[i])),
    "named tuple": (lambda m, b: F.cross_entropy(m(b.x - b.mean), b.y), lambda i: Named(X[i], MEAN, Y[i])),
    "array": (
        lambda m, b: F.cross_entropy(m(b[0] - torch.from_numpy(b[1])), b[2]),
        lambda i: (X[i], MEAN.numpy(), Y[i]),
    ),
    "arrays of samples": (
        lambda m, b: F.cross_entropy(m(torch.from_numpy(b[0]).to(b[1]) - b[1]), b[2]),
        lambda i: (X[i].numpy().astype(np.float64), MEAN, Y[i]),
    ),
    "samples on axis 1": (
        lambda m, b: F.cross_entropy(m(b[0].T - b[1]), b[2]),
        lambda i: (X[i].T.contiguous(), MEAN, Y[i]),
    ),
}


@pytest.mark.parametrize("form", CENTRED)
def test_what_belongs_to_the_batch_stays_whole_though_it_is_as_long(form):
    step, collate = CENTRED[form]
    net = nn.Linear(SIZE, CLASSES)
    found = run(step, collate, net=net)
    assert trace(found) == pytest.approx(truth(net, centred), rel=1e-5)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, words):
        return self.head(torch.tanh(self.inner(words)))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.GRU(4, 5), nn.Linear(5, CLASSES)

    def forward(self, words):
        return self.head(self.inner(words.transpose(0, 1))[0][-1])


OTHERS = {
    "positional table": (
        lambda m, b: F.cross_entropy(m(b[0] + b[1]).mean(1), b[2]),
        lambda i: (WORDS[i], TABLE, Y[i]),
        Table,
        lambda m, n: m((WORDS[n] + TABLE).double()).mean(0),
    ),
    "prototypes": (
        lambda m, b: F.cross_entropy(m(b[1] @ b[0].T), b[2]),
        lambda i: (PROTOTYPES, X[i], Y[i]),
        lambda: nn.Linear(SIZE, CLASSES),
        lambda m, n: m((X[n] @ PROTOTYPES.T).double()),
    ),
    "folded positions": (
        lambda m, b: F.cross_entropy(m(b[0] + b[1]).reshape(-1, CLASSES), b[2].reshape(-1)),
        lambda i: (WORDS[i], TABLE, Y[i, None].expand(-1, T)),
        Table,
        lambda m, n: m((WORDS[n] + TABLE).double()),
    ),
    "time on the first axis of the module": (
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        lambda i: (WORDS[i], Y[i]),
        TimeFirst,
        lambda m, n: m(WORDS[n : n + 1].double()),
    ),
    "a list of one tensor for each sample": (
        lambda m, b: F.cross_entropy(torch.stack([m(word).mean(0) for word in b[0]]), b[1]),
        lambda i: ([WORDS[n, : 2 + n % 5] for n in i.tolist()], Y[i]),
        Table,
        lambda m, n: m(WORDS[n, : 2 + n % 5].double()).mean(0),
    ),
    "a step that squeezes": (
        lambda m, b: F.cross_entropy(m(b[0]).squeeze().mT.squeeze().mT[: len(b[1])], b[1]),
        lambda i: (X[i], Y[i]),
        lambda: nn.Linear(SIZE, CLASSES),
        lambda m, n: m(X[n].double()),
    ),
    "flipped and flipped back": (
        lambda m, b: F.cross_entropy(m(b[0].flip(0)).flip(0), b[1]),
        lambda i: (X[i], Y[i]),
        lambda: nn.Sequential(nn.Linear(SIZE, 4), nn.Tanh(), nn.Linear(4, CLASSES)),
        lambda m, n: m(X[n].double()),
    ),
    "rolled and rolled back": (
        lambda m, b: F.cross_entropy(m(b[0].roll(1, 0)).roll(-1, 0), b[1]),
        lambda i: (X[i], Y[i]),
        lambda: nn.Sequential(nn.Linear(SIZE, 4), nn.Tanh(), nn.Linear(4, CLASSES)),
        lambda m, n: m(X[n].double()),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_modules_of_many_layouts_are_right(name):
    step, collate, make, logits = OTHERS[name]
    net = make()
    assert trace(run(step, collate, net=net)) == pytest.approx(truth(net, logits), rel=1e-5)


@pytest.mark.parametrize(("size", "samples"), [(1, 24), (7, 24), (8, 5), (8, 8), (8, 13), (24, 24), (8, 100)])
def test_any_batch_size_and_any_number_of_samples(size, samples):
    step, collate = CENTRED["dict"]
    net = nn.Linear(SIZE, CLASSES)
    found = run(step, collate, net=net, size=size, num_samples=samples)
    assert trace(found) == pytest.approx(truth(net, centred, min(samples, N)), rel=1e-5)


@pytest.mark.parametrize("first", ["labelled", "other"])
def test_two_loaders_of_different_batch_sizes_in_either_order(first):
    loaders = {
        "labelled": DataLoader(range(N), 8, collate_fn=lambda i: (X[i], Y[i])),
        "other": DataLoader(range(N), 12, collate_fn=lambda i: (X[i], Y[i])),
    }
    order = sorted(loaders, key=lambda name: name != first)
    net = nn.Linear(SIZE, CLASSES)

    def step(net, batch):
        penalty = net(batch["other"][0]).square().mean()
        return F.cross_entropy(net(batch["labelled"][0]), batch["labelled"][1]) + 0.01 * penalty

    callback = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=100, on_error="raise", summary=False)
    trainer(callback, max_epochs=1).fit(Module(step, net), {name: loaders[name] for name in order})
    assert trace(callback) == pytest.approx(truth(net, lambda m, n: m(X[n].double()), 16), rel=1e-5)


class Picky(nn.Module):
    """A batch of one loses its axis."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(SIZE, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = torch.tanh(self.inner(x)).unsqueeze(1).squeeze()
        if h.dim() < 2:
            raise RuntimeError("no batch")
        return self.head(h)


def test_a_module_to_which_only_a_batch_of_one_is_special():
    net = Picky()
    found = run(lambda m, b: F.cross_entropy(m(b[0]), b[1]), pair, net=net)
    plain = nn.Sequential(net.inner, nn.Tanh(), net.head)
    assert trace(found) == pytest.approx(truth(plain, lambda m, n: m(X[n].double())), rel=1e-5)
    drawn = FisherTraceCallback(num_samples=N, draws=9, every_n_train_steps=100, on_error="raise", summary=False)
    run(lambda m, b: F.cross_entropy(m(b[0]), b[1]), pair, net=net, callback=drawn)
    assert len(drawn.history["fisher/trace"]) > 1


@pytest.mark.parametrize("owner", [FisherTraceCallback, InfoPlaneCallback])
def test_a_batch_that_cannot_be_taken_apart_is_refused(owner):
    class Opaque:
        def __init__(self, i):
            self.x, self.y = X[i], Y[i]

    with pytest.raises(MisconfigurationException, match=r"no tensor with a sample axis.*split=.*reference=\(x, y\)"):
        run(lambda m, b: F.cross_entropy(m(b.x), b.y), Opaque, callback=owner(num_samples=N, on_error="raise"))


# ---- samples that are mixed


def skips_two(net, batch):
    z = net(batch[0])
    return F.cross_entropy(torch.cat([z[:2], z[2:] - z[2:].mean(0)]), batch[1])


def only_gradients_mix(net, batch):
    z = net(batch[0])
    return F.cross_entropy(z + z.mean(0) - z.mean(0).detach(), batch[1])


def queue(net, batch):
    q = net(batch[0])
    return F.cross_entropy(q @ q.detach().T, torch.arange(len(q)))


MIXED = {
    "detached negatives": (queue, pair),
    "minus the mean": (lambda m, b: F.cross_entropy(m(b[0] - b[0].mean(0)), b[1]), pair),
    "all but two": (skips_two, pair),
    "gradients alone": (only_gradients_mix, pair),
    "two views": (lambda m, b: F.cross_entropy(m(torch.cat([b[0], -b[0]])), torch.cat([b[1], b[1]])), pair),
    "the maximum of the batch": (lambda m, b: F.cross_entropy(m(b[0] / b[0].max()), b[1]), pair),
    "the size of the batch": (lambda m, b: F.cross_entropy(m(b[0]) / len(b[0]), b[1]), pair),
    "its size in a view": (lambda m, b: F.cross_entropy(m(b[0].view(SIZE, -1)), b[1]), pair),
    "rows picked by a mask that are as many": (
        lambda m, b: F.cross_entropy(
            m(torch.cat([b[0], b[0]]))[torch.arange(2 * len(b[0])) % 3 > 0][: len(b[0])], b[1]
        ),
        pair,
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_modules_that_mix_samples_are_refused_before_the_first_step(name):
    step, collate = MIXED[name]
    with pytest.raises(MisconfigurationException, match=r"depend on the other"):
        run(step, collate)


@pytest.mark.parametrize("name", ["detached negatives", "two views", "all but two"])
def test_the_plane_is_refused_too(name):
    callback = InfoPlaneCallback(num_samples=N, every_n_train_steps=100, on_error="raise")
    with pytest.raises(MisconfigurationException, match=r"adapter(.|\n)*def adapter\(module, batch\)"):
        run(*MIXED[name], callback=callback)
