"""More samples at once than in training, where the module is so small that a pass is mostly overhead."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from lightning_info.gradients.batches import num_samples
from lightning_info.quantities.weight_information.noisy_loss import mean_loss
from lightning_info.replica.activations import Call, Capture
from lightning_info.replica.snapshot import ModelSnapshot

MOST_NUMBERS = 1 << 22
"""Of activations in a pass: 16 MiB in single precision."""

_SAME = 1e-4
"""Of a loss, relatively: rounding is another one with other chunks."""


def in_larger_chunks(snapshot: ModelSnapshot, loss: float) -> ModelSnapshot:
    """With chunks of as many samples as give so many activations; as it is if the loss is another one then.

    Args:
        snapshot: With a private replica, at most a batch of training at once.
        loss: Mean loss of a sample in these chunks, nats.
    """
    numbers = 0

    def count(call: Call, tensor: Tensor, before: Tensor | None) -> None:
        nonlocal numbers
        numbers += tensor.numel()

    batch = snapshot.first_chunk()
    with Capture(snapshot.module, count):
        snapshot.predictor(snapshot.module, batch)
    chunk = min(snapshot.size, MOST_NUMBERS * num_samples(batch) // max(1, numbers))
    if chunk <= snapshot.chunk:
        return snapshot
    larger = replace(snapshot, chunk=chunk, statistics=[], whole=None, _read={})
    try:
        again = mean_loss(larger)
    except Exception:  # of a module that takes no more samples than it is trained on
        return snapshot
    return larger if math.isclose(again, loss, rel_tol=_SAME, abs_tol=_SAME) else snapshot
