"""More samples at once than in training, where the module is so small that a pass is mostly overhead."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.layout import Batch
from lightning_info.replica.activations import Call, Capture
from lightning_info.replica.alone import OUTPUTS
from lightning_info.replica.disagreement import disagreement
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot

MOST_NUMBERS = 1 << 22
"""Of activations in a pass: 16 MiB in single precision."""


def samples_at_once(snapshot: ModelSnapshot, most: int) -> int:
    """How many samples may go through in a pass that nothing goes back from: a batch of training, or more.

    So many as give :data:`MOST_NUMBERS`, if these go through and the outputs are those of the smaller batch.

    Args:
        snapshot: With a private replica and a few samples, which stand for others.
        most: More are not needed.
    """
    numbers, batch = 0, snapshot.first_chunk()
    size = num_samples(batch)
    if isinstance(batch, Batch) and batch.layout.ordered:
        return snapshot.chunk

    def count(call: Call, tensor: Tensor, before: Tensor | None) -> None:
        nonlocal numbers
        numbers += tensor.numel()

    with Capture(snapshot.module, count):
        few = snapshot.predictor(snapshot.module, batch)
    found = min(most, MOST_NUMBERS * size // max(1, numbers))
    if found <= snapshot.chunk:
        return snapshot.chunk
    repeated = torch.arange(found) % size
    try:
        many = snapshot.predictor(snapshot.module, take(batch, repeated))
    except Exception:  # of a module that takes no more samples than it is trained on
        return snapshot.chunk
    return found if _is_same(many, few, repeated) else snapshot.chunk


def _is_same(many: Prediction, few: Prediction, repeated: Tensor) -> bool:
    return many.unknown == few.unknown and disagreement(many, few, repeated, OUTPUTS) is None
