r"""Spectrum of the Fisher information, and what follows from it: log-determinant, trace, effective rank.

With the exact rows ``A (R, k)`` of N samples (all columns of the roots of the output Fisher informations, see
:func:`~.fisher.exact_cotangents`), ``F = AᵀA / N`` has the eigenvalues of the Gram matrix ``A Aᵀ / N`` and zeros:

.. math:: \log\det(F + cI) = \sum_{i \le r} \log(\lambda_i + c) + (k - r) \log c, \qquad r = \min(k, R) .

F alone is singular and its log-determinant -inf, so the damping c is always stated. Rows from *sampled* cotangents
serve the trace only: their spectrum is biased (effective rank 38 against 83, Gram matrix of a ResNet-18).

Source: Achille, Paolini & Soatto, Remark 2.7 and figure 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Negative eigenvalues down to this share of the largest one are rounding, and count zero."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a positive semi-definite ``k x k`` matrix; those that are not listed are zero.

    Attributes:
        eigenvalues: ``(r,)`` float64 with r at most k, the largest first. Of a diagonal matrix: its diagonal.
        weights: k.

    Raises:
        ValueError: Eigenvalues that are not finite, or negative by more than :data:`TOLERANCE`; a k that is not
            positive.
    """

    eigenvalues: Tensor
    weights: int

    def __post_init__(self) -> None:
        if self.weights < 1:
            raise ValueError(f"Spectrum: weights={self.weights}; give the number of trained weights, at least 1")
        values = self.eigenvalues.detach().double().flatten().sort(descending=True).values
        if not values.isfinite().all():
            raise ValueError(f"Spectrum: {int((~values.isfinite()).sum())} of {len(values)} eigenvalues are not finite")
        if len(values) and values[-1] < -TOLERANCE * values[0].abs():
            raise ValueError(
                f"Spectrum: an eigenvalue of {values[-1].item():.4g} beside a largest one of {values[0].item():.4g} is "
                "no rounding; the matrix is not positive semi-definite"
            )
        object.__setattr__(self, "eigenvalues", values[: self.weights].clamp_min(0))

    @classmethod
    def of_matrix(cls, matrix: Tensor, weights: int) -> Spectrum:
        """Of a Gram matrix ``A Aᵀ / N`` of rows, ``(R, R)``, or of the ``(k, k)`` matrix itself; symmetric."""
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Spectrum: the matrix has shape {tuple(matrix.shape)}; it has to be square")
        if not matrix.isfinite().all():
            raise ValueError("Spectrum: the matrix has entries that are not finite")
        return cls(torch.linalg.eigvalsh(matrix.detach().double()), weights)

    def scaled(self, factor: float) -> Spectrum:
        """Of the matrix times ``factor``: of ``N·F``, the Fisher information of a summed loss, from that of F."""
        if not (0 < factor < math.inf):
            raise ValueError(f"Spectrum: scaled by {factor}; the factor has to be positive and finite")
        return Spectrum(self.eigenvalues * factor, self.weights)

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return self.eigenvalues.sum().item()

    @property
    def top_eigenvalue(self) -> float:
        """The largest; 0 if there is none."""
        return self.eigenvalues[0].item() if len(self.eigenvalues) else 0.0

    @property
    def effective_rank(self) -> float:
        """``exp(-sum q log q)`` with ``q = λ / sum λ``, between 1 and k; NaN for the zero matrix."""
        total = self.eigenvalues.sum()
        if total <= 0:
            return math.nan
        return math.exp(torch.special.entr(self.eigenvalues / total).sum().item())

    def log_det(self, damping: float) -> float:
        """``log det(matrix + c I)`` in nats.

        Args:
            damping: c, in the unit of the eigenvalues; ``β/λ²`` for the information in the weights.

        Raises:
            ValueError: A damping that is not positive and finite.
        """
        if not (0 < damping < math.inf):
            raise ValueError(
                f"Spectrum: damping={damping}; log det(F + cI) needs a finite c > 0, such as beta / lambda_**2"
            )
        free = self.weights - len(self.eigenvalues)
        return (self.eigenvalues + damping).log().sum().item() + free * math.log(damping)
