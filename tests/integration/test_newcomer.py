"""The first hour of a stranger: an ordinary CNN with the README's line, every callback at its defaults."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import public_callbacks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lightning_info import FisherTraceCallback, InfoPlaneCallback
from lightning_info.reporting.closing_table import WIDTH

MOST_LINES = 8  # for each callback: 40 of five
MOST_SCALARS = 25


class Digits(LightningDataModule):
    def setup(self, stage):
        digits = pytest.importorskip("sklearn.datasets").load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        data = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.val, _ = random_split(data, [1536, 128, 133], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train, 64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 128)


class CNN(LightningModule):
    def __init__(self):
        super().__init__()
        first = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU()
        self.net = nn.Sequential(*first, *second, nn.Linear(64, 10))
        self.train_acc, self.val_acc = MulticlassAccuracy(10), MulticlassAccuracy(10)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.train_acc(logits, y)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.val_acc(logits, y)
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log("val/acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


@pytest.fixture
def printed(capfd, monkeypatch):
    """Trains, and gives all lines that are printed, bars aside."""
    told: list[str] = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", told.append)

    def run(folder, callbacks, epochs):
        seed_everything(1)
        loggers = [TensorBoardLogger(folder), CSVLogger(folder)]
        options = {"logger": loggers, "accelerator": "cpu", "log_every_n_steps": 10, "enable_progress_bar": False}
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            Trainer(max_epochs=epochs, callbacks=list(callbacks), **options).fit(CNN(), datamodule=Digits())
        texts = [*told, *(str(warning.message) for warning in warned), capfd.readouterr().out]
        return [line for text in texts for line in text.splitlines() if line.strip()]

    return run


def scalars(folder):
    """Tags of ours in the event file."""
    events = EventAccumulator(str(folder / "lightning_logs/version_0")).Reload()
    return [tag for tag in events.Tags()["scalars"] if tag in events.summary_metadata]


def test_the_first_hour(tmp_path, printed):
    callbacks = [kind() for kind in public_callbacks()]
    before = printed(tmp_path / "plain", [], 1)
    lines = printed(tmp_path / "with", callbacks, 8)
    own = [line for line in lines if line not in before]
    text = "\n".join(own)
    assert "Traceback" not in text
    assert "FisherTraceCallback: trace of the Fisher information" in text
    assert len(own) <= MOST_LINES * len(callbacks), text
    table = next(i for i, line in enumerate(own) if line.split()[:2] == ["start", "peak"])
    assert all(len(line) <= WIDTH for line in own[table:] if "Callback: " not in line), text
    for callback in callbacks:
        for tag, curve in callback.history.items():
            is_whole = all(math.isfinite(value) for _, value in curve)
            assert is_whole or tag.split("/")[-1] in callback.report(), tag
    own_tags = {tag for callback in callbacks for tag in callback.history if callback.quantity.is_logged(tag)}
    assert set(scalars(tmp_path / "with")) == {tag for tag in own_tags if not tag.endswith("overhead")}


def test_the_two_callbacks_of_the_readme_have_no_more_scalars_than_one_can_look_at(tmp_path, printed):
    callbacks = [FisherTraceCallback(), InfoPlaneCallback()]
    printed(tmp_path, callbacks, 1)
    ours = scalars(tmp_path)
    assert {tag.partition("/")[0] for tag in ours} >= {"fisher", "info_plane", "info_plane_final"}
    assert len(ours) <= MOST_SCALARS, "\n".join(ours)
