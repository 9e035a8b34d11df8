"""Two ordinary runs that differ in one training sample, and what the callback says of the first."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, data, trainer
from torch.utils.data import DataLoader, Subset

SAMPLES, INDEX, REPLACEMENT = 48, 5, 11


def module(**options) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(**options)


def train(folder: Path, *callbacks, replaced: bool = False, **options) -> None:
    """Twelve steps in shuffled order; checkpoints of the start and of every third step."""
    samples = list(range(SAMPLES))
    if replaced:
        samples[INDEX] = REPLACEMENT
    order = torch.Generator().manual_seed(3)
    loader = DataLoader(Subset(data(SAMPLES), samples), 8, shuffle=True, generator=order)
    model = module(**options)
    folder.mkdir()
    torch.save({"state_dict": model.state_dict(), "global_step": 0}, folder / "start.ckpt")
    keep = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1)
    trainer(keep, *callbacks, enable_checkpointing=True).fit(model, loader)


def reference() -> tuple[torch.Tensor, torch.Tensor]:
    return data(SAMPLES).tensors


def lacking() -> tuple[torch.Tensor, ...]:
    """The sample that the second run lacks."""
    return tuple(part[INDEX : INDEX + 1] for part in reference())
