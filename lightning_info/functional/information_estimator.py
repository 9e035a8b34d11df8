"""The interface of estimators of I(X;T) and I(T;Y), and their values for one layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Generator, Tensor


class LayerInformation(NamedTuple):
    """Estimates for one layer, in bits.

    Attributes:
        I_XT: I(X;T).
        I_TY: I(T;Y), NaN without labels.
        unique: Share of the samples that share their bins with no other; NaN without bins.
        low: Lower bounds of the two, if the estimator has any.
        high: Their upper bounds.
        stderr: Standard errors of the two, by sampling for these samples, and over random combinations of the units.
        excess: What was cut from an I(T;Y) above H(Y).
    """

    I_XT: float
    I_TY: float
    unique: float = math.nan
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    stderr: tuple[float, float] | None = None
    excess: float = 0.0

    def with_I_TY_of(self, few: LayerInformation) -> LayerInformation:
        """Replace I(T;Y) by that of the samples with labels."""
        return self._replace(
            I_TY=few.I_TY,
            low=_joined(self.low, few.low),
            high=_joined(self.high, few.high),
            stderr=_joined(self.stderr, few.stderr),
            excess=few.excess,
        )


def _joined(pair: tuple[float, float] | None, few: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if pair is None or few is None else (pair[0], few[1])


class InformationEstimator(ABC):
    """An estimator of I(X;T) and I(T;Y); users name it as :data:`~.information_estimators.ESTIMATORS` does.

    Attributes:
        has_bins: Whether it takes the bins of the samples; otherwise activations, and the variance of noise on them.
        has_ceiling: Whether the logarithm of the number of samples bounds it.
        has_bounds: Whether it gives ``low``, ``high`` and ``stderr``.
        has_stderr: Whether it gives ``stderr``, with or without bounds.
        has_own_noise: Whether the noise is that of the layer's own dropout: it is not called with activations alone.
        is_exact: Whether it counts activations as they are, all of a sample together: codes, with ``has_bins`` False.
    """

    has_bins = False
    is_exact = False
    has_ceiling = True
    has_bounds = False
    has_stderr = False
    has_own_noise = False

    @abstractmethod
    def __call__(
        self, t: Tensor, y: Tensor | None, noise_variance: float = 0.0, generator: Generator | None = None
    ) -> LayerInformation:
        """Estimate, in bits.

        Args:
            t: Activations ``(N, d)``; with ``has_bins`` codes ``(N,)``, int64, equal where all units are in the same
                bins.
            y: Classes ``(N,)``; None if there are none.
            noise_variance: Variance of the noise on every unit; not used for bins.
            generator: Source of the draws; the global generator of the CPU if None.
        """
