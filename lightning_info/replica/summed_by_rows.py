"""A loss of many classes, some positions at a time: no tensor of positions and classes in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_info.functional import fisher


def summed_by_rows(loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, y: Tensor) -> Tensor:
    """A loss that is a sum over rows, in float64.

    Where numbers are many (:data:`~lightning_info.functional.fisher.MOST_NUMBERS`), the backward pass computes every
    block of rows again, so that it keeps none in float64 either.

    Args:
        loss: Gives the sum from outputs and targets of some rows.
        z: Outputs, ``(rows, classes)``.
        y: Targets, classes or like the outputs.
    """

    def of(z: Tensor, y: Tensor) -> Tensor:
        return loss(z.double(), y.double() if y.is_floating_point() else y)

    if z.numel() <= fisher.MOST_NUMBERS:
        return of(z, y)
    many = max(1, fisher.MOST_NUMBERS // z.shape[1])
    keeps_graph = torch.is_grad_enabled() and z.requires_grad
    parts = []
    for block in zip(torch.split(z, many), torch.split(y, many), strict=True):
        if keeps_graph:
            parts.append(checkpoint(of, *block, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(of(*block))
    return torch.stack(parts).sum(0)
