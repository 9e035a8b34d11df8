"""I(T;Y) without bins: what cross-fitted decoders make of a layer about the label, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from lightning_info.functional.standard_error import NORMAL
from lightning_info.functional.units import Unit
from lightning_info.functional.usable_information import SAMPLES, usable_information
from lightning_info.quantities.information_plane.decoded import MOST, TOKENS, grouped
from lightning_info.quantities.information_plane.labels import IGNORED, Labels
from lightning_info.quantities.quantity import Warn
from lightning_info.replica.snapshot import LONG, TARGETS
from lightning_info.replica.timing import trial
from lightning_info.reporting.table import Curve

DECODER = "info_plane_decoder"
"""First part of the tags."""
STDERR = f"{DECODER}_stderr"
KIND = "I_TY"
FOLDS = 4
VIEWS = ("all", "mean")


def tags_of(kind: str, layers: Sequence[str], family: str = DECODER) -> tuple[str, ...]:
    """Return the tags of a kind of information (``I_TY``) for some layers, and of its errors."""
    return tuple(f"{first}/{kind}/{layer}" for first in (family, f"{family}_stderr") for layer in layers)


def decoded(
    views: Sequence[Tensor],
    targets: Tensor,
    groups: Tensor | None,
    components: int,
    kind: str,
    layer: str,
    warn: Warn,
    family: str = DECODER,
    unit: Unit = "bits",
) -> dict[str, float]:
    """Return the information of a layer about targets, and its standard error, by their tags.

    Args:
        views: Activations ``(N, ...)``, see :func:`~.usable_information`.
        targets: Classes ``(N,)``, :data:`IGNORED` where there is none, or floating targets ``(N, k)``, not finite where
            there are none.
        groups: See :func:`~.usable_information`.
        components: Largest number of principal components.
        kind: Kind of information in the tags.
        layer: The layer.
        warn: Warns the user once.
        family: First part of the tags.
        unit: Unit of the values.
    """
    known = targets.isfinite().all(1) if targets.is_floating_point() else targets != IGNORED
    if not known.all():
        views, targets = [view[known] for view in views], targets[known]
        groups = None if groups is None else groups[known]
    independent = len(targets) if groups is None else len(torch.unique(groups))
    information = stderr = math.nan
    if independent < 2 * FOLDS:
        what = "samples" if groups is None else "sequences"
        warn(f"{family}/{kind} is NaN: decoders need {2 * FOLDS} {what} with a label, not {independent}", f"few {kind}")
    elif all(view.isfinite().all() for view in views):
        information, stderr, *_ = usable_information(
            views, targets, folds=FOLDS, groups=groups, components=min(components, len(targets) // SAMPLES), unit=unit
        )
    return dict(zip(tags_of(kind, [layer], family), (information, stderr), strict=True))


class LabelDecoders:
    """Decoders of the label, for the layers that have what they need.

    Attributes:
        tags: Tags of the information and of its errors.
        most: Largest number of activations of a sample that they see.
        labels: Labels of the positions of the last point, if samples have several; None before, and else.
    """

    def __init__(self, read: Mapping[str, Tensor] | None = None, most: int = MOST, family: str = DECODER) -> None:
        """Take the layers from what was read of a few samples; none without.

        Args:
            read: What :class:`~.LayerFeatures` reads.
            most: See :attr:`most`.
            family: First part of the tags.
        """
        self._widths: dict[str, list[int]] = {}
        first = f"{LONG}{VIEWS[0]}/"
        for name in read or {}:
            if name.startswith(first):
                layer = name.removeprefix(first)
                self._widths[layer] = [view.shape[-1] for view in views_read(read or {}, layer)]
        self.tags, self.most, self._family = tags_of(KIND, list(self._widths), family), most, family
        self.labels: Labels | None = None

    def __contains__(self, layer: str) -> bool:
        return layer in self._widths

    def ends(self, curves: Mapping[str, Curve], factor: float) -> dict[str, dict[str, str]]:
        """Return the column of the table at the end: the last values by layer, with half of their 95 % intervals.

        Args:
            curves: What was logged, by tag.
            factor: The table's unit per bit.
        """
        told = {}
        for layer in self._widths:
            value, error = (
                curves.get(tag, [(0, math.nan)])[-1][1] * factor for tag in tags_of(KIND, [layer], self._family)
            )
            if math.isfinite(value):
                told[layer] = f"{value:.2f} ± {NORMAL * error:.2f}"
        return {"I(T;Y), end": told} if told else {}

    @property
    def components(self) -> int:
        """Largest number of principal components."""
        return self.most // SAMPLES

    def measure(
        self, read: Mapping[str, Tensor], labels: Labels | None, warn: Warn, unit: Unit = "bits"
    ) -> dict[str, float]:
        """Return the values by tag; there is none of a layer that did not run.

        Args:
            read: What was read of the samples.
            labels: Labels of the samples; None if they have none, or are not finite.
            warn: Warns the user once.
            unit: Unit of the values.
        """
        targets, groups = read.get(TARGETS), None
        if TOKENS in read:
            count = read[TOKENS].shape[1]
            targets = grouped(read[TOKENS]).flatten()
            groups = torch.arange(len(read[TOKENS])).repeat_interleave(count)
            self.labels = Labels(targets)
        elif targets is not None and not targets.is_floating_point():
            targets = None if labels is None else labels.y
        values: dict[str, float] = {}
        if targets is None:
            return values
        for layer in self._widths:
            views = [view.reshape(len(targets), -1) for view in views_read(read, layer)]
            if views:
                values |= decoded(views, targets, groups, self.components, KIND, layer, warn, self._family, unit)
        return values

    def seconds(self, samples: int, classes: int) -> float:
        """Return the seconds of a point, by a trial for each width.

        Args:
            samples: Number of samples.
            classes: Number of labels.
        """
        generator = Generator().manual_seed(0)
        y = torch.arange(samples) % max(2, min(classes, samples // FOLDS))
        cost: dict[tuple[int, ...], float] = {}
        for widths in map(tuple, self._widths.values()):
            if widths not in cost and samples >= 2 * FOLDS:
                rows = [torch.randn(samples, width, generator=generator) for width in widths]
                components = min(self.components, samples // SAMPLES)
                one = partial(usable_information, rows, y, folds=FOLDS, components=components)
                cost[widths] = trial(one, y.device)
        return sum(cost.get(tuple(widths), 0.0) for widths in self._widths.values())


def views_read(read: Mapping[str, Tensor], layer: str) -> list[Tensor]:
    """Return what was read of a layer for decoders."""
    return [read[f"{LONG}{view}/{layer}"] for view in VIEWS if f"{LONG}{view}/{layer}" in read]
