"""What the first batch does not show is found later, by one sample that goes through the replica alone."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import trainer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader

from lightning_info import FisherTraceCallback, InfoPlaneCallback
from lightning_info.gradients import choose_gram_engine
from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.gram import GramPlan

N, SIZE, T, CLASSES = 48, 8, 6, 3
GENERATOR = torch.Generator().manual_seed(0)
WORDS = torch.randint(1, 20, (N, T), generator=GENERATOR)
LENGTHS = torch.randint(2, T + 1, (N,), generator=GENERATOR)
LENGTHS[:SIZE] = T  # the first batch shows nothing
WORDS[torch.arange(T) >= LENGTHS[:, None]] = 0
Y = torch.arange(N) % CLASSES


class Text(pl.LightningModule):
    """``forward`` gives logits; the batch holds words, lengths and labels."""

    def __init__(self, forward, head=CLASSES):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.head = nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 5), nn.Linear(5, head)
        self.rnn, self.function = nn.GRU(4, 5, batch_first=True), forward

    def forward(self, words, lengths):
        return self.function(self, words, lengths)

    def training_step(self, batch, batch_idx):
        words, lengths, y = batch
        z = self(words, lengths)
        if z.dim() == 3:
            y = words[:, : z.shape[1]] % CLASSES
            return F.cross_entropy(z.mT, y.masked_fill(words[:, : z.shape[1]] == 0, -100))
        return F.cross_entropy(z, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def mean(m, words, lengths):
    return m.head(torch.tanh(m.inner(m.table(words))).sum(1) / lengths[:, None])


def sorted_inside(m, words, lengths):
    order = lengths.argsort(descending=True, stable=True)
    return mean(m, words[order], lengths[order])[order.argsort()]


def shortest_first(m, words, lengths):
    """Unlike the batches."""
    order = lengths.argsort(stable=True)
    return mean(m, words[order], lengths[order])[order.argsort()]


def packed(m, words, lengths):
    return m.head(m.rnn(pack_padded_sequence(m.table(words), lengths, batch_first=True))[1][-1])


def packed_unsorted(m, words, lengths):
    packed = pack_padded_sequence(m.table(words), lengths, batch_first=True, enforce_sorted=False)
    return m.head(m.rnn(packed)[1][-1])


def cut_to_the_longest(m, words, lengths):
    return m.head(torch.tanh(m.inner(m.table(words[:, : lengths.max()]))))


def mixed_where_lengths_differ(m, words, lengths):
    z = mean(m, words, lengths)
    return z + (lengths != lengths[0]).any() * z.mean(0)


def run(forward, callback, order=slice(None)):
    words, lengths, y = WORDS[order], LENGTHS[order], Y[order]
    batches = [(words[i : i + SIZE], lengths[i : i + SIZE], y[i : i + SIZE]) for i in range(0, N, SIZE)]
    by_length = [batch[1].argsort(descending=True, stable=True) for batch in batches]
    batches = [tuple(part[i] for part in batch) for batch, i in zip(batches, by_length, strict=True)]
    module = Text(forward)
    trainer(callback, max_epochs=1).fit(module, DataLoader(batches, None))
    return module


def exact(module, samples=N):
    """By definition, each sample alone in float64."""
    module = module.double()
    parameters, total = list(module.parameters()), 0.0
    for n in range(samples):
        z = module(WORDS[n : n + 1], LENGTHS[n : n + 1])
        rows = z[0][: LENGTHS[n]] if z.dim() == 3 else z
        for log_p in rows.log_softmax(-1):
            for value in log_p:
                found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                total += value.exp().item() * sum(g.square().sum().item() for g in found if g is not None)
    return total / samples


def fisher(**options):
    options = {"num_samples": N, "every_n_train_steps": 100, "summary": False, "on_error": "raise", **options}
    return FisherTraceCallback("exact", **options)


@pytest.mark.parametrize("forward", [sorted_inside, shortest_first, packed, packed_unsorted, cut_to_the_longest])
def test_modules_that_look_at_lengths_are_right(forward):
    callback = fisher()
    module = run(forward, callback)
    assert callback.history["fisher/trace"][0][1] == pytest.approx(exact(module), rel=1e-4)


def test_an_engine_that_is_wrong_only_later_is_replaced():
    callback = fisher()
    run(shortest_first, callback)
    assert callback.plan.engine == "backpack_vmap"
    assert "backpack" in callback.plan.reasons


@pytest.mark.parametrize("callback", [fisher(), InfoPlaneCallback(num_samples=N, every_n_train_steps=100)])
def test_samples_that_are_mixed_only_later_have_no_value(callback):
    with pytest.warns(UserWarning, match="other outputs than in the larger batch by itself than beside"):
        run(mixed_where_lengths_differ, callback)
    values = [v for tag, curve in callback.history.items() if "overhead" not in tag for _, v in curve]
    assert values
    assert all(map(math.isnan, values))


@pytest.mark.parametrize("shown", [True, False])
def test_a_layer_that_sees_samples_in_another_order_has_no_labels_of_others(shown):
    callback = InfoPlaneCallback(None if shown else ["inner", "table"], bins=4, num_samples=N, every_n_train_steps=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(shortest_first, callback, torch.arange(N - 1, -1, -1) if shown else slice(None))
    curve = {tag: values[0][1] for tag, values in callback.history.items() if tag.startswith("info_plane/I_TY/")}
    if shown:
        assert list(curve) == ["info_plane/I_TY/outputs"]
        assert curve["info_plane/I_TY/outputs"] > 0
    else:
        assert math.isnan(curve["info_plane/I_TY/inner"])
        assert any("'inner' gives a sample other activations" in str(w.message) for w in caught)


def test_a_batch_of_another_form_is_left_out_and_said():
    x = torch.randn(4 * SIZE, 4)
    batches = [{"x": x[i : i + SIZE], "y": Y[i : i + SIZE], "scale": torch.ones(SIZE)} for i in range(0, 32, SIZE)]
    batches[1]["more"] = torch.ones(SIZE)
    batches[2]["scale"] = torch.ones(3)

    class Scaled(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, CLASSES)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch["x"]) * batch["scale"].mean(), batch["y"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    callback = fisher()
    with pytest.warns(UserWarning, match=r"does not look like the first one \(it has batch\['more'\] beside"):
        trainer(callback, max_epochs=1).fit(Scaled(), DataLoader(batches, None))
    assert sum(map(num_samples, callback.groups)) == 2 * SIZE


def test_a_gram_engine_that_reads_another_layout_is_replaced(monkeypatch):
    from lightning_info.gradients import gram

    net, x = nn.Linear(4, 3), torch.randn(6, 4)
    u = torch.randn(2, 6, 3)
    right = choose_gram_engine(net, lambda m, b: m(b), x).gram(net, lambda m, b: m(b), x, u).matrix
    taps = gram.ENGINES["taps"]

    def other_samples(module, predict, batch, columns, total):
        taps(module, predict, batch.flip(0), columns, total)

    monkeypatch.setitem(gram.ENGINES, "taps", other_samples)
    plan = GramPlan("taps", 8)
    found = plan.gram(net, lambda m, b: m(b), x, u).matrix
    assert plan.engine == "func"
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_samples_are_drawn_in_the_order_that_the_module_needs():
    callback = FisherTraceCallback(
        num_samples=N, draws=32, every_n_train_steps=100, summary=False, on_error="raise", seed=1
    )
    module = run(packed, callback)
    assert len(callback.groups) == N // SIZE  # they stay in their batches
    error = callback.history["fisher/trace_stderr"][0][1]
    assert callback.history["fisher/trace"][0][1] == pytest.approx(exact(module), abs=5 * error)
