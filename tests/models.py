"""Small modules and data that several tests train."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_info
from lightning_info import InfoCallback

FEATURES, CLASSES = 6, 3


def data(size: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, FEATURES, generator=generator)
    return TensorDataset(x, (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1))


def loader(size: int = 64, batch_size: int = 8, **options) -> DataLoader:
    return DataLoader(data(size), batch_size, **options)


class Classifier(pl.LightningModule):
    """Two layers, trained with cross-entropy by Adam with a step scheduler."""

    def __init__(self, net: nn.Module | None = None, dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.net = net or nn.Sequential(
            nn.Linear(FEATURES, 8), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, CLASSES)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Still(Classifier):
    """Its weights, the same for all, are never changed."""

    def __init__(self):
        torch.manual_seed(5)
        super().__init__()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def public_callbacks() -> list[type[InfoCallback]]:
    """Those that users know by name, and that take no quantity."""
    public = [getattr(lightning_info, name) for name in lightning_info.__all__]
    return [c for c in public if isinstance(c, type) and issubclass(c, InfoCallback) and c is not InfoCallback]


def curves(callback) -> dict[str, list[tuple[int, float]]]:
    """The history without what depends on the clock."""
    return {tag: curve for tag, curve in callback.history.items() if not tag.endswith("/overhead")}


def strict(*callbacks):
    """The callbacks, of which a refusal ends the run."""
    for callback in callbacks:
        if hasattr(callback, "on_error"):
            callback.on_error = "raise"
    return callbacks


def trainer(*callbacks, **options) -> pl.Trainer:
    """A silent Trainer on the CPU without logger or checkpoints unless asked for."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**defaults, **options}, callbacks=list(callbacks))
