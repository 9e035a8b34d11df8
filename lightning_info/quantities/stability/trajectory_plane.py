r"""The plane through three points of the space of weights: where a run began, where it ended, where its twin ended.

With the orthonormal basis ``P (2, k)`` of the plane, a point of it is ``w_0 + Pᵀc``. The information that the weights
hold about the replaced sample only, ``δᵀF_Nδ / (2β)``, is then ``½ cᵀ C⁻¹ c`` for a change ``δ = Pᵀc`` within the
plane, with

.. math:: C = \beta \, (N \, P F P^\top)^{-1}

the covariance of ``N(w, β F_N⁻¹)`` given that the weights lie in the plane. On its ellipse ``cᵀ C⁻¹ c = 1`` the
information is half a nat (Achille, Paolini & Soatto, Figure 2, there with the diagonal of F).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

COLUMNS = 1 << 22
"""Number of weights that are converted to double precision at once."""


@dataclass(frozen=True)
class WeightPlane:
    """A plane in the space of k weights.

    Attributes:
        origin: ``w_0``, ``(k,)``.
        basis: ``(2, k)``, orthonormal: from ``w_0`` to ``w_T``, and across it.
        run: Coordinates of ``w_T``, ``(2,)`` float64.
        twin: Coordinates of ``w'_T``.
        second: Source of the second direction: the ``"twin"``, or ``"random"`` if the three points lie on one line,
            within rounding.
    """

    origin: Tensor
    basis: Tensor
    run: Tensor
    twin: Tensor
    second: Literal["twin", "random"]

    @classmethod
    def through(cls, start: Tensor, run: Tensor, twin: Tensor, seed: int = 0) -> WeightPlane:
        """Return the plane through ``w_0``, ``w_T`` and ``w'_T``, each ``(k,)``, k at least 2.

        Args:
            start: ``w_0``; the plane has its precision and its device.
            run: ``w_T``.
            twin: ``w'_T``.
            seed: Seed of the direction that is drawn if the three points lie on one line.

        Raises:
            ValueError: There is no plane: weights are not finite, ``w_T`` is ``w_0``, or there is only one weight.
        """
        if len(start) < 2:
            raise ValueError("WeightPlane: one weight spans no plane")
        if not all(w.isfinite().all() for w in (start, run, twin)):
            raise ValueError("WeightPlane: weights are not finite")
        run, twin = run.to(start), twin.to(start)
        along, apart = run - start, twin - run
        if not along.any():
            raise ValueError("WeightPlane: the weights have not moved, so there is no path")
        first = _normalised(along)
        across = _without(apart, first)
        second: Literal["twin", "random"] = "twin"
        rounding = torch.finfo(start.dtype).eps * max(_norm(run), _norm(twin))
        if _norm(across) <= rounding:
            noise = torch.randn(len(start), generator=torch.Generator().manual_seed(seed), dtype=start.dtype)
            across, second = _without(noise.to(start), first), "random"
        basis = torch.stack([first, _normalised(across)])
        at_run = inner_products(along[None], basis)[0]
        at_twin = at_run + inner_products(apart[None], basis)[0]
        return cls(start, basis, at_run, at_twin, second)

    def coordinates(self, weights: Tensor) -> Tensor:
        """Return the coordinates of the plane's points nearest to some weights, ``(n, k) -> (n, 2)`` float64."""
        return inner_products(weights - self.origin, self.basis)

    def project_diagonal(self, diagonal: Tensor) -> Tensor:
        """Return ``P diag(d) Pᵀ``, ``(2, 2)`` float64, for ``d (k,)``."""
        return inner_products(self.basis * diagonal.to(self.basis), self.basis)


def inner_products(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner products ``(n, k), (m, k) -> (n, m)``, summed in float64."""
    pairs = zip(torch.split(one, COLUMNS, 1), torch.split(other, COLUMNS, 1), strict=True)
    return torch.stack([a.double() @ b.double().T for a, b in pairs]).sum(0)


def _norm(vector: Tensor) -> float:
    return inner_products(vector[None], vector[None]).sqrt().item()


def _normalised(vector: Tensor) -> Tensor:
    return vector / _norm(vector)


def _without(vector: Tensor, direction: Tensor) -> Tensor:
    """Return the part orthogonal to a unit vector; removed twice, because of rounding."""
    for _ in range(2):
        vector = vector - inner_products(vector[None], direction[None]).item() * direction
    return vector
