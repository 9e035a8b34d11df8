"""Real numbers with exponential tails, location and scale."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, distributions

from lightning_info.functional.likelihoods.family import Family, Predicted, Shapes, matrix


class LaplaceWithScale(Family):
    """``p(y | μ, b) = exp(-|y - μ| / b) / 2b``: outputs ``(N, *positions, 2)``, and ``H = diag(1/b², 1/b²)``."""

    name: ClassVar[str] = "laplace_with_scale"

    def __init__(self, predicted: Predicted | None = None, shapes: Shapes | None = None) -> None:
        super().__init__(distributions.Laplace, ("loc", "scale"), predicted, shapes)

    def information(self, z: Tensor) -> Tensor:
        """See the class; the divergence has a second derivative only to the eye of the mean, not to autograd."""
        scale = z[..., 1]
        own = scale.square().reciprocal()
        return matrix([[own, 0.0], [0.0, own]], scale)
