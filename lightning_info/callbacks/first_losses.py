"""The losses of the first epoch, as Lightning hands them over: no pass is made for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.evaluating import repeats
from lightning_info.callbacks.member import Member
from lightning_info.gradients.batches import SampleCount
from lightning_info.gradients.layout import Layout
from lightning_info.quantities.first_epoch import FirstEpoch
from lightning_info.quantities.quantity import Point
from lightning_info.replica.snapshot import ModelSnapshot

RESUMED = "the run goes on from a checkpoint without all losses of its first epoch"
NO_LOSS = "training_step returns no loss for some batches of the first epoch"
SEVERAL = "the optimiser has training_step evaluate a batch several times, as LBFGS does"


class FirstLosses:
    """Sums of the losses of the batches of the first epoch in this process, by the size of the batch.

    Attributes:
        is_closed: Whether the epoch is over, or cannot be used.
        missing: Why it cannot be used; empty if it can.
    """

    def __init__(self) -> None:
        self.is_closed, self.missing = False, ""
        self.backward = 0  # passes for the current batch
        self._sums: dict[int, Tensor | float] = {}
        self._batches: dict[int, int] = {}
        self._count = SampleCount()

    @property
    def is_empty(self) -> bool:
        """Whether no batch has passed."""
        return not self._batches

    def add(self, loss: Tensor, factor: int, batch: Any, layout: Layout | None) -> None:
        """Add the loss of a batch, times a factor; nothing waits for the device."""
        size = self._count(batch, layout)
        known = self._sums.get(size)
        if loss.device.type == "cpu":
            self._sums[size] = (known or 0.0) + factor * loss.item()
        elif isinstance(known, Tensor):
            known.add_(loss.detach().reshape(()), alpha=factor)
        else:
            precise = torch.float32 if loss.device.type == "mps" else torch.float64
            self._sums[size] = factor * loss.detach().reshape(()).to(precise)
        self._batches[size] = self._batches.get(size, 0) + 1

    def refuse(self, reason: str) -> None:
        """Note why the epoch cannot be used."""
        self.missing, self.is_closed = reason, True

    def gathered(self, trainer: Any) -> FirstEpoch:
        """Return the sums over all processes, all of which must call this."""
        sums = {size: float(total) for size, total in self._sums.items()}
        own = FirstEpoch(sums, dict(self._batches), self.is_closed, self.missing)
        if trainer.world_size == 1:
            return own
        parts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, own)
        losses: dict[int, float] = {}
        batches: dict[int, int] = {}
        for part in parts:
            for size, total in part.losses.items():
                losses[size] = losses.get(size, 0.0) + total
                batches[size] = batches.get(size, 0) + part.batches[size]
        missing = next((part.missing for part in parts if part.missing), "")
        return FirstEpoch(losses, batches, all(part.is_over for part in parts), missing)


class SeesFirstLosses(InfoCallback):
    """Lets its quantity see the losses of the first epoch, as :attr:`Point.first_epoch`."""

    _losses: FirstLosses
    _first_epoch: FirstEpoch | None  # as of the last point, over all processes

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Count the evaluations of a batch."""
        self._losses.backward += 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the loss of the batch, which was computed before its step."""
        if self._losses.is_closed or not self._active:
            return
        with self._clock.spending():
            try:
                self._add(trainer, pl_module, outputs, batch, batch_idx)
            except Exception as error:
                self._losses.refuse(f"the losses of the first epoch cannot be read ({error})")

    def _add(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses = self._losses
        evaluations, losses.backward = losses.backward, 0
        is_first = trainer.current_epoch == 0 and batch_idx == 0
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if losses.is_empty and not is_first:
            losses.refuse(RESUMED)
        elif not losses.is_empty and batch_idx == 0:  # the epoch ended early
            losses.is_closed = True
        elif not isinstance(loss, Tensor):
            losses.refuse(NO_LOSS)
        elif pl_module.automatic_optimization and evaluations > 1:
            losses.refuse(SEVERAL)
        elif is_first and (reason := self._repeated(trainer)):
            losses.refuse(reason)
        else:
            # Lightning divides the loss, as gradients add up
            factor = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            losses.add(loss, factor, batch, self._samples.layout)
            losses.is_closed = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        if losses.is_closed and trainer.world_size == 1:  # several processes do it together, at the next point
            self._first_epoch = losses.gathered(trainer)

    def _repeated(self, trainer: Any) -> str:
        loader = trainer.train_dataloader
        is_split = trainer.world_size > 1 and type(getattr(loader, "sampler", None)) is DistributedSampler
        return "" if trainer.overfit_batches or is_split else repeats(loader)

    def _end_first_epoch(self) -> None:
        super()._end_first_epoch()
        self._losses.is_closed = True

    def _measure_and_log(
        self,
        trainer: Any,
        pl_module: Any,
        step: int,
        due: Sequence[Member] = (),
        initial: ModelSnapshot | None = None,
    ) -> None:
        if self._first_epoch is None or not self._first_epoch.is_over:
            self._first_epoch = self._losses.gathered(trainer)
        super()._measure_and_log(trainer, pl_module, step, due, initial)

    def _point_at(self, trainer: Any, step: int) -> Point:
        first = self._first_epoch if step else None  # a point at step 0 may be measured some batches later
        return replace(super()._point_at(trainer, step), first_epoch=first)

    def _state(self) -> dict[str, Any]:
        first = self._first_epoch
        is_whole = first is not None and first.is_over and not first.missing
        return {**super()._state(), "first_epoch": asdict(first) if first is not None and is_whole else None}

    def _take_up(self, state: dict[str, Any]) -> None:
        super()._take_up(state)
        if state.get("first_epoch"):
            self._first_epoch, self._losses.is_closed = FirstEpoch(**state["first_epoch"]), True

    def _restart(self) -> None:
        super()._restart()
        self._losses, self._first_epoch = FirstLosses(), None
