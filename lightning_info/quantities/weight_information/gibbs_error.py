"""The error of weights drawn from Q, and what it can be at most on the whole training set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from lightning_info.functional.diagonal_gaussian import DiagonalGaussian
from lightning_info.functional.pac_bayes import gibbs_risk_bound
from lightning_info.quantities.weight_information.classification import errors, errors_of_call
from lightning_info.quantities.weight_information.direct_call import AT_ONCE, DirectCalls
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.snapshot import ModelSnapshot

PART = 64
"""Samples that share draws of the weights, about."""
MOST_PARTS = 64
DRAWS, FEWEST_DRAWS, SINGLE = 4096, 128, 8
"""Most draws of the weights, fewest, and how many times fewer there are if each takes a pass of its own."""
WORK = 25_000_000_000
"""Largest number of draws times weights times :data:`PART`; beyond it there are fewer draws. For that many weights the
KL is so large that the error of the error does not matter."""
MOST_DRAWS = 256
"""Largest number of draws that run as one: for a small network a call takes as long as many draws in it."""


class GibbsError(NamedTuple):
    """Error of the Gibbs classifier on the training set.

    Attributes:
        mean: Mean over draws of the weights and samples.
        stderr: Its standard error over both.
        upper: Upper bound, with the confidence asked for.
    """

    mean: float
    stderr: float
    upper: float


class NoisyErrors:
    """Errors of some samples of a snapshot at many weights; by direct calls, once these reproduce a whole pass.

    Args:
        snapshot: A snapshot with a private replica, at the weights without noise.
        numbers: Numbers of the samples; all of them without.
    """

    def __init__(self, snapshot: ModelSnapshot, numbers: Tensor | None = None) -> None:
        self._snapshot = snapshot
        self._numbers = torch.arange(snapshot.size) if numbers is None else numbers
        self._is_known = False
        self._calls: DirectCalls | None = None

    @property
    def runs_many(self) -> bool:
        """Whether several draws run as one; known after the first."""
        return self._calls is not None and self._calls.as_one > 1

    def at(self, noises: Tensor) -> Tensor:
        """Return the error of each sample at each draw, ``(D, n)`` float64 on the CPU; draws are noise ``(D, k)``."""
        if not self._is_known:
            self._find(noises[0])
        if self._calls is not None:
            return self._calls.read(noises, errors_of_call)["errors"].cpu()
        return torch.stack([self.whole(noise) for noise in noises])

    def _find(self, noise: Tensor) -> None:
        self._is_known = True
        parts = self._outputs(noise)
        if len({part.shape[1:] for part in parts}) == 1:  # a module may cut each batch to its longest sample
            self._calls = DirectCalls.like(
                self._snapshot,
                self._batches(),
                noise,
                lambda call, run: {"outputs": run()},
                {"outputs": torch.cat(parts)},
                MOST_DRAWS,
            )

    def _batches(self) -> Iterator[Any]:
        return (batch for batch, _ in self._snapshot.drawn(self._numbers))

    def _outputs(self, noise: Tensor) -> list[Tensor]:
        with moved(self._snapshot, noise):
            predictor, module = self._snapshot.predictor, self._snapshot.module
            return [predictor(module, batch).outputs.detach() for batch in self._batches()]

    def whole(self, noise: Tensor) -> Tensor:
        """Return the error of each sample at one draw, ``(n,)``, by whole passes."""
        with moved(self._snapshot, noise):
            found = [self._snapshot.predictor(self._snapshot.module, batch) for batch in self._batches()]
            return torch.cat([errors(one.outputs.detach(), one, one.mask).cpu() for one in found])


def gibbs_error(
    snapshot: ModelSnapshot, posterior: DiagonalGaussian, draws: int, total: float, delta: float, generator: Generator
) -> GibbsError:
    """Measure the error of weights from Q on the training set, and bound it.

    The samples are divided at random into parts of about :data:`PART`, each with D draws of its own, and every draw is
    evaluated on all samples of its part. With all N samples, these are as many independent averages as there are draws;
    errors of a smaller part count as if the missing samples were right, so that all have the same weight, and the mean
    is scaled back. If the samples are a random part of the N, take a draw with each of D distinct samples of its part:
    that is a mean over independent draws at random samples, with a Chernoff bound, and the mean over all such choices
    has the same bound (Hoeffding 1963, section 5b).

    Args:
        snapshot: A snapshot with a private replica at the mean of Q, and the samples.
        posterior: Q, chosen without these draws, and without the random choice of the samples.
        draws: Number of draws of the weights, rounded up to a multiple of the parts; fewer for large networks.
        total: N, the size of the training set.
        delta: Probability that the upper bound fails.
        generator: Source of the draws.
    """
    size = snapshot.size
    weights = len(posterior.std)
    probe = NoisyErrors(snapshot, torch.arange(min(size, PART)))
    probe.at(posterior.noise(1, generator))
    draws = affordable(draws, weights, probe.runs_many)
    count = min(math.ceil(size / PART), MOST_PARTS, draws)
    each, largest = math.ceil(draws / count), math.ceil(size / count)
    means, wrong, variance = 0.0, 0.0, 0.0
    for numbers in torch.tensor_split(torch.randperm(size, generator=generator), count):
        part, sums = NoisyErrors(snapshot, numbers), []
        for some in _counts(each, weights):
            sums.append(part.at(posterior.noise(some, generator)).sum(1))
        found = torch.cat(sums)
        wrong += found.mean().item()
        means += found.mean().item() / (len(numbers) * count)
        variance += found.var().item() / each if each > 1 else 0.0
    if size < total:
        upper = gibbs_risk_bound(min(1.0, means), count * min(each, size // count), delta)
        variance += size * means * (1 - means) * (1 - size / total)
    else:
        padded = count * largest
        upper = min(1.0, padded / size * gibbs_risk_bound(min(1.0, wrong / padded), each * count, delta))
    return GibbsError(wrong / size, math.sqrt(variance) / size, upper)


def affordable(draws: int, weights: int, runs_many: bool) -> int:
    """Return how many of so many draws are made for a network, by its size and not by the clock."""
    most = min(DRAWS, WORK // (PART * max(1, weights)))
    return min(draws, max(FEWEST_DRAWS, most if runs_many else most // SINGLE))


def _counts(draws: int, weights: int) -> Iterator[int]:
    """Return how many draws are made at a time: as many as run as one, in little memory."""
    most = max(1, min(MOST_DRAWS, AT_ONCE // max(1, weights)))
    while draws > 0:
        yield min(most, draws)
        draws -= most
