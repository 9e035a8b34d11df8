"""The loss under weight noise, measured on a private replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lightning_info.functional.standard_error import standard_error
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import shaped, sizes
from lightning_info.quantities.weight_information.curvature import Curvature
from lightning_info.replica.snapshot import ModelSnapshot


class NoisyLoss(NamedTuple):
    """Expected loss of a sample under weight noise, nats.

    Attributes:
        mean: Mean over the draws; NaN if the loss of one of them is not finite.
        stderr: Its standard error over pairs of draws, not over samples, for the noise in use; NaN for one pair. ±1.96
            of it cover 95 %, also for few pairs (:mod:`~..functional.standard_error`).
    """

    mean: float
    stderr: float


def noisy_losses(
    curvature: Curvature,
    levels: Sequence[tuple[float, float]],
    training_samples: float,
    draws: int,
    generator: Generator,
) -> list[NoisyLoss]:
    """Measure ``E_Q[loss]`` on the samples of F under ``N(0, Σ*)``, at each level.

    Noise comes in opposite pairs ±n, so linear terms cancel exactly; all levels use the same normal numbers.

    Args:
        curvature: F at the weights of the replica.
        levels: The level β and the standard deviation λ of the prior, for each level.
        training_samples: N of the summed loss.
        draws: Number of draws for each level, even.
        generator: Source of the draws.
    """
    snapshot = curvature.snapshot
    pairs: list[list[float]] = [[] for _ in levels]
    for _ in range(draws // 2):
        noise = curvature.noise(torch.randn(curvature.spectrum.weights, generator=generator), training_samples)
        for found, level in zip(pairs, levels, strict=True):
            n = noise(*level)
            found.append(0.5 * (_loss_at(snapshot, n) + _loss_at(snapshot, -n)))
    return [_summary(torch.tensor(found, dtype=torch.float64)) for found in pairs]


def has_loss(snapshot: ModelSnapshot) -> bool:
    """Tell whether there are targets for the loss."""
    return snapshot.predictor(snapshot.module, snapshot.first_chunk()).has_loss


def mean_loss(snapshot: ModelSnapshot) -> float:
    """Return the mean training loss of a sample, nats; the positions of a sample are summed."""
    total = torch.stack([snapshot.predictor(snapshot.module, part).summed_loss().detach() for part in snapshot.parts()])
    return total.sum().item() / snapshot.size


@contextmanager
def moved(snapshot: ModelSnapshot, noise: Tensor) -> Iterator[None]:
    """Put noise ``(k,)``, laid out as in :mod:`~..gradients.real`, on the weights of a private replica inside."""
    parameters = list(trainable(snapshot.module).values())
    saved = [p.detach().clone() for p in parameters]
    parts = torch.split(noise, sizes(parameters))
    try:
        with torch.no_grad():
            for p, change in zip(parameters, parts, strict=True):
                p.add_(shaped(change, p))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, saved, strict=True):
                p.copy_(value)


def _loss_at(snapshot: ModelSnapshot, noise: Tensor) -> float:
    with moved(snapshot, noise):
        return mean_loss(snapshot)


def _summary(losses: Tensor) -> NoisyLoss:
    return NoisyLoss(losses.mean().item(), standard_error(losses))
