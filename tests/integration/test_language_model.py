"""A causal transformer language model on text that ships with Python, measured without a word of configuration."""

from __future__ import annotations

from pydoc_data import topics

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback

LETTERS = " abcdefghijklmnopqrstuvwxyz"
LENGTH = 6


def sequences(size: int) -> torch.Tensor:
    """``(size, LENGTH + 1)`` letters of Python's help on its expressions."""
    text = " ".join(topics.topics["operator-summary"].lower().split())
    letters = [LETTERS.index(letter) for letter in text if letter in LETTERS][: size * (LENGTH + 1)]
    return torch.tensor(letters).reshape(size, LENGTH + 1)


class LanguageModel(pl.LightningModule):
    """Predicts the next letter; tokens folded into the batch axis, as is usual."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(LETTERS), bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=tokens.device, dtype=self.position.dtype)
        return self.head(self.encoder(self.embedding(tokens) + self.position, mask, is_causal=True))

    def training_step(self, batch, batch_idx):
        (text,) = batch
        return F.cross_entropy(self(text[:, :-1]).reshape(-1, len(LETTERS)), text[:, 1:].reshape(-1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def trace_of_a_sequence(model, text):
    """The sum over positions of ``E_y ‖∇ log p(y)‖²``, one backward pass for each letter."""
    log_p = model(text[None, :-1])[0].log_softmax(-1)
    parameters, total = list(model.parameters()), 0.0
    for entry in log_p.flatten():
        gradients = torch.autograd.grad(entry, parameters, retain_graph=True)
        total += entry.exp().item() * sum(g.square().sum().item() for g in gradients)
    return total


def test_all_defaults_and_the_trace_of_a_sequence():
    torch.manual_seed(0)
    text, model, start = sequences(12), LanguageModel(), LanguageModel()
    start.load_state_dict(model.state_dict())
    default = FisherTraceCallback()
    exact = FisherTraceCallback("exact", num_samples=4, every_n_train_steps=100, prefix="exact", on_error="raise")
    trainer(default, exact, max_epochs=3).fit(model, DataLoader(TensorDataset(text), 4))

    truth = {
        name: [trace_of_a_sequence(module.eval().double(), sequence) for sequence in text]
        for name, module in (("start", start), ("end", model))
    }
    found = [value for _, value in exact.history["exact/fisher/trace"]]
    assert found == pytest.approx([sum(truth["start"][:4]) / 4, sum(truth["end"][:4]) / 4], rel=1e-4)
    for name, point in (("start", 0), ("end", -1)):
        value, error = (default.history[f"fisher/{tag}"][point][1] for tag in ("trace", "trace_stderr"))
        assert abs(value - sum(truth[name]) / 12) < 4 * error
    assert {value for _, value in default.history["fisher/coverage"]} == {1.0}
