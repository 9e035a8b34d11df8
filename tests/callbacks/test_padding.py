"""Padding in the plane: a sample's code is that of its own positions, however long the others of its batch are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import Classifier, trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_info import InfoPlaneCallback

TAG = "info_plane/I_XT/inner.1"


class Text(Classifier):
    """The mean of what a layer makes of the real tokens, 0 being padding."""

    def __init__(self, padding_idx=None):
        super().__init__()
        self.table = nn.Embedding(9, 4, padding_idx=padding_idx)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        self.net = nn.Linear(3, 2)

    def encode(self, ids, real):
        return self.inner(self.table(ids))

    def training_step(self, batch, batch_idx):
        ids, real, y = self.parts(batch)
        weight = real.float()[..., None]
        return F.cross_entropy(self.net((self.encode(ids, real) * weight).sum(1) / weight.sum(1)), y)

    def parts(self, batch):
        return batch["ids"], batch["ids"] != 0, batch["y"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


class Attends(Text):
    def encode(self, ids, real):
        embedded = self.table(ids)
        return self.inner(embedded + self.attention(embedded, embedded, embedded, key_padding_mask=~real)[0])


class Tags(Text):
    """A label for every token; what is not one is ignored by the loss."""

    def training_step(self, batch, batch_idx):
        ids, real, y = self.parts(batch)
        targets = y[:, None].expand(ids.shape).masked_fill(~real, -100)
        return F.cross_entropy(self.net(self.encode(ids, real)).flatten(0, 1), targets.flatten())


def batch_of(rows, **entries):
    """The same two sentences in every batch, padded to another length in each."""
    longer = 1 + rows[0] // 8 % 4
    ids = torch.zeros(len(rows), 3 + longer, dtype=torch.long)
    label = torch.tensor(rows) % 2
    ids[:, 0], ids[:, 1], ids[:, 2] = 3, 4 + label, 7
    return {"ids": ids, "y": label, **{name: make(ids) for name, make in entries.items()}}


def information(module, **entries):
    callback = InfoPlaneCallback(every_n_epochs=1, num_samples=64, bin_range=(-1.0, 1.0), bins=1000, on_error="raise")
    fit = trainer(callback, max_epochs=1)
    fit.fit(module, DataLoader(list(range(64)), 8, collate_fn=lambda rows: batch_of(rows, **entries)))
    return callback, callback.history[TAG][0][1]


TOLD = {
    "an attention_mask in the batch": (Text, {"attention_mask": lambda ids: (ids != 0).long()}),
    "a padding_mask in the batch": (Text, {"padding_mask": lambda ids: ids == 0}),
    "lengths in the batch": (Text, {"lengths": lambda ids: (ids != 0).sum(1)}),
    "the embedding's padding_idx": (lambda: Text(padding_idx=0), {}),
    "a padding_idx from the end": (lambda: Text(padding_idx=-9), {}),
    "the key_padding_mask of attention": (Attends, {}),
    "targets that the loss ignores": (Tags, {}),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_code_does_not_depend_on_the_padding_of_the_batch(name):
    make, entries = TOLD[name]
    callback, found = information(make(), **entries)
    assert found == pytest.approx(1.0)  # bits: two sentences, whatever the length of their batch
    assert "left out of the means over positions of" in callback.report()


def test_padding_that_nothing_tells_of_enters():
    """So that the other test can fail: four lengths times two sentences."""
    assert information(Text())[1] == pytest.approx(3.0)
