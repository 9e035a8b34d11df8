"""Whether the outputs for a sample depend on that sample's own label, so that they predict nothing of it.

Margin losses (ArcFace, CosFace) lower the label's logit before ``cross_entropy`` sees it. Such logits are known only
where the label is, and are parameters of no ``p(y|x)``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import GO_ON, Batch, Path, rebuilt
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot


def label_dependence(snapshot: ModelSnapshot) -> str:
    """Give some samples each other's labels, and look whether the outputs change.

    Only where the targets are one class a sample and stand in the batch as they are: of sequences and pictures, what is
    to be predicted may well be what goes in.

    Args:
        snapshot: With a few samples.

    Returns:
        What is wrong with the outputs, in words; empty if nothing is.
    """
    return snapshot.once("label dependence", partial(_dependence, snapshot))


def _dependence(snapshot: ModelSnapshot) -> str:
    batch = snapshot.to_device(snapshot.groups[0])
    prediction = snapshot.predictor(snapshot.module, batch)
    if prediction.unknown or not isinstance(batch, Batch) or not _changes(snapshot, batch, prediction):
        return ""
    return (
        f"the outputs of {snapshot.predictor.source(type(snapshot.module).__name__)} for a sample depend on its label "
        f"(a margin on the label's logit, as in ArcFace?), so that they are no prediction of it; give the logits "
        f"without it"
    )


def _changes(snapshot: ModelSnapshot, batch: Batch, prediction: Prediction) -> bool:
    labels = prediction.targets
    if labels is None or labels.is_floating_point() or labels.shape != (num_samples(batch),):
        return False
    other = labels.roll(1)
    changed = None if torch.equal(other, labels) else _with_labels(batch, labels, other)
    if changed is None:
        return False
    with snapshot.predictor.noise.of(batch):  # which a sample's values seed, the label among them
        outputs = snapshot.outputs(snapshot.module, changed)
    same = outputs.shape == prediction.outputs.shape
    return not (same and torch.allclose(outputs, prediction.outputs, rtol=1e-3, atol=1e-4, equal_nan=True))


def _with_labels(batch: Batch, labels: Tensor, other: Tensor) -> Batch | None:
    """The batch with other labels where it has these; None if it has them nowhere."""
    found = 0

    def visit(path: Path, value: Any) -> Any:
        nonlocal found
        if not isinstance(value, Tensor):
            return GO_ON
        if value.is_floating_point() or value.numel() != len(labels) or not torch.equal(value.flatten(), labels):
            return value
        found += 1
        return other.to(value.dtype).reshape(value.shape)

    changed = Batch(rebuilt(batch.bare, visit), batch.layout)
    return changed if found else None
