"""Padding that a module cuts to the longest sample of its batch: what is measured is that of each sample alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, trainer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback

N, SIZE, T, CLASSES, FEATURES = 24, 8, 6, 3, 4
GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = torch.tensor([6, 1, 3, 5, 2, 4, 1, 3, 5, 5, 1, 2, 4, 3, 2, 1, 4, 2, 3, 1, 1, 4, 2, 3])
X = torch.randn(N, T, FEATURES, generator=GENERATOR) * (torch.arange(T) < LENGTHS[:, None])[..., None]
CLASS = torch.randint(CLASSES, (N, T), generator=GENERATOR)
VALUE = torch.randn(N, T, generator=GENERATOR)
BATCHES = [tuple(part[i : i + SIZE] for part in (X, LENGTHS, CLASS, VALUE)) for i in range(0, N, SIZE)]


class First(nn.Module):
    def forward(self, z):
        return z[..., 0]


class Reader(Classifier):
    """``forward`` gives logits at the positions of the longest sample."""

    def __init__(self, forward, loss):
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, CLASSES))
        self.inner, self.rnn = nn.Linear(FEATURES, 5), nn.GRU(FEATURES, 5, batch_first=True)
        self.attention, self.first = nn.MultiheadAttention(5, 1, batch_first=True), First()
        self.function, self.loss = forward, loss

    def forward(self, x, lengths):
        return self.net(self.function(self, x, lengths))

    def training_step(self, batch, batch_idx):
        x, lengths, y, value = batch
        z = self(x, lengths)
        kept = torch.arange(z.shape[1]) < lengths[:, None]
        return self.loss(self, z, kept, y[:, : z.shape[1]], value[:, : z.shape[1]])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def cut(m, x, lengths):
    return torch.tanh(m.inner(x[:, : lengths.max()]))


def packed(m, x, lengths):
    sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(m.rnn(sequence)[0], batch_first=True)[0]


def attentive(m, x, lengths):
    h = cut(m, x, lengths)
    return h + m.attention(h, h, h, key_padding_mask=torch.arange(h.shape[1]) >= lengths[:, None])[0]


def by_the_longest(m, x, lengths):
    """Values depend on the longest sample of the batch."""
    h = cut(m, x, lengths)
    return h / h.shape[1]


FORWARDS = {one.__name__: one for one in (cut, packed, attentive)}


def mean(each, kept):
    return (each * kept).sum() / kept.sum()


def squared(m, z, kept, y, value):
    return mean(F.mse_loss(z[..., 0], value, reduction="none"), kept)


LOSSES = {
    "ignored": lambda m, z, kept, y, value: F.cross_entropy(z.mT, y.masked_fill(~kept, -100)),
    "weighed": lambda m, z, kept, y, value: mean(F.cross_entropy(z.mT, y, reduction="none"), kept),
    "folded": lambda m, z, kept, y, value: mean(
        F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none"), kept.flatten()
    ),
    "by hand": lambda m, z, kept, y, value: mean(-z.log_softmax(-1).gather(-1, y[..., None])[..., 0], kept),
    "smoothed by hand": lambda m, z, kept, y, value: mean(
        -0.9 * z.log_softmax(-1).gather(-1, y[..., None])[..., 0] - 0.1 * z.log_softmax(-1).mean(-1), kept
    ),
    "squared": squared,
    "squared by hand": lambda m, z, kept, y, value: mean((m.first(z) - value).square(), kept),
    "binary": lambda m, z, kept, y, value: mean(
        F.binary_cross_entropy_with_logits(z[..., 0], (y > 0).float(), reduction="none"), kept
    ),
    "normal": lambda m, z, kept, y, value: mean(
        -torch.distributions.Normal(z[..., 0], z[..., 1].exp()).log_prob(value), kept
    ),
}


def fisher_of(row, name, norm):
    """Trace of the Fisher information of the outputs at one position, by its definition."""
    if "squared" in name:
        return norm(row[0])
    if name == "binary":
        p = row[0].sigmoid().item()
        return p * (1 - p) * norm(row[0])
    if name == "normal":  # in the logarithm of the deviation it is 2
        return norm(row[0]) * math.exp(-2 * row[1].item()) + 2 * norm(row[1])
    return sum(log_p.exp().item() * norm(log_p) for log_p in row.log_softmax(-1))


def truth(module, name):
    """One sample after the other, alone and in float64."""
    module = copy.deepcopy(module).double()
    parameters, total = list(module.parameters()), 0.0

    def norm(value):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return sum(g.square().sum().item() for g in found if g is not None)

    for n in range(N):
        rows = module(X[n : n + 1].double(), LENGTHS[n : n + 1])[0][: LENGTHS[n]]
        total += sum(fisher_of(row, name, norm) for row in rows)
    return total / N


def options(**more):
    return {"num_samples": N, "every_n_train_steps": 100, "summary": False, "on_error": "raise", **more}


def run(forward, loss, *callbacks):
    module = Reader(forward, loss)
    trainer(*callbacks, max_epochs=1).fit(module, DataLoader(BATCHES, None))
    return module


def first(callback, tag):
    return callback.history[tag][0][1]


PAIRS = [
    pytest.param(forward, loss, marks=() if (i + j) % len(FORWARDS) == 0 else pytest.mark.slow)
    for i, forward in enumerate(FORWARDS)
    for j, loss in enumerate(LOSSES)
]
"""Each loss with one of the modules; all of them with all are slow."""


@pytest.mark.parametrize(("forward", "loss"), PAIRS)
def test_the_trace_is_that_of_the_samples_alone(forward, loss):
    fisher, weights = FisherTraceCallback("exact", **options()), WeightInfoCallback(**options())
    module = run(FORWARDS[forward], LOSSES[loss], fisher, weights)
    expected = truth(module, loss)
    assert first(fisher, "fisher/trace") == pytest.approx(expected, rel=1e-4)
    assert first(weights, "weight_info/trace") == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(first(weights, "weight_info/expected_loss"))


@pytest.mark.parametrize("loss", ["ignored", "squared"])
def test_layers_are_the_means_over_the_positions_of_each_sample(loss):
    plane = InfoPlaneCallback("inner", bin_range=(-2.0, 2.0), bins=3, **options())
    effective = EffectiveInfoCallback("inner", draws=4, **options())
    module = run(cut, LOSSES[loss], plane, effective)
    with torch.no_grad():
        rows = [module.inner(X[n, : LENGTHS[n]]).mean(0) for n in range(N)]
    codes = torch.stack(rows).add(2).div(4 / 3).floor()
    counts = codes.unique(dim=0, return_counts=True)[1].double() / N
    assert first(plane, "info_plane/I_XT/inner") == pytest.approx(-(counts * counts.log2()).sum().item())
    assert counts.numel() < N
    assert 0 <= first(effective, "effective_info/I_XZ/inner") <= math.log(N)


def test_batches_that_are_padded_to_different_lengths_are_measured_together():
    """In chunks of different length, with several continuous targets a sample."""
    batches = [tuple(part[:, : b[1].max()] if part.dim() > 1 else part for part in b) for b in BATCHES]
    fisher, plane = FisherTraceCallback("exact", **options()), InfoPlaneCallback("inner", **options())
    module = Reader(cut, squared)
    trainer(fisher, plane, max_epochs=1).fit(module, DataLoader(batches, None))
    assert first(fisher, "fisher/trace") == pytest.approx(truth(module, "squared"), rel=1e-4)
    assert first(plane, "info_plane/I_XT/inner") > 0


def ctc(m, z, kept, y, value):
    return F.ctc_loss(z.log_softmax(-1).transpose(0, 1), y[:, :1] % 2 + 1, kept.sum(1), torch.ones(len(z)).long())


@pytest.mark.parametrize("forward", FORWARDS)
def test_without_a_likelihood_the_lengths_are_found_in_the_batch(forward):
    fisher, plane = FisherTraceCallback(**options(draws=None)), InfoPlaneCallback("net", **options())
    module = run(FORWARDS[forward], ctc, fisher, plane)
    assert "by the lengths in batch[1]" in plane.report()
    assert first(plane, "info_plane/I_XT/net") > 0
    total = 0.0
    for n in range(N):
        loss = module.training_step(tuple(part[n : n + 1] for part in (X, LENGTHS, CLASS, VALUE)), 0)
        found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        total += sum(g.square().sum().item() for g in found if g is not None) / N
    assert first(fisher, "fisher/loss_gradient_trace") == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("loss", ["ignored", "squared", "ctc"])
@pytest.mark.parametrize("callback", [FisherTraceCallback, InfoPlaneCallback])
def test_values_that_depend_on_the_longest_sample_are_refused(loss, callback):
    with pytest.raises(MisconfigurationException, match="must not depend on the others of its batch"):
        run(by_the_longest, LOSSES.get(loss, ctc), callback(**options()))


def test_positions_that_are_counted_though_they_are_others_padding_are_refused():
    def unmasked(m, z, kept, y, value):
        return F.mse_loss(z[..., 0], value)

    with pytest.raises(MisconfigurationException, match="must not depend on the others of its batch"):
        run(packed, unmasked, FisherTraceCallback(**options()))
