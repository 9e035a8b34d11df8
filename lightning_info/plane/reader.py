"""What the information plane needs of a forward pass: a few units a layer, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_info.functional.codes import row_hashes
from lightning_info.plane.labels import IGNORED
from lightning_info.probing.activations import Activation, Layer, is_discrete
from lightning_info.probing.likelihoods import Prediction

MOST_UNITS = 12
"""Wider layers are projected."""
TARGETS = "targets"


@dataclass(frozen=True)
class ActivationReader:
    """Reads the units of some layers, of wide ones a random projection, and the targets.

    Args:
        layers: The layers.
        directions: Of the projection of layers with more than :data:`MOST_UNITS` units.
        seed: Of the projection.
    """

    layers: tuple[Layer, ...]
    directions: int
    seed: int

    def __call__(self, prediction: Prediction, activations: Mapping[str, Activation]) -> dict[str, Tensor]:
        """``units/<layer>``, ``shown/<layer>`` and, where a sample has one target, ``targets``."""
        read = {}
        for label, activation in activations.items():
            read[f"units/{label}"] = self.project(activation.units)
            read[f"shown/{label}"] = activation.shown
        targets = _targets(prediction)
        if targets is not None:
            read[TARGETS] = targets
        return read

    def project(self, units: Tensor) -> Tensor:
        """At most :data:`MOST_UNITS` units, ``(N, d)``: orthonormal random combinations of more, a hash of integers."""
        width = units.shape[1]
        if width <= MOST_UNITS:
            return units
        if is_discrete(units):
            return row_hashes(units).unsqueeze(1)
        projected: Tensor = units @ _directions(width, self.directions, self.seed).to(units)
        return projected


@lru_cache(maxsize=64)
def _directions(width: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed((1_000_003 * seed + width) % 2**63)
    normal = torch.randn(width, min(count, width), generator=generator, dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(normal).Q
    return directions


def _targets(prediction: Prediction) -> Tensor | None:
    """Classes ``(N,)``, labels of several outputs ``(N, k)`` in {0, 1}, or continuous targets ``(N, k)``."""
    y = prediction.targets
    if y is None:
        return None
    if prediction.likelihood == "categorical":
        if y.is_floating_point():
            y = y.argmax(-1)
        elif prediction.mask is not None:
            y = torch.where(prediction.mask, y, IGNORED)
        return y.flatten() if y.numel() == len(y) else None
    y = y.flatten(1) if y.dim() > 1 else y.unsqueeze(1)
    return (y > 0.5).long() if prediction.likelihood == "bernoulli" else y.double()
