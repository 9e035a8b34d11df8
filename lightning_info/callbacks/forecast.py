"""Forecast of the cost of a point, by trials before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lightning_info.gradients.batches import num_samples
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.timing import training_pass, trial

FEW, QUICK = 8, 0.02
"""Number of samples for trials of the cost, if a pass over all takes longer than the second number, in seconds."""


@dataclass(frozen=True)
class Forecast:
    """Forecast of the cost of a point.

    Attributes:
        seconds: Seconds of a point; NaN if a trial failed.
        statistics: Part of them for the pass that gives BatchNorm layers the statistics of the reference samples.
        plain: Seconds of a plain forward and backward pass over a batch.
        text: The forecast in words.
    """

    seconds: float
    statistics: float
    plain: float
    text: str


def forecast(
    snapshot: ModelSnapshot,
    copying: Callable[[], object],
    point: Callable[[ModelSnapshot], float],
    normalised: int = 0,
) -> Forecast:
    """Forecast the cost of a point, in seconds and in plain passes, by trials on the samples of a snapshot.

    Args:
        snapshot: A snapshot; only a few of its samples are tried if a pass over those is not quick.
        copying: Makes a replica.
        point: Returns the seconds that a point takes beyond that, by trials on a snapshot.
        normalised: Samples that go through the replica for the statistics of BatchNorm layers first.
    """
    size, few = num_samples(snapshot.first_chunk()), snapshot.first(FEW)
    try:
        plain = training_pass(few, few.first_chunk()) * size / few.size
        if plain * few.size < QUICK * size:
            few, plain = snapshot, training_pass(snapshot, snapshot.first_chunk())
        batch = few.first_chunk()
        pass_of_few = partial(few.predictor, few.module, batch)
        statistics = trial(pass_of_few, few.device) * normalised / num_samples(batch) if normalised else 0.0
        cost = trial(copying, snapshot.device) + statistics + point(few)
    except Exception as error:
        return Forecast(math.nan, 0.0, math.nan, f"not known, a trial failed ({type(error).__name__})")
    passes = f"{cost / plain:.2g} forward and backward passes of {size} samples"
    return Forecast(cost, statistics, plain, f"about {cost:.2g} s a point, as {passes} (a trial)")
