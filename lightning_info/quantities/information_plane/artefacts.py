"""Numbers of the information plane that mean less than they seem to, and the warnings about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_info.functional.code_information import shuffled_information
from lightning_info.functional.information_estimator import LayerInformation
from lightning_info.quantities.information_plane.estimates import Bounds, Estimate, codes
from lightning_info.quantities.information_plane.labels import Labels

MOST_CLAMPED = 0.01
"""Share of activations outside of a range above which the range does not fit the layer."""
_NARROW = 3
"""Intervals that a layer must span for bins to resolve it."""
_EXCESS = 0.1
"""Bits above H(Y) at which an approximation is seen not to hold."""
_WIDE_GAP = 1.0
"""Distance in bits between the bounds of the mixture above which they say little."""


@dataclass
class LayerReading:
    """One layer at one point under one estimate.

    Attributes:
        layer: Its label.
        estimate: The estimate.
        t: Activations ``(N, d)``, finite.
        bounds: Ends of the bins; None without bins, and for integers.
        reading: The values of the estimate.
    """

    layer: str
    estimate: Estimate
    t: Tensor
    bounds: Bounds | None
    reading: LayerInformation


@dataclass
class PointContext:
    """What all cases of a point have in common.

    Attributes:
        bins: Number of intervals.
        labels: Labels of the samples.
        generator: Generator for shuffling labels.
    """

    bins: int
    labels: Labels | None
    generator: Generator


def near_ceiling(information: float, samples: int) -> bool:
    """Tell whether I(X;T) is within one bit of log2 N, so almost every sample has its own code."""
    return information > math.log2(samples) - 1


def clamped(t: Tensor, bounds: Bounds) -> float:
    """Return the share of the activations outside of the bins."""
    return ((t < bounds[0]) | (t > bounds[1])).double().mean().item()


def shuffled(case: LayerReading, setting: PointContext, repeats: int = 2) -> float:
    """Return I(T;Y) in bits with shuffled labels, where there is nothing to know; NaN unless all samples have a label.

    Args:
        case: A layer under an estimate with bins, or of integers.
        setting: See :class:`PointContext`.
        repeats: Number of permutations.
    """
    labels = setting.labels
    has_codes = case.bounds is not None or not case.t.is_floating_point()
    if not has_codes or labels is None or labels.known is not None:
        return math.nan
    found = codes(case.t, setting.bins, case.bounds)
    estimate, generator = case.estimate.of_codes, setting.generator
    return shuffled_information(found, labels.y, repeats=repeats, generator=generator, estimate=estimate).mean


@dataclass(frozen=True)
class Artefact:
    """One kind of number that means less than it seems to.

    Attributes:
        is_of: Tells whether a layer's reading is of that kind.
        said: Returns the message about those that are; not called without any.
    """

    is_of: Callable[[LayerReading, PointContext], bool]
    said: Callable[[list[LayerReading], PointContext], str]

    def __call__(self, cases: Iterable[LayerReading], setting: PointContext) -> str | None:
        """Return the message about a point; None if there is none."""
        hit = [case for case in cases if self.is_of(case, setting)]
        return self.said(hit, setting) if hit else None


def _is_at_ceiling(case: LayerReading, setting: PointContext) -> bool:
    return case.estimate.has_ceiling and near_ceiling(case.reading.I_XT, len(case.t))


def _ceiling(hit: list[LayerReading], setting: PointContext) -> str:
    return (
        f"I(X;T) of {_layers(hit)} is within 1 bit of its ceiling, log2 N = {math.log2(len(hit[0].t)):.3g} bits "
        f"({hit[0].estimate}): almost every sample has its own code, which says nothing about the layer. Fewer "
        f"bins (or more noise) or more samples (num_samples) resolve more; such layers are drawn grey"
    )


def _is_memorised(case: LayerReading, setting: PointContext) -> bool:
    labels = setting.labels
    return case.reading.unique > 0.5 and labels is not None and labels.known is None and labels.entropy != 0


def _memorised(hit: list[LayerReading], setting: PointContext) -> str:
    worst = max(hit, key=lambda case: case.reading.unique)
    assert setting.labels is not None
    return (
        f"more than half of the samples have their own code in {_layers(hit)}, so I(T;Y) comes from memorised bins, "
        f"not from knowledge: {worst.layer!r} has {worst.reading.I_TY:.3g} of H(Y) = "
        f"{setting.labels.entropy:.3g} bits, and {shuffled(worst, setting):.3g} bits with shuffled labels"
    )


def _is_cut_in_two(case: LayerReading, setting: PointContext) -> bool:
    if case.bounds is None:
        return False
    start, end = case.bounds
    width = (end - start) / setting.bins
    if not 0 < width < math.inf:  # beyond the resolution of float64
        return False
    low, high = case.t.min().item(), case.t.max().item()
    edge = start + width * round((low / 2 + high / 2 - start) / width)
    inner = start + width / 2 < edge < end - width / 2
    return inner and low < edge < high and max(edge - low, high - edge) < width / 2


def _sign_bit(hit: list[LayerReading], setting: PointContext) -> str:
    return (
        f"all activations of {_layers(hit)} lie around one edge between two bins, so I(X;T) says little more than "
        f"on which side of it a unit is: up to one spurious bit per unit, however small they are. Another number of "
        f"bins has other edges (an odd number has none in the middle), for example bins={setting.bins + 1}"
    )


def _has_given_range(case: LayerReading) -> bool:
    return case.bounds is not None and case.estimate.bin_range not in ("global", "adaptive")


def _is_starved(case: LayerReading, setting: PointContext) -> bool:
    if case.bounds is None or not _has_given_range(case):
        return False
    return 0 < (case.t.max() - case.t.min()).item() < _NARROW * (case.bounds[1] - case.bounds[0]) / setting.bins


def _starved(hit: list[LayerReading], setting: PointContext) -> str:
    return (
        f"the activations of {_layers(hit)} span fewer than {_NARROW} of the {setting.bins} bins ({hit[0].estimate}): "
        f"one range for all layers starves those with small activations; bin_range='global' has one for each layer"
    )


def _is_stretched(case: LayerReading, setting: PointContext) -> bool:
    if case.bounds is None or case.estimate.bin_range not in ("global", "adaptive"):
        return False
    low, high = case.t.double().quantile(torch.tensor([0.005, 0.995], dtype=torch.float64), dim=0)
    spread = float((high - low).max())
    return 0 < spread < _NARROW * (case.bounds[1] - case.bounds[0]) / setting.bins


def _stretched(hit: list[LayerReading], setting: PointContext) -> str:
    return (
        f"99 % of the activations of {_layers(hit)} lie in fewer than {_NARROW} of the {setting.bins} bins "
        f"({hit[0].estimate}): a few large ones, now or earlier in training, stretch the range, and I(X;T) sees little "
        f"of the others. bin_range=(low, high) sets it by hand"
    )


def _is_outside(case: LayerReading, setting: PointContext) -> bool:
    return case.bounds is not None and _has_given_range(case) and clamped(case.t, case.bounds) > MOST_CLAMPED


def _outside(hit: list[LayerReading], setting: PointContext) -> str:
    return (
        f"more than {MOST_CLAMPED:.0%} of the activations of {_layers(hit)} lie outside of the bins and are counted in "
        f"the outermost ones ({hit[0].estimate}); that can look like compression. (-1, 1) is for tanh; "
        f"bin_range='global' fits any activation"
    )


def _is_wide(case: LayerReading, setting: PointContext) -> bool:
    return _gap(case.reading) > _WIDE_GAP


def _wide(hit: list[LayerReading], setting: PointContext) -> str:
    return (
        f"the bounds of the mixture lie up to {max(_gap(case.reading) for case in hit):.2g} bits apart in "
        f"{_layers(hit)}; the sampling estimate between them is closer, as long as it is below log2 N - 4"
    )


def _is_cut(case: LayerReading, setting: PointContext) -> bool:
    return case.reading.excess > _EXCESS


def _cut(hit: list[LayerReading], setting: PointContext) -> str:
    worst = max(hit, key=lambda case: case.reading.excess)
    return (
        f"I(T;Y) of {_layers(hit)} was cut to H(Y): as Gaussians the classes would give up to "
        f"{worst.reading.excess:.2g} bits more, so the approximation does not hold there; "
        f"info_plane_decoder/I_TY needs no such assumption"
    )


ARTEFACTS = {
    "ceiling": Artefact(_is_at_ceiling, _ceiling),
    "memorised": Artefact(_is_memorised, _memorised),
    "sign bit": Artefact(_is_cut_in_two, _sign_bit),
    "starved": Artefact(_is_starved, _starved),
    "stretched": Artefact(_is_stretched, _stretched),
    "excess": Artefact(_is_cut, _cut),
    "outside": Artefact(_is_outside, _outside),
    "bounds": Artefact(_is_wide, _wide),
}
"""Artefacts that can be seen at a point, by kind."""


def _gap(reading: LayerInformation) -> float:
    """Return the distance between the bounds of I(X;T) in bits; 0 without bounds."""
    return 0.0 if reading.low is None or reading.high is None else reading.high[0] - reading.low[0]


def _layers(cases: Iterable[LayerReading], most: int = 4) -> str:
    names = list(dict.fromkeys(repr(case.layer) for case in cases))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ("layer " if len(names) == 1 else "layers ") + ", ".join(names[:most]) + rest
