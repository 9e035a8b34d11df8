"""The estimators and bin ranges of the information plane that a user requests, and the values of each for a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Generator, Tensor

from lightning_info.functional.binning import bin_codes
from lightning_info.functional.code_information import PlugInEstimator
from lightning_info.functional.codes import exact_codes
from lightning_info.functional.information_estimator import InformationEstimator, LayerInformation
from lightning_info.functional.information_estimators import ESTIMATORS
from lightning_info.quantities.information_plane.labels import Labels

RangeName = Literal["fixed", "global", "adaptive"]
BinRange = RangeName | tuple[float, float]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class EstimatorSettings:
    """Settings that all estimates share.

    Attributes:
        bins: Number of intervals that a unit's range is cut into.
        noise: Standard deviation of the noise of the estimators without bins, in units of the layer's own (root of the
            mean variance of its units).
        noise_variance: Variance of the noise for all layers and points; used instead if given.
    """

    bins: int = 30
    noise: float = 0.1
    noise_variance: float | None = None

    def variance(self, t: Tensor) -> float:
        """Return the variance of the noise for a layer with activations ``(N, d)``."""
        if self.noise_variance is not None:
            return self.noise_variance
        spread = t.double().var(0, correction=0).mean().item()
        return self.noise**2 * spread if spread > 0 else 1.0  # a constant layer has no information under any noise


@dataclass(frozen=True)
class Estimate:
    """One estimator with its range.

    Attributes:
        family: First part of its tags.
        name: Name of its estimator.
        bin_range: The range that the bins cover; None without bins.
    """

    family: str
    name: str
    bin_range: BinRange | None

    def __str__(self) -> str:
        return self.name if self.bin_range is None else f"{self.name}, {range_words(self.bin_range)}"

    @property
    def estimator(self) -> InformationEstimator:
        """The estimator of information."""
        return ESTIMATORS[self.name]

    @property
    def reads(self) -> str:
        """What it takes of a layer: its units, or all activations of a sample (``"whole"``), or these as one code."""
        if self.estimator.has_own_noise:
            return "whole"
        return "codes" if self.estimator.is_exact else "units"

    @property
    def of_codes(self) -> InformationEstimator:
        """The estimator for codes, which have no noise."""
        return self.estimator if self.estimator.has_bins else PlugInEstimator()

    @property
    def has_ceiling(self) -> bool:
        """Whether log2 N bounds it."""
        return self.estimator.has_ceiling

    def families(self, projections: int = 1) -> tuple[str, ...]:
        """Return the first parts of the tags of a layer.

        Args:
            projections: Number of projections of the layer; a mean over several has an error.
        """
        tails = ["", "_lower", "_upper"] if self.estimator.has_bounds else [""]
        estimator = self.estimator
        tails += ["_stderr"] if estimator.has_bounds or estimator.has_stderr or projections > 1 else []
        return tuple(self.family + tail for tail in tails)

    def bounds(self, t: Tensor, seen: Bounds) -> Bounds | None:
        """Return the ends of the bins; None for estimators without bins and for integers, whose bins are their values.

        Args:
            t: Activations.
            seen: See :meth:`read`.
        """
        return bounds(self.bin_range, t, seen) if self.bin_range is not None and t.is_floating_point() else None

    def tagged(self, reading: LayerInformation, layer: str) -> dict[str, float]:
        """Return the values of a reading by their tags."""
        pairs = {
            "": (reading.I_XT, reading.I_TY),
            "_lower": reading.low,
            "_upper": reading.high,
            "_stderr": reading.stderr,
        }
        return {
            f"{self.family}{tail}/{kind}/{layer}": value
            for tail, pair in pairs.items()
            if pair is not None
            for kind, value in zip(("I_XT", "I_TY"), pair, strict=True)
        }

    def read(
        self,
        t: Tensor,
        labels: Labels | None,
        seen: Bounds,
        method: EstimatorSettings,
        generator: Generator | None = None,
    ) -> LayerInformation:
        """Estimate the information of a layer; it is exact if the units are integers, whatever the estimator.

        Args:
            t: Activations ``(N, d)``, finite.
            labels: Labels of the samples; if some have none, I(T;Y) is that of the others.
            seen: Smallest and largest activation of the layer over training so far.
            method: Bins and noise.
            generator: Generator of the mixture's noise.
        """
        ends = self.bounds(t, seen)
        has_codes = ends is not None or not t.is_floating_point()
        noise_variance = 0.0 if has_codes else method.variance(t)

        def of(t: Tensor, y: Tensor | None) -> LayerInformation:
            if not has_codes:
                return self.estimator(t, y, noise_variance, generator)
            exact = self.of_codes(codes(t, method.bins, ends), y)
            pair = exact.I_XT, exact.I_TY
            return exact._replace(low=pair, high=pair, stderr=(0.0, 0.0)) if self.estimator.has_bounds else exact

        return of_labelled(of, t, labels)


def of_labelled(
    of: Callable[[Tensor, Tensor | None], LayerInformation], t: Tensor, labels: Labels | None
) -> LayerInformation:
    """Return what an estimator gives for activations and classes; if some samples have none, I(T;Y) of the others."""
    if labels is None:
        return of(t, None)
    if labels.known is None:
        return of(t, labels.y)
    reading = of(t, None)
    return reading.with_I_TY_of(of(t[labels.known], labels.y[labels.known])) if labels.known.any() else reading


def codes(t: Tensor, bins: int, ends: Bounds | None) -> Tensor:
    """Return the code of each sample ``(N,)`` by its bins, or for integers by their values."""
    return exact_codes(t) if ends is None else bin_codes(t, bins, ends)


def bounds(bin_range: BinRange, t: Tensor, seen: Bounds) -> Bounds:
    """Return the ends of the bins; a range with equal ends is one bin."""
    if bin_range == "fixed":
        return -1.0, 1.0
    if bin_range == "adaptive":
        low, high = t.min().item(), t.max().item()
    else:
        low, high = seen if isinstance(bin_range, str) else bin_range
    if low < high:
        return low, high
    high = low + max(1.0, abs(low))
    return (low, high) if math.isfinite(high) else (0.0, low)


def range_words(bin_range: BinRange) -> str:
    """Return the range in words."""
    words = {
        "fixed": "fixed range (-1, 1)",
        "global": "global range (over training so far)",
        "adaptive": "adaptive range (of each point)",
    }
    return words[bin_range] if isinstance(bin_range, str) else f"range ({bin_range[0]:g}, {bin_range[1]:g})"


def range_name(bin_range: BinRange) -> str:
    """Return the name of the range in a tag or a column."""
    return bin_range if isinstance(bin_range, str) else f"{bin_range[0]:g}_{bin_range[1]:g}"
