"""By how much weight noise raises the loss, each draw on a share of the samples alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_info.quantities.weight_information.direct_call import DirectCall, DirectCalls, Run
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.snapshot import ModelSnapshot


class LossRise:
    """By how much weight noise raises the mean loss of a sample, nats.

    The draws differ more than the samples, so that many of them on a share each say more than few on all. A draw comes
    with its opposite, so that what is linear in it cancels.

    Args:
        snapshot: With a private replica.
        shares: Every so manieth sample makes one; fewer samples are one each.
        loss: Without noise, of all samples.
    """

    def __init__(self, snapshot: ModelSnapshot, shares: int, loss: float) -> None:
        count = min(shares, snapshot.size)
        self._shares = [_Share(snapshot, torch.arange(start, snapshot.size, count)) for start in range(count)]
        self._size, self._loss = snapshot.size, loss

    def __call__(self, noises: Iterable[Tensor]) -> float:
        """The rise under draws ``(k,)``, as many as the shares or a multiple."""
        total, draws, shares = 0.0, 0, len(self._shares)
        for noise in noises:
            total += self._shares[draws % shares].loss(noise)
            draws += 1
        return total / (draws / shares * self._size) - self._loss


class _Share:
    """Some samples; by direct calls, once they gave the loss of whole passes."""

    def __init__(self, snapshot: ModelSnapshot, numbers: Tensor) -> None:
        self._snapshot, self._numbers = snapshot, numbers
        self._is_known = False
        self._calls: DirectCalls | None = None

    def loss(self, noise: Tensor) -> float:
        """Summed over the samples, mean of a draw and its opposite."""
        if self._calls is not None:
            return self._calls.read(torch.stack([noise, -noise]), _loss)["loss"].sum().item() / 2
        one, other = self._whole(noise), self._whole(-noise)
        if not self._is_known:
            self._is_known = True
            self._calls = DirectCalls.like(self._snapshot, self._batches(), noise, _loss, {"loss": one})
        return (one.sum() + other.sum()).item() / 2

    def _batches(self) -> Iterator[Any]:
        return (batch for batch, _ in self._snapshot.drawn(self._numbers))

    def _whole(self, noise: Tensor) -> Tensor:
        with moved(self._snapshot, noise):
            parts = [self._snapshot.predictor(self._snapshot.module, some).summed_loss() for some in self._batches()]
        return torch.stack(parts).detach()


def _loss(call: DirectCall, run: Run) -> dict[str, Tensor]:
    return {"loss": call.loss(run())[None]}
