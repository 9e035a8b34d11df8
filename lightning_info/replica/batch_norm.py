"""BatchNorm without a batch: which statistics stand in for those of the batch, which have no per-sample gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormStatistics = Literal["running", "reference"]


def on_batch_statistics(module: nn.Module) -> list[str]:
    """Names of the BatchNorm layers that training uses with batch statistics: none that is frozen in eval mode."""
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None
    ]


def use_statistics_of(layers: list[_BatchNorm], forward: Callable[[Any], Any], batches: Iterable[Any]) -> None:
    """Put the mean of the batch statistics over some batches in the place of the layers' running statistics.

    Running statistics are arbitrary at initialisation and lag behind the weights by some 1 / momentum steps.

    Args:
        layers: BatchNorm layers of a replica; they are left in eval mode.
        forward: Sends a batch through the replica.
        batches: The batches.
    """
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.training = True
    for batch in batches:
        forward(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.training = False
