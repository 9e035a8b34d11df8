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
from lightning_info.quantities.weight_information.direct_call import MOST_DRAWS
from lightning_info.quantities.weight_information.loss_rise import LossRise
from lightning_info.quantities.weight_information.noisy_loss import has_loss
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.timing import training_pass, trial

_DRAWS = 3
"""Draws that are tried after the first if a pass is long; of short passes, as many as run as one."""
_SLOPES = 1.25
"""Factor for the slopes over all draws; over the few that are tried they would take most of the time."""
FEWEST = 16
"""Draws on which the estimates are tried."""
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


def seconds_of_estimates(
    widths: Mapping[str, int], linear: Collection[str], z: tuple[int, int], searched: bool
) -> float:
    """Return the seconds for the information of all layers once the draws are there, from trials on a quarter of them.

    Args:
        widths: Units of each layer, by label.
        linear: Labels of the layers whose Gaussian given the noise from below is known.
        z: Draws and samples.
        searched: Whether the level is searched for.
    """
    known: dict[tuple[int, bool], float] = {}
    z, times = (max(FEWEST, z[0] // 4), z[1]), z[0] / max(FEWEST, z[0] // 4)
    generator, labels = torch.Generator().manual_seed(0), torch.arange(z[1]) % 10
    total = 0.0
    for label, width in widths.items():
        kind = width, label in linear
        if kind not in known:
            mean = torch.randn(1, z[1], width, generator=generator) + 0.5 * torch.randn(*z, width, generator=generator)
            below: tuple[Tensor, Tensor] | None = (mean, torch.ones_like(mean)) if kind[1] else None
            known[kind] = _seconds_of_one(mean, labels, below) * (_SLOPES if searched else 1.0)
        total += known[kind]
    return total * times


def _seconds_of_one(z: Tensor, labels: Tensor, below: tuple[Tensor, Tensor] | None) -> float:
    return trial(lambda: effective_information(z, labels, below), torch.device("cpu"))
