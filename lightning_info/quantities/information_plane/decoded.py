"""What decoders of the label see of a layer: all activations of a sample, or those at some positions of a sequence.

A layer of more activations than :data:`MOST` is reduced to as many sums of some of them with random signs, which keep
distances between samples (Weinberger et al. 2009, feature hashing). As these are functions of the layer, what a decoder
knows of them is a lower bound all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightning_info.functional.codes import hashed, row_hashes
from lightning_info.quantities.information_plane.labels import IGNORED
from lightning_info.replica.activations import Activation
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import LONG, TARGETS

MOST = 1024
"""Activations of a sample that are used as they are; of more, as many random sums."""
LARGE = 1 << 15
"""Activations of a sample in all measured layers; of a net with fewer, whose passes are cheap, half as many count."""
LEAST = 64
"""Smallest number to which the run's budget may reduce them; after that there are no decoders."""
TOKENS = f"{TARGETS}/positions"
"""Name of the labels at the positions of a sequence that are looked at."""
MOST_POSITIONS = 8
"""Largest number of positions of a sequence that are looked at; of many sequences fewer."""
CLASSES = 15
"""Labels of positions that stay apart, the most frequent; all others are one."""


def most_seen(activations: Iterable[Activation]) -> int:
    """Return how many activations of a sample decoders see in a layer, so that they do not cost more than the net."""
    numbers = sum(one.rows[0].numel() for one in activations if one.rows is not None)
    return MOST if numbers >= LARGE else MOST // 2


def views_of(activations: Mapping[str, Activation], most: int) -> dict[str, Tensor]:
    """Return ``long/all/<layer>`` and, of a layer with positions, ``long/mean/<layer>``, their means by channel.

    Args:
        activations: By the layers' labels.
        most: Largest number of columns.
    """
    read = {}
    for label, activation in activations.items():
        if activation.rows is not None:
            read[f"{LONG}all/{label}"] = sketched(activation.rows.movedim(2, 1).flatten(1), most)
            if activation.rows.shape[2] > 1:
                read[f"{LONG}mean/{label}"] = sketched(activation.units, most)
    return read


def views_at_positions(
    prediction: Prediction, activations: Mapping[str, Activation], per_sample: int, most: int
) -> dict[str, Tensor]:
    """Return :data:`TOKENS` ``(N, per_sample)``, and ``long/all/<layer>`` for layers with as many positions as labels.

    A layer with one more is one of a language model whose last position has no label.

    The positions of a sample are evenly spaced among those that have a label, the first of them by a hash of these.

    Args:
        prediction: For a batch, with labels ``(N, T)``.
        activations: By the layers' labels.
        per_sample: Number of positions of a sample.
        most: Largest number of activations of a position.
    """
    labels = labels_at_positions(prediction)
    if labels is None:
        return {}
    known = labels != IGNORED
    count = known.sum(1, keepdim=True)
    start = row_hashes(labels).remainder(1 << 20)[:, None]
    wanted = (start + torch.arange(per_sample, device=labels.device) * count // per_sample) % count.clamp_min(1)
    places = (~known).byte().argsort(dim=1, stable=True).gather(1, wanted)  # those with a label come first
    read = {TOKENS: torch.where(count > 0, labels.gather(1, places), IGNORED)}
    for label, activation in activations.items():
        rows = activation.rows
        if rows is not None and rows.shape[2] - labels.shape[1] in (0, 1):
            chosen = rows.movedim(2, 1).gather(1, places[:, :, None].expand(-1, -1, rows.shape[1]))
            read[f"{LONG}all/{label}"] = sketched(chosen.flatten(0, 1), most).reshape(len(rows), -1)
    return read


def positions_seen(prediction: Prediction, targets: Tensor | None, samples: int) -> int | None:
    """Return :attr:`.LayerFeatures.decoded`.

    Args:
        prediction: For a few samples.
        targets: One for each of them; None without.
        samples: Number of samples of a measurement.
    """
    if labels_at_positions(prediction) is not None:
        return min(MOST_POSITIONS, math.ceil(MOST / max(1, samples)))
    return None if targets is None else 0


def labels_at_positions(prediction: Prediction) -> Tensor | None:
    """Return the classes at the positions of sequences, ``(N, T)``, :data:`IGNORED` where there is none.

    None if a sample has one label, or labels that are no classes.
    """
    y = prediction.targets
    if y is None or prediction.unknown or prediction.likelihood != "categorical" or y.numel() == len(y):
        return None
    y = y.argmax(-1) if y.is_floating_point() else y
    if prediction.mask is not None:
        y = torch.where(prediction.mask, y, IGNORED)
    y = y.flatten(1)
    return y if y.shape[1] > 1 else None


def grouped(tokens: Tensor) -> Tensor:
    """Return labels with all but the :data:`CLASSES` most frequent ones as one, ``(N,)``; ignored ones stay so."""
    values, counts = torch.unique(tokens[tokens != IGNORED], return_counts=True)
    frequent = values[counts.argsort(descending=True, stable=True)[:CLASSES]]
    rest = values.max().item() + 1 if len(values) else 0
    return torch.where(torch.isin(tokens, frequent) | (tokens == IGNORED), tokens, rest)


def sketched(rows: Tensor, most: int = MOST) -> Tensor:
    """Reduce ``(N, d)`` to at most so many columns; the first of them keep their places, so rows may be longer."""
    d = rows.shape[1]
    if d <= most:
        return rows
    mixed = hashed(torch.arange(most, d, device=rows.device)[:, None])
    signs = 1 - 2 * (mixed & 1)
    sums: Tensor = rows[:, :most].index_add(1, (mixed >> 1).remainder(most), rows[:, most:] * signs)
    return sums
