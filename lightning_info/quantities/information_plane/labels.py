"""Labels of the reference samples: classes, or what stands for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_info.functional.binning import bin_targets
from lightning_info.functional.code_information import code_information

IGNORED = -1
"""Class of a sample that the loss ignores."""


@dataclass
class Labels:
    """One label a sample.

    Attributes:
        y: ``(N,)``, int64; :data:`IGNORED` where there is none.
    """

    y: Tensor

    @cached_property
    def known(self) -> Tensor | None:
        """Which samples have one, ``(N,)``; None if all do."""
        there = self.y != IGNORED
        return None if there.all() else there

    @cached_property
    def entropy(self) -> float:
        """H(Y) of those that have one, in bits."""
        y = self.y if self.known is None else self.y[self.known]
        return code_information(y).I_XT if len(y) else 0.0

    def equal(self, other: Labels | None) -> bool:
        """Whether the samples have the same labels."""
        return other is not None and torch.equal(self.y, other.y)


def labels_of(targets: Tensor, bins: int) -> Labels | None:
    """Labels from targets.

    Args:
        targets: Classes ``(N,)``; labels in {0, 1} of several outputs ``(N, k)``, whose combinations become classes;
            continuous targets ``(N, k)``, each cut into ``bins`` equal intervals over its range.
        bins: Number of intervals.

    Returns:
        None where they cannot serve: not finite, or more than half of the samples have one like no other's.
    """
    if not targets.is_floating_point() and targets.dim() == 1:
        return Labels(targets)
    if not targets.isfinite().all():
        return None
    y = bin_targets(targets, bins)
    return None if code_information(y).unique > 0.5 else Labels(y)


def describe_targets(targets: Tensor | None, bins: int) -> str:
    """How targets, as :func:`labels_of` takes them, become labels."""
    if targets is None:
        return "none, or not one for each sample: I(X;T) only"
    if targets.is_floating_point():
        return f"continuous targets, each of {targets.shape[1]} cut into {bins} equal intervals"
    if targets.dim() > 1 and targets.shape[1] > 1:
        return f"{targets.shape[1]} labels of a sample, taken together"
    return "classes"
