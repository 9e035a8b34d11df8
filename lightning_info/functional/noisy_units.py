"""Units of a layer under weight noise, and those that the noise does not reach."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 8
"""Number of units in the last place by which a unit without noise may differ between draws."""


class NoisyUnits(NamedTuple):
    """Units with noise, and what is known from those without.

    Attributes:
        points: The noisy units ``(M, N, d')``, float64, centred, with noise of variance 1 at the median of the inputs
            at which there is any; one unit without information if there are none.
        groups: Group of each input by its values in the units without noise, ``(N,)``.
        num_constant: Units with one value over all draws and inputs.
        num_noise_free: Units that differ between inputs only.
        units: Mask of the noisy units, ``(d,)``.
        centre: The centre that was subtracted from them, ``(d',)``.
        scale: The scale that they were divided by; None if there are none.
    """

    points: Tensor
    groups: Tensor
    num_constant: int
    num_noise_free: int
    units: Tensor
    centre: Tensor
    scale: Tensor | None

    def brought(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and variances ``(M, N, d)`` of Gaussians of the units, as those of the points."""
        assert self.scale is not None
        points = _chosen(mean, self.units).sub_(self.centre).div_(self.scale)
        return points, _chosen(variance, self.units).div_(self.scale.square())


def separate(z: Tensor) -> NoisyUnits:
    """Separate the units without noise."""
    eps = torch.finfo(torch.promote_types(z.dtype, torch.float32)).eps
    low, high = z.amin(0), z.amax(0)
    tolerance = _ROUNDING * eps * torch.maximum(high.amax(0).abs(), low.amin(0).abs())
    still = (high - low <= tolerance).all(0)
    order = low[:, still].sort(0)
    rank = (order.values.diff(dim=0) > tolerance[still]).cumsum(0)
    values = torch.zeros_like(order.indices)
    values.scatter_(0, order.indices[1:], rank)
    varied = int(values.amax(0).count_nonzero()) if still.any() else 0
    groups = torch.unique(values, dim=0, return_inverse=True)[1] if varied else values.new_zeros(z.shape[1])
    constant = int(still.sum()) - varied
    if still.all():
        noisy = z.new_zeros(*z.shape[:2], 1, dtype=torch.float64)
        return NoisyUnits(noisy, groups, constant, varied, ~still, noisy[0, 0, :0], None)
    noisy = _chosen(z, ~still)
    centre = noisy.mean((0, 1))
    noisy -= centre
    variance = (noisy - noisy.mean(0)).square_().sum(0) / (len(z) - 1)
    varies = variance > 1e-12 * variance.amax(0)
    scale = variance.where(varies, math.nan).nanmedian(0).values.sqrt()
    noisy /= scale
    return NoisyUnits(noisy, groups, constant, varied, ~still, centre, scale)


def _chosen(values: Tensor, units: Tensor) -> Tensor:
    """Return a copy of some units in float64."""
    if units.all():
        return values.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    return values[:, :, units].double()
