"""Samples on which the module is not trained, as its ``training_step`` returns None for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.batches import num_samples, take
from lightning_info.replica.predicted import Skipped
from lightning_info.replica.snapshot import ModelSnapshot


def without_skipped(snapshot: ModelSnapshot, batch: Any) -> Any | None:
    """The batch without the samples that are skipped even alone, itself if there are none; None if it is all of them.

    Args:
        snapshot: At the weights of the step, in which a step may skip a loss that is not finite.
        batch: Samples on the CPU.
    """
    kept = torch.cat(
        [_kept(snapshot, batch, some) for some in torch.split(torch.arange(num_samples(batch)), snapshot.chunk)]
    )
    if len(kept) == num_samples(batch):
        return batch
    return take(batch, kept) if len(kept) else None


def _kept(snapshot: ModelSnapshot, batch: Any, index: Tensor) -> Tensor:
    """By halves, as the few that are skipped are to be found among many."""
    try:
        snapshot.predictor(snapshot.module, snapshot.to_device(take(batch, index)))
    except Skipped:
        if len(index) == 1:
            return index[:0]
        half = len(index) // 2
        return torch.cat([_kept(snapshot, batch, index[:half]), _kept(snapshot, batch, index[half:])])
    return index
