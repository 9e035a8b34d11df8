"""The data that the cases train on; each draws or delivers in a way that a callback could disturb."""

from __future__ import annotations

import random

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from models import FEATURES, data, loader
from torch.utils.data import DataLoader, Dataset, IterableDataset


class NoisyData(Dataset):
    """Augments from all global generators."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        x, y = data(24)[i]
        return x + torch.randn(FEATURES) + np.random.rand() + random.random(), y  # noqa: NPY002


class OwnGenerators(Dataset):
    """Augments from generators of its own, and counts."""

    def __init__(self):
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.served = 0

    def __len__(self):
        return 24

    def __getitem__(self, i):
        self.served += 1
        x, y = data(24)[i]
        return x + torch.randn(FEATURES, generator=self.torch) + self.numpy.normal(), y


class Stream(IterableDataset):
    """An endless-looking source with a position of its own."""

    def __init__(self, size=24):
        self.size, self.position = size, 0

    def __iter__(self):
        for x, y in data(self.size):
            self.position += 1
            yield x + 0.1 * torch.randn(FEATURES), y


class Epochs(LightningDataModule):
    """Makes a new loader every epoch and counts them."""

    made = 0

    def train_dataloader(self):
        self.made += 1
        return loader(24 + 8 * self.made, shuffle=True)

    def val_dataloader(self):
        return loader(16)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 0.1 * torch.randn(1), batch[1]


def noisy(**options):
    return DataLoader(NoisyData(), 8, shuffle=True, **options)
