"""Labels of the reference samples, classes or their substitutes, from the targets of a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_info.functional.binning import bin_targets
from lightning_info.functional.code_information import code_information
from lightning_info.quantities.quantity import Warn
from lightning_info.replica.predicted import Prediction

IGNORED = -1
"""Class of a sample that the loss ignores."""
MOST_LABELS = 39
"""Largest number of masked labels of a sample that become one class, as each has three values."""


@dataclass
class Labels:
    """One label per sample.

    Attributes:
        y: Labels ``(N,)``, int64; :data:`IGNORED` where there is none.
    """

    y: Tensor

    @cached_property
    def known(self) -> Tensor | None:
        """Mask of the samples that have one, ``(N,)``; None if all do."""
        there = self.y != IGNORED
        return None if there.all() else there

    @cached_property
    def entropy(self) -> float:
        """H(Y) of the samples that have one, in bits."""
        y = self.y if self.known is None else self.y[self.known]
        return code_information(y).I_XT if len(y) else 0.0

    def equal(self, other: Labels | None) -> bool:
        """Tell whether the samples have the same labels."""
        return other is not None and torch.equal(self.y, other.y)


def targets_of(prediction: Prediction) -> Tensor | None:
    """Return classes ``(N,)``, labels of several outputs ``(N, k)`` in {0, 1}, or continuous targets ``(N, k)``.

    Entries that the loss leaves out have their own label value, or 0 for continuous targets; a sample whose entries are
    all left out has no label.
    """
    y, mask = prediction.targets, prediction.mask
    if y is None or prediction.unknown:
        return y
    if prediction.likelihood == "categorical":
        if y.is_floating_point():
            y = y.argmax(-1)
        if mask is not None:
            y = torch.where(mask, y, IGNORED)
        return y.flatten() if y.numel() == len(y) else None
    y = y.flatten(1) if y.dim() > 1 else y.unsqueeze(1)
    kept = None if mask is None or mask.numel() != y.numel() else mask.reshape(y.shape)
    if prediction.likelihood == "bernoulli":
        labels = (y > 0.5).long()
        if kept is None or y.shape[1] > MOST_LABELS:
            return labels if kept is None else labels * kept
        codes = ((labels + 1) * kept * 3 ** torch.arange(y.shape[1], device=y.device)).sum(1)
        return torch.where(kept.any(1), codes, IGNORED)
    y = y.double()
    return y if kept is None else torch.where(kept, y, 0.0).masked_fill(~kept.any(1, keepdim=True), torch.nan)


def labels_of(targets: Tensor, bins: int) -> Labels | None:
    """Make labels from targets.

    Args:
        targets: Classes ``(N,)``; labels in {0, 1} of several outputs ``(N, k)``, whose combinations become classes;
            continuous targets ``(N, k)``, each cut into ``bins`` equal intervals over its range.
        bins: Number of intervals.

    Returns:
        The labels; None if the targets are not finite, or more than half of the samples have a unique label.
    """
    if not targets.is_floating_point() and targets.dim() == 1:
        return Labels(targets)
    if not targets.isfinite().all():
        return None
    y = bin_targets(targets, bins)
    return None if code_information(y).unique > 0.5 else Labels(y)


def labels_told(targets: Tensor | None, bins: int, warn: Warn) -> Labels | None:
    """Make labels from targets as :func:`labels_of` does, and say where there is nothing to know."""
    labels = None if targets is None else labels_of(targets, bins)
    if targets is not None and labels is None:
        warn("I(T;Y) is NaN: targets are not finite, or more than half of the samples have a unique target", "targets")
    elif labels is not None and labels.entropy == 0 and labels.known is None:
        warn("all reference samples have one label: I(T;Y) is 0, as H(Y) is", "one class")
    return labels


def describe_targets(targets: Tensor | None, bins: int) -> str:
    """Describe how targets, as :func:`labels_of` takes them, become labels."""
    if targets is None:
        return "none, or not one for each sample: I(X;T) only"
    if targets.is_floating_point():
        return f"continuous targets, each of {targets.shape[1]} cut into {bins} equal intervals"
    if targets.dim() > 1 and targets.shape[1] > 1:
        return f"{targets.shape[1]} labels of a sample, taken together"
    return "classes"
