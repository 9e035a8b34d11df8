"""The rate-distortion curve of the weights, measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Generator

from lightning_info.functional.rate_distortion import RatePoint
from lightning_info.functional.weight_information import expected_loss_rise, weight_information
from lightning_info.quantities.weight_information.curvature import Curvature
from lightning_info.quantities.weight_information.noisy_loss import NoisyLoss, noisy_losses


def rate_distortion_curve(
    curvature: Curvature,
    loss: float | None,
    levels: Sequence[tuple[float, float]],
    squared_distance: float | None,
    training_samples: float,
    draws: int,
    generator: Generator,
) -> list[RatePoint]:
    """Measure KL and expected loss at each level, on the samples of F.

    Args:
        curvature: F at the weights of the replica.
        loss: Mean loss of a sample without noise, nats; None without targets, and so without a loss at any level.
        levels: The level β and the standard deviation λ of the prior, for each level.
        squared_distance: ``‖w - w_ref‖²``; None if it is not known.
        training_samples: N of the summed loss.
        draws: Number of weight draws for each level, even.
        generator: Source of the draws.
    """
    summed = curvature.spectrum.scaled(training_samples)
    noisy = [NoisyLoss(math.nan, math.nan)] * len(levels)
    if loss is not None:
        noisy = noisy_losses(curvature, levels, training_samples, draws, generator)
    quiet = math.nan if loss is None else loss
    distance = math.nan if squared_distance is None else squared_distance
    return [
        RatePoint(
            beta,
            lambda_,
            math.nan if squared_distance is None else weight_information(summed, squared_distance, beta, lambda_),
            distance / (2 * lambda_**2),
            found.mean,
            found.stderr,
            quiet + expected_loss_rise(summed, beta, lambda_) / training_samples,
            quiet,
        )
        for (beta, lambda_), found in zip(levels, noisy, strict=True)
    ]
