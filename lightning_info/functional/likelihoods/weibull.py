"""Waiting times: scale and shape."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, distributions

from lightning_info.functional.likelihoods.family import Family, Predicted, Shapes, matrix

_EULER = 0.5772156649015329


class Weibull(Family):
    r"""``p(y | λ, k) = k/λ (y/λ)^{k-1} exp(-(y/λ)^k)``: outputs ``(N, *positions, 2)``.

    .. math:: H_{\lambda\lambda} = k^2/\lambda^2,\quad H_{\lambda k} = -(1-\gamma)/\lambda,\quad
              H_{kk} = \left[\pi^2/6 + (1-\gamma)^2\right]/k^2
    """

    name: ClassVar[str] = "weibull"
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __init__(self, predicted: Predicted | None = None, shapes: Shapes | None = None) -> None:
        super().__init__(distributions.Weibull, ("scale", "concentration"), predicted, shapes)

    def information(self, z: Tensor) -> Tensor:
        """See the class."""
        scale, shape = z.unbind(-1)
        both = -(1 - _EULER) / scale
        own = (math.pi**2 / 6 + (1 - _EULER) ** 2) / shape.square()
        return matrix([[(shape / scale).square(), both], [both, own]], scale)

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return a mean over targets; torch's is that of the base alone."""
        return self._sampled_kl(z, other)
