"""The rise of the loss under weight noise, with each draw on a share of the samples only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_info.functional.output_kl import output_kl
from lightning_info.quantities.weight_information.direct_call import DirectCall, DirectCalls, Run
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot


class LossRise:
    """Rise of the mean loss of a sample under weight noise, nats.

    Without targets it is the mean ``KL(p_w(y|x) ‖ p_{w+n}(y|x))``, the rise of the loss at labels from the model.

    Draws differ more than samples, so many draws on a share each say more than a few on all samples. A draw comes with
    its opposite, so linear terms cancel.

    Args:
        snapshot: A snapshot with a private replica, at the weights without noise.
        shares: Number of interleaved subsets of the samples; if there are fewer samples, each is one subset.
        loss: Loss of all samples without noise; None if there are no targets.
    """

    def __init__(self, snapshot: ModelSnapshot, shares: int, loss: float | None) -> None:
        count, kind = min(shares, snapshot.size), _Divergence if loss is None else _Loss
        self._shares = [kind(snapshot, torch.arange(start, snapshot.size, count)) for start in range(count)]
        self._size, self._loss = snapshot.size, loss or 0.0

    def __call__(self, noises: Iterable[Tensor]) -> float:
        """Return the rise under draws ``(k,)``, as many as the shares or a multiple."""
        total, draws, shares = 0.0, 0, len(self._shares)
        for noise in noises:
            total += self._shares[draws % shares].at(noise)
            draws += 1
        return total / (draws / shares * self._size) - self._loss


class _Share:
    """Some samples."""

    def __init__(self, snapshot: ModelSnapshot, numbers: Tensor) -> None:
        self._snapshot, self._numbers = snapshot, numbers

    def _batches(self) -> Iterator[Any]:
        return (batch for batch, _ in self._snapshot.drawn(self._numbers))

    def _predictions(self) -> Iterator[Prediction]:
        return (self._snapshot.predictor(self._snapshot.module, batch) for batch in self._batches())


class _Loss(_Share):
    """Their loss; by direct calls, once these have reproduced whole passes."""

    _is_known = False
    _calls: DirectCalls | None = None

    def at(self, noise: Tensor) -> float:
        """Summed over the samples, mean of a draw and its opposite."""
        if self._calls is not None:
            return self._calls.read(torch.stack([noise, -noise]), _loss)["loss"].sum().item() / 2
        one, other = self._whole(noise), self._whole(-noise)
        if not self._is_known:
            self._is_known = True
            self._calls = DirectCalls.like(self._snapshot, self._batches(), noise, _loss, {"loss": one})
        return (one.sum() + other.sum()).item() / 2

    def _whole(self, noise: Tensor) -> Tensor:
        with moved(self._snapshot, noise):
            return torch.stack([prediction.summed_loss() for prediction in self._predictions()]).detach()


class _Divergence(_Share):
    """KL divergence of their predictions from those without noise."""

    def __init__(self, snapshot: ModelSnapshot, numbers: Tensor) -> None:
        super().__init__(snapshot, numbers)
        self._quiet = [(one.likelihood, one.mask, *one.parameters) for one in self._predictions()]

    def at(self, noise: Tensor) -> float:
        """Summed over the samples, mean of a draw and its opposite."""
        total = 0.0
        for n in (noise, -noise):
            with moved(self._snapshot, n):
                for (likelihood, mask, p, v), now in zip(self._quiet, self._predictions(), strict=True):
                    q, u = now.parameters
                    variances = None if v is None or u is None else (v, u)
                    total += output_kl(p, q, likelihood, mask, variances).sum().item() / 2
        return total


def _loss(call: DirectCall, run: Run) -> dict[str, Tensor]:
    return {"loss": call.loss(run())[None]}
