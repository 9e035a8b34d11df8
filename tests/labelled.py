"""Small networks that predict labels, data for them, and those for which a PAC-Bayes bound would not hold."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

FEATURES, CLASSES, SAMPLES, BATCH = 6, 3, 300, 30
TEACHER = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(9))


def data(size: int, seed: int) -> TensorDataset:
    """Inputs, and classes of which one in ten is random."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, FEATURES, generator=g)
    y = (x @ TEACHER).argmax(1)
    return TensorDataset(x, torch.where(torch.rand(size, generator=g) < 0.1, torch.randint(3, (size,), generator=g), y))


def loader(size: int = SAMPLES, seed: int = 1, **options) -> DataLoader:
    return DataLoader(data(size, seed), **{"batch_size": BATCH, "shuffle": True, **options})


class Net(pl.LightningModule):
    def __init__(self, seed: int = 0, middle: nn.Module | None = None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(FEATURES, 8), middle or nn.Tanh(), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.2, momentum=0.5)


class Labels(Net):
    """Three labels a sample, there or not."""

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), F.one_hot(batch[1], CLASSES).float())


class Regression(Net):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), F.one_hot(batch[1], CLASSES).float())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(zip(*data(SAMPLES, 1).tensors, strict=True)))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return torch.tanh(self.scale * x)


class Learnt(Net):
    """Keeps something that it learned in a buffer."""

    def __init__(self):
        super().__init__(middle=Counter())

    def on_train_batch_end(self, *args):
        self.net[1].scale.mul_(1.01)


class Freezing(Net):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[0].requires_grad_(False)


class Unfreezing(Net):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.2)

    def on_train_epoch_start(self):
        self.net[0].requires_grad_(self.current_epoch > 0)
