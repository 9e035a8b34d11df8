"""What the information plane needs from a forward pass: a few units per layer, and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_info.functional.codes import row_hashes, value_codes
from lightning_info.quantities.information_plane.decoded import MOST, views_at_positions, views_of
from lightning_info.quantities.information_plane.labels import targets_of
from lightning_info.quantities.information_plane.projections import keys_of
from lightning_info.quantities.quantity import Warn
from lightning_info.replica.activations import LOSS, Activation, Layer, masks_of
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import TARGETS
from lightning_info.replica.unit_rows import is_discrete

MOST_UNITS = 12
"""Largest number of units of a layer that is not projected."""


@dataclass(frozen=True)
class LayerFeatures:
    """Reads the units of some layers, or a random projection of wide ones, and the targets.

    Args:
        layers: The layers.
        directions: Number of directions to which layers with more than :data:`MOST_UNITS` units are projected.
        seed: Seed of the projections.
        projections: Number of such projections.
        decoded: Positions of a sample that decoders of its labels see; 0 if a sample has one label, for which they see
            the whole of it; None without decoders.
        most: Largest number of activations that they see as they are.
        codes: Whether the activations of a sample, all of them as they are, are read as one integer.
        whole: Whether they are read as they are.
    """

    layers: tuple[Layer, ...]
    directions: int
    seed: int
    projections: int = 1
    decoded: int | None = None
    most: int = MOST
    codes: bool = False
    whole: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether the activations at all positions are needed."""
        return self.decoded is not None or self.codes or self.whole

    @property
    def parts(self) -> dict[str, list[str]]:
        """Keys of the projections of each layer."""
        return {layer.label: keys_of(layer.label, self._count(layer)) for layer in self.layers}

    def _count(self, layer: Layer) -> int:
        return 1 if layer.is_discrete or layer.units <= MOST_UNITS else self.projections

    def __call__(self, prediction: Prediction, activations: Mapping[str, Activation]) -> dict[str, Tensor]:
        """Return ``units/<key>`` of each projection, ``shown/<layer>``, ``targets``, what decoders see, and codes."""
        read, own = {}, {label: activations[label] for label in self.parts if label in activations}
        for label, activation in own.items():
            for number, key in enumerate(self.parts[label]):
                read[f"units/{key}"] = self.project(activation.units, number)
            read[f"shown/{label}"] = activation.shown
            whole = activation.units if activation.rows is None else activation.rows
            if self.codes:
                read[f"codes/{label}"] = value_codes(whole)[:, None]
            if self.whole:
                read[f"whole/{label}"] = whole.flatten(1)
        targets = targets_of(prediction)
        if targets is not None:
            read[TARGETS] = targets
        if self.decoded:
            read |= views_at_positions(prediction, own, self.decoded, self.most)
        elif self.decoded is not None:
            read |= views_of(own, self.most)
        return read

    def project(self, units: Tensor, number: int = 0) -> Tensor:
        """Reduce units above :data:`MOST_UNITS` to ``(N, d)``: random orthonormal combinations, a hash for integers.

        Args:
            units: ``(N, units)``.
            number: Which of the projections.
        """
        width = units.shape[1]
        if width <= MOST_UNITS:
            return units
        if is_discrete(units):
            return row_hashes(units).unsqueeze(1)
        projected: Tensor = units @ random_directions(width, self.directions, self.seed, number).to(units)
        return projected


@lru_cache(maxsize=512)
def random_directions(width: int, count: int, seed: int, number: int) -> Tensor:
    """Return orthonormal directions ``(width, count)``, float64, the same for the same arguments."""
    generator = torch.Generator().manual_seed((1_000_003 * seed + width + 7_368_787 * number) % 2**63)
    normal = torch.randn(width, min(count, width), generator=generator, dtype=torch.float64)
    directions: Tensor = torch.linalg.qr(normal).Q
    return directions


def rows_of_layers(
    layers: Sequence[Layer], prediction: Prediction, left_out: Mapping[str, str], warn: Warn
) -> dict[str, str]:
    """Return rows of the summary on padding and on layers that are left out; warn if padding enters a mean.

    Args:
        layers: The layers.
        prediction: The prediction for a few samples.
        left_out: Why other layers cannot be measured, by label.
        warn: Warns the user once.
    """
    rows = {}
    padding, enters = _padding(layers, prediction)
    if padding:
        rows["padding"] = padding
    if enters:
        warn(padding, "padding")
    if left_out:
        rows["left out"] = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
    return rows


def _padding(layers: Sequence[Layer], prediction: Prediction) -> tuple[str, bool]:
    """Return the text about padding in the means over positions; empty if there is nothing to say.

    Args:
        layers: The layers.
        prediction: The prediction for a few samples.

    Returns:
        The text, and whether known padding enters the means of some layers.
    """
    said = []
    for source in dict.fromkeys(layer.padding for layer in layers if layer.padding):
        which = ", ".join(layer.label for layer in layers if layer.padding == source)
        said.append(f"left out of the means over positions of {which}, by {source}")
    entered = [layer.label for layer in layers if layer.positions and not layer.padding]
    has_positions = not prediction.unknown and (prediction.likelihood == "categorical" or len(prediction.positions) > 2)
    known = [
        mask.name
        for mask in masks_of(prediction)
        if not bool(mask.kept.all())
        and (mask.name != LOSS or has_positions or LOSS in (layer.padding for layer in layers))
    ]
    if entered and known:
        said.append(
            f"positions that {known[0]} leaves out enter the means over positions of {', '.join(entered)}, which have "
            f"another number of them: how much a batch is padded then shows there"
        )
    return "; ".join(said), bool(entered and known)
