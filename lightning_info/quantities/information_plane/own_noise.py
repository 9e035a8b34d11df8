"""The plane under the net's own dropout: which layers it acts on, and the values of each at a point.

The noise of a layer is that of its own dropout; the others are off, as in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.functional.dropout_information import DropoutNoise, dropout_information
from lightning_info.functional.information_estimator import LayerInformation
from lightning_info.quantities.information_plane.estimates import of_labelled
from lightning_info.quantities.information_plane.features import MOST_UNITS, LayerFeatures, random_directions
from lightning_info.quantities.information_plane.labels import Labels
from lightning_info.quantities.quantity import NotMeasurable, Point
from lightning_info.replica.activations import Activation, Layer
from lightning_info.replica.dropout_noise import UnknownNoise, dropout_noise, is_dropout
from lightning_info.replica.layer_selection import MOST, LayerNames
from lightning_info.replica.snapshot import ModelSnapshot

WIDEST = 8192
"""Largest number of activations of a sample that are looked at."""
DRAWS = 4
"""Draws for each sample of all units; of combinations there is one for each set of them."""


class OwnNoise:
    """The dropout modules that run, and what they do.

    Args:
        snapshot: A few samples; None for no dropout at all.
        batch: The samples, on their device.

    Attributes:
        noises: What is known of each before the first step, by name.
        unknown: Why others are not known.
    """

    def __init__(self, snapshot: ModelSnapshot | None = None, batch: Any = None) -> None:
        self._shapes: dict[str, torch.Size] = {}
        self.noises: dict[str, DropoutNoise] = {}
        self.unknown: dict[str, str] = {}
        if snapshot is None:
            return
        parts = {name: part for name, part in snapshot.module.named_modules() if name and is_dropout(part)}
        handles = [part.register_forward_pre_hook(partial(self._ran, name)) for name, part in parts.items()]
        try:
            snapshot.predictor(snapshot.module, batch)
        finally:
            for handle in handles:
                handle.remove()
        for name, shape in self._shapes.items():
            try:
                noise = dropout_noise(parts[name], shape)
            except UnknownNoise as error:
                self.unknown[name] = str(error)
            else:
                if noise is None:
                    self.unknown[name] = f"{type(parts[name]).__name__} has no noise (p = 0)"
                else:
                    self.noises[name] = noise

    def _ran(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            self._shapes.setdefault(name, args[0].shape)

    def names(self, named: LayerNames | None) -> LayerNames:
        """Return the layers to look for: those that are named, or the dropouts, at most eight evenly over depth.

        Raises:
            NotMeasurable: There is no dropout.
        """
        if named is not None:
            return named
        if not self.noises:
            why = "; ".join(f"{name!r}: {reason}" for name, reason in list(self.unknown.items())[:3])
            raise NotMeasurable(
                f"estimator='dropout' needs an nn.Dropout module that runs (calls of F.dropout are not seen)"
                f"{f'; {why}' if why else ''}. Add one, or take estimator='mixture', whose noise is set by hand"
            )
        names = list(self.noises)
        places = torch.linspace(0, len(names) - 1, min(len(names), MOST)).round().int().tolist()
        return [names[place] for place in places]

    def check(self, layers: Sequence[Layer], activations: Mapping[str, Activation]) -> None:
        """Refuse layers that no dropout acts on, and those that are too wide.

        Args:
            layers: The layers.
            activations: What they give, by label, at all positions.

        Raises:
            NotMeasurable: One is refused; the message tells which are not.
        """
        for layer in layers:
            if layer.name not in self.noises:
                there = ", ".join(map(repr, list(self.noises)[:8])) or "none"
                why = self.unknown.get(layer.name, "it is no dropout module, whose output is what is measured")
                raise NotMeasurable(
                    f"estimator='dropout': no dropout in front of layer {layer.label!r}: {why}. Name dropout modules "
                    f"(those with a noise that is known: {there}), or leave layers out"
                )
            rows = activations[layer.label].rows
            if rows is not None and rows[0].numel() > WIDEST:
                raise NotMeasurable(
                    f"estimator='dropout': layer {layer.label!r} has {rows[0].numel()} activations a sample, more than "
                    f"{WIDEST}; name others by layers=[...]"
                )

    def described(self, layers: Sequence[Layer]) -> str:
        """Return the noise of layers in words."""
        each = "; ".join(f"{layer.label}: {self.noises[layer.name]}" for layer in layers)
        return f"of each layer's own dropout: {each}; combinations of more than {MOST_UNITS} units are read as Gaussian"

    def readings(
        self,
        layer: Layer,
        read: Mapping[str, Tensor],
        features: LayerFeatures,
        labels: Labels | None,
        module: nn.Module,
        point: Point,
    ) -> list[LayerInformation]:
        """Return the values of a layer, for each set of combinations of many units; NaN without noise that is known.

        Args:
            layer: The layer.
            read: What was read of the samples.
            features: How.
            labels: Labels of the samples.
            module: The replica, whose dropout may have changed since the first step.
            point: Source of the noise, and of warnings.
        """
        noise, why = None, "has no noise any more"
        try:
            noise = dropout_noise(module.get_submodule(layer.name), self._shapes[layer.name])
        except UnknownNoise as error:
            why = f"is of no known kind any more: {error}"
        if noise is None:
            point.warn(f"the dropout {layer.label!r} {why}: no values (NaN)", f"dropout {layer.label}")
            return [LayerInformation(math.nan, math.nan, stderr=(math.nan, math.nan))]
        t = read[f"whole/{layer.label}"]

        def of(t: Tensor, y: Tensor | None, directions: Tensor | None) -> LayerInformation:
            draws = DRAWS if directions is None else 1
            found = dropout_information(
                t, y, noise=noise, directions=directions, draws=draws, generator=point.generator
            )
            return LayerInformation(found.I_XT, found.I_TY, stderr=found[2:])

        return [of_labelled(partial(of, directions=one), t, labels) for one in _sets(t.shape[1], features)]


def _sets(width: int, features: LayerFeatures) -> list[Tensor | None]:
    """Return sets of random directions ``(width, k)``; for few units the one that is no reduction, None."""
    if width <= MOST_UNITS:
        return [None]
    count, seed = features.directions, features.seed
    return [random_directions(width, count, seed, number) for number in range(features.projections)]
