"""Forecast of the cost of a point of the plane, from trials on a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator

from lightning_info.gradients.batches import take
from lightning_info.quantities.information_plane.decoded import CLASSES
from lightning_info.quantities.information_plane.estimates import Estimate, EstimatorSettings
from lightning_info.quantities.information_plane.features import LayerFeatures
from lightning_info.quantities.information_plane.label_information import LabelDecoders
from lightning_info.quantities.information_plane.labels import Labels
from lightning_info.quantities.information_plane.nuisances import NuisanceDecoders
from lightning_info.quantities.information_plane.own_noise import OwnNoise
from lightning_info.quantities.quantity import Point, silent
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.timing import trial


def seconds_of_point(
    snapshot: ModelSnapshot,
    samples: int,
    features: LayerFeatures,
    estimates: Sequence[Estimate],
    method: EstimatorSettings,
    own_noise: OwnNoise,
    decoders: LabelDecoders,
    nuisances: NuisanceDecoders,
) -> float:
    """Return the seconds of a point, of its pass and all that is estimated.

    Args:
        snapshot: A few samples, which stand for more.
        samples: Number of samples of a point.
        features: What is read of them.
        estimates: Estimates of the plane.
        method: Their settings.
        own_noise: Noise of the layers' own dropout.
        decoders: Decoders of the label.
        nuisances: Decoders of nuisances.
    """
    few = snapshot.first(snapshot.chunk)
    size = min(samples, max(few.size, snapshot.at_once))
    many = [take(few.groups[0], torch.arange(size) % few.size)]
    cost = trial(lambda: few.on(many).read(features), snapshot.device) * samples / size
    repeated, y = torch.arange(samples) % few.size, Labels(torch.arange(samples) % 2)
    read = few.read(features)
    point = Point(0, Generator().manual_seed(0), warn=silent)
    for layer in features.layers:
        keys = features.parts[layer.label]
        for estimate in estimates:
            t = read[f"{estimate.reads}/{layer.label}"][repeated]
            if estimate.estimator.has_own_noise:
                whole = {f"whole/{layer.label}": t}
                cost += trial(partial(own_noise.readings, layer, whole, features, y, snapshot.module, point), t.device)
            else:
                ends = t.min().item(), t.max().item()
                cost += trial(partial(estimate.read, t, y, ends, method), t.device) * len(keys)
    cost += decoders.seconds(samples * max(1, features.decoded or 0), CLASSES)
    return cost + nuisances.seconds(few, features, samples)
