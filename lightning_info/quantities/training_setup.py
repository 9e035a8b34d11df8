"""What the formulas need to know about a run: the number of training samples, and the optimiser's step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_info.functional.free_energy import temperature


@dataclass(frozen=True)
class TrainingSetup:
    """Facts about a training at a point; without arguments nothing is known.

    Attributes:
        training_samples: Samples of an epoch: the size of the data set, or fewer if its batches are limited; NaN if
            the data have no length.
        batch_size: Samples in one optimiser step, over accumulated batches and processes.
        group: The first parameter group of the optimisers; empty if there is none.
        loss_samples: Samples of one loss: those of one batch of one process.
        no_temperature: Why the optimiser has no one temperature; empty if it has one.
    """

    training_samples: float = math.nan
    batch_size: int = 1
    group: Mapping[str, Any] = field(default_factory=dict)
    loss_samples: int = 1
    no_temperature: str = "no optimiser is known"

    @classmethod
    def of(cls, trainer: Any, samples_in_batch: int) -> TrainingSetup:
        """Read the facts from a trainer whose batches hold so many samples."""
        together = samples_in_batch * trainer.world_size
        try:
            size = float(len(trainer.train_dataloader.dataset))
        except (AttributeError, TypeError):  # several loaders, or a data set without a length
            size = math.inf
        samples = min(size, trainer.num_training_batches * together)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        return cls(
            samples if 0 < samples < math.inf else math.nan,
            together * trainer.accumulate_grad_batches,
            dict(next(iter(groups), {})),
            samples_in_batch,
            _no_temperature(trainer.optimizers, groups),
        )

    @property
    def temperature(self) -> float:
        """Temperature of the optimiser at its current learning rate; NaN without one."""
        if "lr" not in self.group:
            return math.nan
        momentum, dampening = (float(self.group.get(name, 0.0)) for name in ("momentum", "dampening"))
        return temperature(float(self.group["lr"]), self.batch_size, momentum, dampening)


def _no_temperature(optimizers: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """Return why steps are not those of SGD with one learning rate; empty if they are."""
    if not groups:
        return "no optimiser is known"
    for optimizer in optimizers:
        if not any(kind.__name__ == "SGD" for kind in type(optimizer).__mro__):
            return f"{type(optimizer).__name__} is not SGD: with gradients that it scales there is no one temperature"
    rates = {tuple(float(group.get(name, 0.0)) for name in ("lr", "momentum", "dampening")) for group in groups}
    return "" if len(rates) == 1 else "the parameter groups have different learning rates or momenta"
