"""State of a twin in a checkpoint of the user's run."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch import Tensor


@dataclass
class TwinState:
    """State of a twin between two batches.

    Attributes:
        index: The sample that is replaced.
        replacement: The sample that takes its place.
        visits: Number of times that it was replaced.
        first_difference_step: See :class:`~.Twin`.
        reason: Why there is no longer a twin.
        steps: Optimiser steps so far.
        checkpoint: The bytes of the second Trainer's own checkpoint; empty if there is no longer a twin.
        loops: Position of the user's loops, from which the twin's go on.
        lost_at: See :class:`~.Twin`.
    """

    index: int | None
    replacement: int | None
    visits: int
    first_difference_step: int | None
    reason: str | None
    steps: int
    checkpoint: Tensor
    loops: dict[str, Any]
    lost_at: int | None = None

    def belongs_to(self, index: int | None, replacement: int | None, steps: int) -> bool:
        """Tell whether it is the state of a twin with these samples, after so many steps or lost before; None: any."""
        same = index in (None, self.index) and replacement in (None, self.replacement)
        return same and (self.reason is not None or self.steps == steps)

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python values and one tensor, which ``torch.load(weights_only=True)`` accepts."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def of_twin(self) -> dict[str, Any]:
        """Return the checkpoint with which the second Trainer goes on."""
        # weights_only: loading the user's checkpoint in this way must not run code
        file = io.BytesIO(self.checkpoint.numpy().tobytes())
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint["loops"]["fit_loop"] = self.loops
        return checkpoint


def loops_of(trainer: Any) -> dict[str, Any]:
    """Return the state of the training loops, without that of the loaders, which the twin does not have."""
    loops: dict[str, Any] = trainer.fit_loop.state_dict()
    loops["state_dict"].pop("combined_loader", None)
    return loops


def saved(trainer: Any) -> Tensor:
    """Return the bytes of a Trainer's checkpoint, even where ``trainer.save_checkpoint`` is shadowed."""
    with _memory_file() as path:
        type(trainer).save_checkpoint(trainer, path, weights_only=False)
        return torch.frombuffer(bytearray(get_filesystem(path).cat_file(path)), dtype=torch.uint8)


@contextmanager
def to_be_loaded(checkpoint: dict[str, Any]) -> Iterator[str]:
    """Provide a path in memory from which a Trainer loads this checkpoint."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    with _memory_file() as path:
        get_filesystem(path).pipe_file(path, file.getvalue())
        yield path


@contextmanager
def _memory_file() -> Iterator[str]:
    path = f"memory://lightning-info-{threading.get_ident()}.ckpt"
    try:
        yield path
    finally:
        files = get_filesystem(path)
        if files.exists(path):
            files.rm(path)
