"""Forecast of the cost of a point, from trials on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from lightning_info.functional.effective_information import effective_information
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import sizes
from lightning_info.quantities.effective_information.conditional_gaussian import linear_noises
from lightning_info.quantities.effective_information.noise_calibration import PASSES, POWER_PASSES, SHARES
from lightning_info.quantities.effective_information.noisy_activations import NoisyFeatures, noisy_activations
from lightning_info.quantities.effective_information.relative_curvature import measure_relative_curvature
from lightning_info.quantities.weight_information.curvature import CurvaturePlan
from lightning_info.quantities.weight_information.direct_call import MOST_DRAWS
from lightning_info.quantities.weight_information.loss_rise import LossRise
from lightning_info.quantities.weight_information.noisy_loss import has_loss
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.timing import LONG, seconds, training_pass, trial

_DRAWS = 3
"""Draws that are tried after the first if a pass is long; of short passes, as many as run as one."""
FEWEST = 16
"""Draws on which the estimates are tried first."""
TRIED, MORE = 2, 16
"""Samples on which F is tried, and more of them if that takes less than :data:`BRIEF` seconds."""
BRIEF = 0.5
QUICK = 0.02
"""Seconds below which a pass is repeated on as many samples as a point has."""


def seconds_of_passes(
    snapshot: ModelSnapshot,
    samples: int,
    features: NoisyFeatures,
    linear: Collection[str],
    draws: int,
    searched: bool,
) -> float:
    """Return the seconds of the passes of a level, in the chunks of a point, repeating the few samples to fill them.

    If a pass over the few is long, it represents the others.

    Args:
        snapshot: A snapshot with a private replica and a few samples.
        samples: Number of samples of a point.
        features: What is read of a pass.
        linear: Names of the ``nn.Linear`` that are watched.
        draws: M.
        searched: Whether the level is searched for.
    """
    group = snapshot.groups[0]
    is_quick = training_pass(snapshot, snapshot.first_chunk()) < QUICK
    tried, more_draws = (samples, MOST_DRAWS) if is_quick else (num_samples(group), _DRAWS)
    whole = snapshot.on([take(group, torch.arange(tried) % num_samples(group))]).in_larger_chunks()
    nothing = torch.zeros(sum(sizes(trainable(snapshot.module).values())), dtype=torch.float64)
    noises = linear_noises(snapshot.module, linear, nothing)

    def run(count: int) -> Callable[[], object]:
        return lambda: noisy_activations(whole, features, [nothing] * count, noises)

    first, more = (trial(run(count), snapshot.device) for count in (1, 1 + more_draws))
    total = first + (draws - 1) * max(0.0, more - first) / more_draws
    if searched:
        loss_rise = LossRise(whole, SHARES, 0.0 if has_loss(whole) else None)
        loss_rise([nothing] * SHARES)  # the first finds out how
        evaluation = trial(lambda: loss_rise([nothing] * SHARES), snapshot.device)
        total += evaluation * (PASSES + POWER_PASSES) / 2  # it makes two passes
    return total * samples / tried


def seconds_of_curvature(plan: CurvaturePlan, snapshot: ModelSnapshot, samples: int, prior: Tensor) -> float:
    """That F takes, of which a part is the same for any number of samples.

    Args:
        plan: How F is measured.
        snapshot: With a private replica and a few samples, which stand for more.
        samples: That a point will be of.
        prior: See :func:`~.relative_curvature.measure_relative_curvature`.
    """
    group, generator = snapshot.groups[0], torch.Generator().manual_seed(0)

    def run(count: int) -> float:
        some = snapshot.on([take(group, torch.arange(count) % num_samples(group))])
        return trial(lambda: measure_relative_curvature(plan, some, generator, prior), snapshot.device)

    few = min(TRIED, samples)
    first = run(few)
    if first > BRIEF or samples <= MORE:
        return first * samples / few
    return first + max(0.0, run(MORE) - first) * (samples - few) / (MORE - few)


def seconds_of_estimates(
    widths: Mapping[str, int], linear: Collection[str], z: tuple[int, int], searched: bool
) -> float:
    """Return the seconds for the information of all layers once the draws are there; if long, from a quarter of them.

    Args:
        widths: Units of each layer, by label.
        linear: Labels of the layers whose Gaussian given the noise from below is known.
        z: Draws and samples.
        searched: Whether the level is searched for.
    """
    known: dict[tuple[int, bool], float] = {}
    few = min(z[0], max(FEWEST, z[0] // 4))
    generator, labels = torch.Generator().manual_seed(0), torch.arange(z[1]) % 10
    total = 0.0
    for label, width in widths.items():
        kind = width, label in linear
        if kind not in known:
            mean = torch.randn(1, z[1], width, generator=generator) + 0.5 * torch.randn(*z, width, generator=generator)

            def run(draws: int, mean: Tensor = mean, is_linear: bool = kind[1]) -> float:
                part = mean[:draws]
                below = (part, torch.ones_like(part)) if is_linear else None
                return seconds(
                    lambda: effective_information(part, labels, below, with_slopes=searched), torch.device("cpu")
                )

            found = run(few)
            # what a draw takes grows once they are more than the units
            known[kind] = found * z[0] / few if found > LONG else run(z[0])
        total += known[kind]
    return total
