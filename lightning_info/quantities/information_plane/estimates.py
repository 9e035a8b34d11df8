"""The estimators and bin ranges of the information plane that a user asks for, and what each says of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Generator, Tensor

from lightning_info.functional.binning import bin_codes, code_information
from lightning_info.functional.codes import exact_codes
from lightning_info.functional.linear_gaussian import gaussian_information
from lightning_info.functional.mixture import mixture_information
from lightning_info.quantities.information_plane.labels import Labels

EstimatorName = Literal["binning", "mixture", "gaussian"]
RangeName = Literal["fixed", "global", "adaptive"]
BinRange = RangeName | tuple[float, float]
Bounds = tuple[float, float]


class Reading(NamedTuple):
    """Of one layer at one point, in bits.

    Attributes:
        I_XT: I(X;T).
        I_TY: I(T;Y), NaN without labels.
        unique: Share of the samples that share their bins with no other; NaN without bins.
        low: Kolchinsky and Tracey's lower bounds of the two, for the mixture.
        high: Their upper bounds.
        stderr: Standard errors of the two by sampling, for these samples.
    """

    I_XT: float
    I_TY: float
    unique: float = math.nan
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    stderr: tuple[float, float] | None = None

    def with_I_TY_of(self, few: Reading) -> Reading:
        """With all that some of the samples, those with labels, say of I(T;Y)."""
        return self._replace(
            I_TY=few.I_TY,
            low=_joined(self.low, few.low),
            high=_joined(self.high, few.high),
            stderr=_joined(self.stderr, few.stderr),
        )


def _joined(pair: tuple[float, float] | None, few: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if pair is None or few is None else (pair[0], few[1])


@dataclass(frozen=True)
class EstimatorSettings:
    """What all estimates have in common.

    Attributes:
        bins: Intervals a unit's range is cut into.
        noise: Standard deviation of the noise of the estimators without bins, in units of the layer's own (root of the
            mean variance of its units).
        noise_variance: Its variance, for all layers and points; used instead if given.
    """

    bins: int = 30
    noise: float = 0.1
    noise_variance: float | None = None

    def variance(self, t: Tensor) -> float:
        """Variance of the noise of a layer with activations ``(N, d)``."""
        if self.noise_variance is not None:
            return self.noise_variance
        spread = t.double().var(0, correction=0).mean().item()
        return self.noise**2 * spread if spread > 0 else 1.0  # a constant layer tells nothing under any noise


@dataclass(frozen=True)
class Estimate:
    """One estimator with its range.

    Attributes:
        family: First part of its tags.
        estimator: How information is estimated.
        bin_range: What the bins cover; None without bins.
    """

    family: str
    estimator: EstimatorName
    bin_range: BinRange | None

    def __str__(self) -> str:
        return self.estimator if self.bin_range is None else f"binning, {range_words(self.bin_range)}"

    @property
    def has_ceiling(self) -> bool:
        """Whether log2 N bounds it; covariances know no number of samples."""
        return self.estimator != "gaussian"

    @property
    def families(self) -> tuple[str, ...]:
        """First parts of all tags that it gives."""
        tails = ("", "_lower", "_upper", "_stderr") if self.estimator == "mixture" else ("",)
        return tuple(self.family + tail for tail in tails)

    def bounds(self, t: Tensor, seen: Bounds) -> Bounds | None:
        """Ends of the bins; None for estimators without bins and for integers, whose bins are their values.

        Args:
            t: Activations.
            seen: See :meth:`read`.
        """
        return bounds(self.bin_range, t, seen) if self.bin_range is not None and t.is_floating_point() else None

    def tagged(self, reading: Reading, layer: str) -> dict[str, float]:
        """The values of a reading by their tags."""
        pairs = [(reading.I_XT, reading.I_TY), reading.low, reading.high, reading.stderr]
        return {
            f"{family}/{kind}/{layer}": value
            for family, pair in zip(self.families, pairs, strict=False)
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
    ) -> Reading:
        """Information of a layer; of one whose units are integers exactly, whatever the estimator.

        Args:
            t: Activations ``(N, d)``, finite.
            labels: Of the samples; where some have none, I(T;Y) is that of the others.
            seen: Smallest and largest activation of the layer over training so far.
            method: Bins and noise.
            generator: Of the mixture's noise.
        """
        ends = self.bounds(t, seen)
        has_codes = ends is not None or not t.is_floating_point()
        noise_variance = 0.0 if has_codes else method.variance(t)

        def of(t: Tensor, y: Tensor | None) -> Reading:
            if has_codes:
                exact = Reading(*code_information(codes(t, method.bins, ends), y))
                pair = exact.I_XT, exact.I_TY
                return exact if self.estimator != "mixture" else exact._replace(low=pair, high=pair, stderr=(0.0, 0.0))
            if self.estimator == "gaussian":
                return Reading(*gaussian_information(t, y, noise_variance))
            found = mixture_information(t, y, noise_variance, generator=generator)
            return Reading(
                found.I_XT,
                found.I_TY,
                low=(found.I_XT_lower, found.I_TY_lower),
                high=(found.I_XT_upper, found.I_TY_upper),
                stderr=(found.I_XT_stderr, found.I_TY_stderr),
            )

        if labels is None:
            return of(t, None)
        if labels.known is None:
            return of(t, labels.y)
        reading = of(t, None)
        return reading.with_I_TY_of(of(t[labels.known], labels.y[labels.known])) if labels.known.any() else reading


def codes(t: Tensor, bins: int, ends: Bounds | None) -> Tensor:
    """The bins of each sample ``(N,)``; of integers what they are, without bins."""
    return exact_codes(t) if ends is None else bin_codes(t, bins, ends)


def bounds(bin_range: BinRange, t: Tensor, seen: Bounds) -> Bounds:
    """Ends of the bins; of equal ones the range is one bin."""
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
    """The range as it is said to a reader."""
    words = {
        "fixed": "fixed range (-1, 1)",
        "global": "global range (over training so far)",
        "adaptive": "adaptive range (of each point)",
    }
    return words[bin_range] if isinstance(bin_range, str) else f"range ({bin_range[0]:g}, {bin_range[1]:g})"


def range_name(bin_range: BinRange) -> str:
    """The range in a tag or a column."""
    return bin_range if isinstance(bin_range, str) else f"{bin_range[0]:g}_{bin_range[1]:g}"
