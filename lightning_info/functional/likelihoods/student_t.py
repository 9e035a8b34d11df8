"""Real numbers with polynomial tails: degrees of freedom, location and scale."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, distributions

from lightning_info.functional.likelihoods.family import Family, Predicted, Shapes, matrix


class StudentT(Family):
    r"""``p(y | ν, μ, σ)``: outputs ``(N, *positions, 3)``.

    .. math:: H_{\mu\mu} = \tfrac{\nu+1}{(\nu+3)\sigma^2},\quad H_{\sigma\sigma} = \tfrac{2\nu}{(\nu+3)\sigma^2},\quad
              H_{\nu\sigma} = \tfrac{-2}{(\nu+1)(\nu+3)\sigma},\quad
              H_{\nu\nu} = \tfrac14\left[\psi'(\tfrac\nu2) - \psi'(\tfrac{\nu+1}2)\right]
              - \tfrac{\nu+5}{2\nu(\nu+1)(\nu+3)}

    and the other elements 0. Source: Lange, Little & Taylor, *Robust statistical modeling using the t distribution*,
    1989.
    """

    name: ClassVar[str] = "student_t"

    def __init__(self, predicted: Predicted | None = None, shapes: Shapes | None = None) -> None:
        super().__init__(distributions.StudentT, ("df", "loc", "scale"), predicted, shapes)

    def information(self, z: Tensor) -> Tensor:
        """See the class; beyond ν = 100 its element of ν by its series in 1/ν, as the closed form cancels."""
        df, _, scale = z.unbind(-1)
        few = df.clamp_max(100.0)
        trigammas = torch.polygamma(1, few / 2) - torch.polygamma(1, (few + 1) / 2)
        closed = trigammas / 4 - (few + 5) / (2 * few * (few + 1) * (few + 3))
        x = 1 / df.clamp_min(1.0)
        series = x**4 * (7 / 2 + x * (-13 + x * (79 / 2 + x * (-119 + x * (727 / 2 - 1101 * x)))))
        own = torch.where(df > 100, series, closed)
        both = -2 / ((df + 1) * (df + 3) * scale)
        place = (df + 1) / ((df + 3) * scale.square())
        width = 2 * df / ((df + 3) * scale.square())
        return matrix([[own, 0.0, both], [0.0, place, 0.0], [both, 0.0, width]], df)
