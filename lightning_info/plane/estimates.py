"""The estimators and bin ranges of the information plane that a user asks for, and what each says of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Generator, Tensor

from lightning_info.functional.binning import bin_codes, code_information
from lightning_info.functional.linear_gaussian import gaussian_information
from lightning_info.functional.mixture import mixture_information
from lightning_info.plane.labels import Labels

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


@dataclass(frozen=True)
class Method:
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
    def families(self) -> tuple[str, ...]:
        """First parts of all tags that it gives."""
        tails = ("", "_lower", "_upper", "_stderr") if self.estimator == "mixture" else ("",)
        return tuple(self.family + tail for tail in tails)

    def read(
        self, t: Tensor, labels: Labels | None, seen: Bounds, method: Method, generator: Generator | None = None
    ) -> Reading:
        """Information of a layer.

        Args:
            t: Activations ``(N, d)``, finite.
            labels: Of the samples; where some have none, I(T;Y) is that of the others.
            seen: Smallest and largest activation of the layer over training so far.
            method: Bins and noise.
            generator: Of the mixture's noise.
        """
        if labels is None or labels.known is None:
            return self._read(t, None if labels is None else labels.y, seen, method, generator)
        reading = self._read(t, None, seen, method, generator)
        if not labels.known.any():
            return reading
        few = self._read(t[labels.known], labels.y[labels.known], seen, method, generator)
        return reading._replace(I_TY=few.I_TY)

    def _read(self, t: Tensor, y: Tensor | None, seen: Bounds, method: Method, generator: Generator | None) -> Reading:
        if self.bin_range is not None:
            return Reading(*code_information(bin_codes(t, method.bins, bounds(self.bin_range, t, seen)), y))
        if self.estimator == "gaussian":
            return Reading(*gaussian_information(t, y, method.variance(t)))
        found = mixture_information(t, y, method.variance(t), generator=generator)
        return Reading(
            found.I_XT,
            found.I_TY,
            low=(found.I_XT_lower, found.I_TY_lower),
            high=(found.I_XT_upper, found.I_TY_upper),
            stderr=(found.I_XT_stderr, found.I_TY_stderr),
        )


def bounds(bin_range: BinRange, t: Tensor, seen: Bounds) -> Bounds:
    """Ends of the bins; of equal ones the range is one bin."""
    if bin_range == "fixed":
        return -1.0, 1.0
    if bin_range == "adaptive":
        low, high = t.min().item(), t.max().item()
    else:
        low, high = seen if isinstance(bin_range, str) else bin_range
    return (low, high) if low < high else (low, low + 1.0)


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
