r"""Two numbers between which a sum over eigenvalues lies, if their spectrum is known by Lanczos' method only.

m steps from a start b give two quadrature rules for ``bᵀ f(F) b`` (:func:`~.lanczos.quadrature`): that of Gauss, whose
error has the sign of the derivative ``f^(2m)``, and that of Gauss and Radau with a node at 0, below the whole spectrum,
whose error has the sign of ``f^(2m+1)``. Where these two have opposite signs at all λ > 0 for every m, the truth lies
between the rules, whatever the spectrum is:

============================  ====================  =====================  ===========================
f(λ)                          Gauss-Radau           Gauss                  used for
============================  ====================  =====================  ===========================
``log(λ + c)``                never too large       never too small        log det
``-q log q, q = λ / tr F``    never too large       never too small        effective rank
``1 / (1 + λ/c)``             never too small       never too large        ½ tr(HΣ*), the optimal λ
============================  ====================  =====================  ===========================

The KL is half the sum of ``log(1 + h/c) + 1/(1 + h/c) - 1``, whose first two terms have their own ends; the sums of
these bracket it. Both rules give the trace exactly.

No number of probes narrows the bracket, more steps do. So it is a *systematic* part of the error: of an estimate in it
half the distance to the farther end, which 1.96 standard errors then reach. The part of the probes is their scatter, by
the jackknife, which serves ratios (the effective rank) and what depends on the optimal λ as well as sums. Both are
added in quadrature. Left out is the error of the deflated eigenpairs, 1e-6 of an eigenvalue or less
(:func:`~.lanczos.converged`).

Source: Golub & Meurant, *Matrices, Moments and Quadrature* (1994), theorems 3.2 and 3.4; Tukey (1958).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.standard_error import jackknife_error


class Ends(NamedTuple):
    """Two numbers in one unit, between which a third one lies."""

    low: float
    high: float

    def systematic(self, value: float) -> float:
        """Return half the distance from a value to the farther end, as if it were a standard error."""
        return max(self.high - value, value - self.low, 0.0) / 2


@dataclass(frozen=True)
class SpectrumBracket:
    """One spectrum by both rules, from the same starts; means over these.

    Attributes:
        radau: Spectrum by the Gauss-Radau rule with a node at 0.
        gauss: Spectrum by Gauss' rule.
    """

    radau: Spectrum
    gauss: Spectrum

    def scaled(self, factor: float) -> SpectrumBracket:
        """Return the bracket for the matrix times ``factor``."""
        return SpectrumBracket(self.radau.scaled(factor), self.gauss.scaled(factor))

    def log_det(self, damping: float) -> Ends:
        """Return ``log det(matrix + c I)``, nats; see :meth:`~.spectrum.Spectrum.log_det`."""
        return _sorted(self.radau.log_det(damping), self.gauss.log_det(damping))

    @property
    def effective_rank(self) -> Ends:
        """``exp(-sum q log q)``, a number of eigenvalues; NaN for the zero matrix."""
        return _sorted(self.radau.effective_rank, self.gauss.effective_rank)

    def expected_loss_rise(self, beta: float, lambda_: float) -> Ends:
        """Return ``½ tr(HΣ*)``, nats; see :func:`~.weight_information.expected_loss_rise`."""
        return Ends(*(0.5 * beta * end for end in self.effective_dimension(beta, lambda_)))

    def effective_dimension(self, beta: float, lambda_: float) -> Ends:
        """Return ``sum h / (h + β/λ²)``; see :func:`~.weight_information.effective_dimension`."""
        free = self._resolvent(beta, lambda_)
        return Ends(*(self.radau.weights - one for one in reversed(free)))

    def weight_information(self, squared_distance: float, beta: float, lambda_: float) -> Ends:
        """Return ``KL(Q*‖P)``, nats; see :func:`~.weight_information.weight_information`."""
        free, c = self._resolvent(beta, lambda_), beta / lambda_**2
        ends = zip(self.log_det(c), free, strict=True)
        offset = self.radau.weights * (math.log(c) + 1) - squared_distance / lambda_**2
        return Ends(*(0.5 * (log_det + one - offset) for log_det, one in ends))

    def _resolvent(self, beta: float, lambda_: float) -> Ends:
        """Return ``sum 1 / (1 + h λ²/β)`` over all k eigenvalues."""
        ratio = lambda_**2 / beta
        return _sorted(*(s.sum_over(1 / (1 + s.eigenvalues * ratio)) + s.unlisted for s in (self.radau, self.gauss)))


def probe_error(value: Callable[[Spectrum], float], spectra: Sequence[Spectrum]) -> float:
    """Return the standard error of ``value(Spectrum.average(spectra))``, from the averages without one each.

    Args:
        value: Any function of a spectrum.
        spectra: Independent estimates of one spectrum, n of them.

    Returns:
        The jackknife's, with Student's factor (:func:`~.standard_error.jackknife_error`); NaN for a single one.
    """
    if len(spectra) < 2:
        return math.nan
    rest = [Spectrum.average([*spectra[:i], *spectra[i + 1 :]]) for i in range(len(spectra))]
    return jackknife_error([value(one) for one in rest])


def bracketed_error(value: Callable[[Spectrum], float], spectra: Sequence[Spectrum], ends: Ends) -> float:
    """Return the standard error of ``value(Spectrum.average(spectra))``, with that of the rule; see the module.

    Args:
        value: Any function of a spectrum.
        spectra: Independent estimates of one spectrum by one rule.
        ends: Numbers between which the value would lie for the mean over the same starts.
    """
    return math.hypot(probe_error(value, spectra), ends.systematic(value(Spectrum.average(spectra))))


def level_error(
    value: Callable[[Spectrum, float], float],
    spectra: Sequence[Spectrum],
    bracket: SpectrumBracket,
    ends: Callable[[float], Ends],
    prior_std: Callable[[Spectrum], float],
) -> float:
    """Return the standard error of ``value(spectrum, λ)`` with a λ that may depend on the spectrum, as the optimal one.

    The optimal λ lies between those of the two rules, as ``tr Σ*`` does; the ends are the outer ones of both.

    Args:
        value: Any function of a spectrum and λ; its unit is that of the result.
        spectra: Independent estimates of one spectrum by one rule.
        bracket: Bracket of the same starts.
        ends: Function of λ that returns numbers between which the value would lie for the mean over the same starts.
        prior_std: Function ``spectrum -> λ``.
    """
    found = [ends(prior_std(one)) for one in (bracket.radau, bracket.gauss)]
    outer = Ends(min(one.low for one in found), max(one.high for one in found))
    return bracketed_error(lambda s: value(s, prior_std(s)), spectra, outer)


def _sorted(one: float, other: float) -> Ends:
    """Return them as low and high: if both rules agree, rounding decides which is which."""
    return Ends(min(one, other), max(one, other))
