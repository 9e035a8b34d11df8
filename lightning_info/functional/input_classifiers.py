r"""Which input a draw of a layer belongs to: mean log probabilities of Gaussian classifiers at many temperatures.

At a point z of input i the Gaussians q of all inputs give

.. math:: \log N + \log \frac{q(z|x_i)^\tau}{\sum_j q(z|x_j)^\tau}, \qquad
          \log \frac{N}{N_{y_i}} + \log \frac{\sum_{j: y_j = y_i} q(z|x_j)^\tau}{\sum_j q(z|x_j)^\tau} .

**Precision.** The log densities are differences of large terms. If there are many, they are computed in single
precision if at some points of every fold the result agrees with double precision to 1e-3 of a nat; the exponentials
need no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_info.functional.packed_gaussians import PackedGaussians

TEMPERATURES = 16
"""Number of temperatures: 0, 0.1, ..., 1.5."""

_SMALL = 1e6
"""Largest number of multiply-adds, of all draws at all inputs, for which everything is in double precision."""

_CHECKED, _SINGLE_ERROR = 32, 1e-3
"""Points of a fold at which single precision is compared with double, and nats by which it may differ."""

_WORKSPACE = 2**17
"""Number of pairs of a point and a Gaussian at once."""

_LOWEST = -60.0
"""Logarithm of the smallest term: smaller ones are not normal numbers in single precision, and are negligible."""

_LEAST = ((1, 1e-12), (4, 3e-3))
"""Temperature (in tenths) from which on terms below a limit are left out, and that limit."""


class Classifiers:
    """Classifiers, one per fold, that tell from a draw's activations which input it belongs to; see the module.

    Args:
        gaussians: Gaussians of each fold and input.
        points: Points ``(M, N, d)`` float64.
        groups: Group of each input, ``(N,)``: a draw's group is known without error.
        labels: Class of each input, ``(N,)``; None without classes.
    """

    def __init__(self, gaussians: PackedGaussians, points: Tensor, groups: Tensor, labels: Tensor | None) -> None:
        self._gaussians, self._points = gaussians, points
        n = len(groups)
        self._group = None if int(groups.max()) == 0 else _Members.of(groups)
        self._class, self._log_prior = None, math.nan
        if labels is not None:
            both = torch.unique(torch.stack([groups, labels]), dim=1, return_inverse=True)[1]
            self._class = _Members.of(both)
            self._log_prior = (labels.bincount()[labels].double() / n).log().mean().item()
        work = len(points) * n * gaussians.columns.shape[2]
        self._sums = torch.float32 if work > _SMALL else torch.float64
        self._product = self._sums
        if self._sums == torch.float32 and not self._is_single_enough():
            self._product = torch.float64
        self._gaussians = gaussians.to(self._product)

    def by_draw(
        self, fold: int, draws: Tensor, inputs: Sequence[Tensor], wider: float = 1.0, temperature: int | None = None
    ) -> Tensor:
        """Return the means over inputs of some draws, ``(draws, 2, temperatures)`` float64.

        Args:
            fold: Fold of the Gaussians.
            draws: Indices of the draws.
            inputs: Inputs at which each of them is evaluated.
            wider: Factor of the covariances, and of those of the noise.
            temperature: The only one, in tenths; None: all of them.
        """
        found, step = [], max(1, _WORKSPACE // (max(map(len, inputs)) * self._gaussians.columns.shape[1]))
        for start in range(0, len(draws), step):
            some = inputs[start : start + step]
            own, sizes = torch.cat(list(some)), torch.tensor([len(one) for one in some], device=draws.device)
            places = torch.arange(len(some), device=draws.device).repeat_interleave(sizes)
            rows = self._at(fold, self._points[draws[start + places], own], own, self._product, wider, temperature)
            sums = rows.new_zeros(2, len(some), rows.shape[2]).index_add_(1, places, rows)
            found.append((sums / sizes[:, None]).transpose(0, 1))
        return torch.cat(found)

    def _at(
        self,
        fold: int,
        z: Tensor,
        own: Tensor,
        product: torch.dtype,
        wider: float = 1.0,
        temperature: int | None = None,
    ) -> Tensor:
        """Return ``(2, R, temperatures)`` float64 for points ``(R, d)`` of the inputs ``(R,)``."""
        if wider != 1:
            mean = self._gaussians.mean[fold, own]
            z = mean + wider**0.5 * (z - mean)
        density = self._gaussians.log_density(fold, z, product, wider)
        ratio = (density - density.gather(1, own[:, None])).to(self._sums)
        everything = _log_sums(ratio if self._group is None else self._group.of_rows(ratio, own), temperature)
        found = everything.new_full((2, *everything.shape), math.nan)
        found[0] = math.log(ratio.shape[1]) - everything
        if self._class is not None:
            found[1] = _log_sums(self._class.of_rows(ratio, own), temperature) - everything - self._log_prior
        return found

    def _is_single_enough(self) -> bool:
        """Tell whether the result agrees with double precision at some points of every fold, to 1e-3 of a nat."""
        n, folds = self._points.shape[1], len(self._gaussians.mean)
        own = torch.linspace(0, n - 1, min(n, _CHECKED), dtype=torch.float64, device=self._points.device).long()
        for k in range(folds):
            one, other = (self._at(k, self._points[k, own], own, dtype) for dtype in (torch.float32, torch.float64))
            if not bool(((one - other).nan_to_num().abs() < _SINGLE_ERROR).all()):
                return False
        return True


class _Members(NamedTuple):
    """The inputs that share a kind with each input.

    Attributes:
        kind: Kind of each input, ``(N,)``.
        table: Inputs of each kind, ``(kinds, largest)``.
        is_there: Mask of the entries of the table that hold an input.
    """

    kind: Tensor
    table: Tensor
    is_there: Tensor

    @classmethod
    def of(cls, kind: Tensor) -> _Members:
        sizes = kind.bincount()
        order = kind.argsort(stable=True)
        place = torch.arange(int(sizes.max()), device=kind.device)
        is_there = place < sizes[:, None]
        table = (sizes.cumsum(0) - sizes)[:, None] + place
        return cls(kind, order[table.clamp_max(len(kind) - 1)], is_there)

    def of_rows(self, ratio: Tensor, own: Tensor) -> Tensor:
        """Return the columns of their kind for rows ``(R, N)`` of inputs, ``-inf`` where there are fewer."""
        kind = self.kind[own]
        return ratio.gather(1, self.table[kind]).masked_fill_(~self.is_there[kind], -math.inf)


def _log_sums(ratio: Tensor, temperature: int | None) -> Tensor:
    """Return ``log Σ_j exp(τ ratio_rj)`` of each row, ``(R, temperatures)`` float64, by powers of one exponential.

    A term below 1e-12 of the largest at τ = 0.1, or 1e-10 at the other, is left out: its powers stay normal numbers.
    """
    top = ratio.amax(1, keepdim=True)
    if temperature:
        terms = ((ratio - top) * (temperature / 10)).clamp_min_(_LOWEST).exp_()
        return terms.sum(1, keepdim=True).double().log() + temperature / 10 * top.double()
    sums = [(ratio > -math.inf).sum(1).to(ratio.dtype)]
    if temperature is None:
        base = ((ratio - top) / 10).clamp_min_(_LOWEST).exp_()
        power = base
        for step in range(1, TEMPERATURES):
            for start, least in _LEAST:
                if step == start:
                    base = torch.threshold(base, least, 0.0)
            power = base.clone() if step == 1 else power.mul_(base)
            sums.append(power.sum(1))
    temperatures = torch.arange(len(sums), device=ratio.device).double() / 10
    return torch.stack(sums, 1).double().log() + temperatures * top.double()
