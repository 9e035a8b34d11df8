r"""Spectrum of the Fisher information, and what follows from it: log-determinant, trace, effective rank.

The rows of the factor ``A (R, k)`` are the per-output gradients of N samples, for all columns of the roots of the
output Fisher informations (:func:`~.fisher.exact_cotangents`). ``F = AᵀA / N`` has the eigenvalues of the Gram matrix
``A Aᵀ / N`` and zeros:

.. math:: \log\det(F + cI) = \sum_{i \le r} \log(\lambda_i + c) + (k - r) \log c, \qquad r = \min(k, R) .

F alone is singular and its log-determinant -inf, so the damping c is always stated. Gradients from *sampled* cotangents
serve the trace only: their spectrum is biased (effective rank 38 against 83, Gram matrix of a ResNet-18).

If A has too many rows, a few nodes represent all eigenvalues, each with a multiplicity that need not be whole
(:mod:`~.lanczos`); every sum over eigenvalues is then weighted by them.

Source: Achille, Paolini & Soatto, Remark 2.7 and figure 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Rounding: an eigenvalue negative by this share of the largest one counts zero; multiplicities may exceed k by it."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a positive semi-definite ``k x k`` matrix; those that are not listed are zero.

    Attributes:
        eigenvalues: ``(r,)`` float64, the largest first. Of a diagonal matrix: its diagonal.
        weights: k.
        multiplicities: ``(r,)`` float64, the number of eigenvalues that each represents, not necessarily whole; their
            sum is at most k. None: one each, and r is at most k.

    Raises:
        ValueError: Eigenvalues that are not finite, or negative by more than :data:`TOLERANCE`; a k that is not
            positive; multiplicities of another shape, negative, or of a sum above k.
    """

    eigenvalues: Tensor
    weights: int
    multiplicities: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weights < 1:
            raise ValueError(f"Spectrum: weights={self.weights}; give the number of trained weights, at least 1")
        values, order = self.eigenvalues.detach().double().flatten().sort(descending=True)
        if not values.isfinite().all():
            raise ValueError(f"Spectrum: {int((~values.isfinite()).sum())} of {len(values)} eigenvalues are not finite")
        if len(values) and values[-1] < -TOLERANCE * values[0].abs():
            raise ValueError(
                f"Spectrum: an eigenvalue of {values[-1].item():.4g} beside a largest one of {values[0].item():.4g} is "
                "no rounding; the matrix is not positive semi-definite"
            )
        if self.multiplicities is None:
            values = values[: self.weights]
        else:
            counts = self.multiplicities.detach().double().flatten().to(values.device)
            _check_multiplicities(counts, len(values), self.weights)
            object.__setattr__(self, "multiplicities", counts[order])
        object.__setattr__(self, "eigenvalues", values.clamp_min(0))

    @classmethod
    def of_matrix(cls, matrix: Tensor, weights: int) -> Spectrum:
        """Return the spectrum of a Gram matrix ``A Aᵀ / N``, ``(R, R)``, or of the symmetric ``(k, k)`` matrix."""
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Spectrum: the matrix has shape {tuple(matrix.shape)}; it must be square")
        if not matrix.isfinite().all():
            raise ValueError("Spectrum: the matrix has entries that are not finite")
        return cls(torch.linalg.eigvalsh(matrix.detach().double()), weights)

    @classmethod
    def average(cls, spectra: Sequence[Spectrum]) -> Spectrum:
        """Join several estimates of one spectrum: all their eigenvalues, with multiplicities divided by their number.

        A sum over its eigenvalues is the mean of the sums over theirs.

        Raises:
            ValueError: None are given, or they have different numbers of weights.
        """
        numbers = [one.weights for one in spectra]
        if len(set(numbers)) != 1:
            raise ValueError(f"Spectrum: no average of spectra with weights={numbers}; give some of the same number")
        counts = [torch.ones_like(s.eigenvalues) if s.multiplicities is None else s.multiplicities for s in spectra]
        return cls(torch.cat([s.eigenvalues for s in spectra]), spectra[0].weights, torch.cat(counts) / len(spectra))

    def scaled(self, factor: float) -> Spectrum:
        """Return the spectrum of the matrix times ``factor``: of ``N·F``, for a summed loss, from that of F."""
        if not (0 < factor < math.inf):
            raise ValueError(f"Spectrum: scaled by {factor}; the factor must be positive and finite")
        return Spectrum(self.eigenvalues * factor, self.weights, self.multiplicities)

    def sum_over(self, values: Tensor) -> float:
        """Sum values ``(r,)`` that belong to the listed eigenvalues, each times its multiplicity."""
        return (values if self.multiplicities is None else values * self.multiplicities).sum().item()

    @property
    def unlisted(self) -> float:
        """Number of the k eigenvalues that are not listed, and therefore zero."""
        return max(0.0, self.weights - self.sum_over(torch.ones_like(self.eigenvalues)))

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return self.sum_over(self.eigenvalues)

    @property
    def top_eigenvalue(self) -> float:
        """The largest; 0 if there is none."""
        return self.eigenvalues[0].item() if len(self.eigenvalues) else 0.0

    @property
    def effective_rank(self) -> float:
        """``exp(-sum q log q)`` with ``q = λ / sum λ``, between 1 and k; NaN for the zero matrix."""
        total = self.trace
        if total <= 0:
            return math.nan
        return math.exp(self.sum_over(torch.special.entr(self.eigenvalues / total)))

    def log_det(self, damping: float) -> float:
        """Return ``log det(matrix + c I)`` in nats.

        Args:
            damping: c, in the unit of the eigenvalues; ``β/λ²`` for the information in the weights.

        Raises:
            ValueError: A damping that is not positive and finite.
        """
        if not (0 < damping < math.inf):
            raise ValueError(
                f"Spectrum: damping={damping}; log det(F + cI) needs a finite c > 0, such as beta / lambda_**2"
            )
        return self.sum_over((self.eigenvalues + damping).log()) + self.unlisted * math.log(damping)


def _check_multiplicities(counts: Tensor, eigenvalues: int, weights: int) -> None:
    if len(counts) != eigenvalues:
        raise ValueError(f"Spectrum: {len(counts)} multiplicities for {eigenvalues} eigenvalues; give one for each")
    if not counts.isfinite().all() or (counts < 0).any():
        raise ValueError("Spectrum: the multiplicities must be finite and not negative")
    if counts.sum() > weights * (1 + TOLERANCE):
        raise ValueError(
            f"Spectrum: the multiplicities add up to {counts.sum().item():.8g}, and a matrix of {weights} weights has "
            "no more eigenvalues than that"
        )
