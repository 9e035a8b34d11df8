"""BatchNorm without a batch: which statistics stand in for those of the batch, which have no per-sample gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from statistics import fmean
from typing import Any, Literal

from torch import Tensor, nn
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

    The variance is the one that training divides by, of n values over n: the activations of one batch are then those of
    training, bit by bit but for rounding. With that over n - 1, which PyTorch keeps for eval mode, each layer of a few
    samples would shrink them, and the next layers, whose statistics are of others, would blow up what they get.

    Args:
        layers: BatchNorm layers of a replica; they are left in eval mode.
        forward: Sends a batch through the replica.
        batches: The batches.
    """
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    shares: dict[Any, list[float]] = {layer: [] for layer in layers}

    def note(layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (x,) = (*args, *kwargs.values())
        shares[layer].append(1 - x.shape[1] / x.numel())

    with ExitStack() as hooks:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.training = True
            hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        for batch in batches:
            forward(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.training = False
        if layer.running_var is not None and shares[layer]:
            layer.running_var.mul_(fmean(shares[layer]))
