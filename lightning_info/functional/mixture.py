r"""The information plane with noise: ``T = t + N(0, σ² I)`` over N samples is a mixture of N Gaussians.

.. math:: I(X;T) = -\mathbb{E}_i\, \mathbb{E}_{z \sim N(t_i, \sigma^2 I)}
          \log \frac1N \sum_j \frac{N(z; t_j, \sigma^2 I)}{N(z; t_i, \sigma^2 I)}

Three estimates from pairwise distances, with ``S(c) = -E_i log 1/N Σ_j exp(-‖t_i - t_j‖² / (c σ²))``: the lower bound
``S(8)`` (Bhattacharyya) and the upper bound ``S(2)`` (Kullback-Leibler) of Kolchinsky & Tracey (2017), and the average
above over drawn noise (Goldfeld et al., 2019). With classes, ``I(T;Y) = I(X;T) - I(X;T|Y)``, the latter being the same
sums within each class.

All refer to the *empirical* mixture, the N samples taken as all existing inputs: nothing exceeds ``log N``. If they
represent a population, even the upper bound lies below the population's I(X;T) once that comes near log N.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from typing_extensions import override

from lightning_info.functional.binning import as_rows
from lightning_info.functional.code_information import class_labels, code_information
from lightning_info.functional.information_estimator import InformationEstimator, LayerInformation
from lightning_info.functional.standard_error import sampled_mean
from lightning_info.functional.units import Unit, per_nat

_TILE, _GPU_TILE = 512, 4096
"""Number of samples on each side of a tile of the matrix of pairs."""

_MOST_ROUNDING = 0.03
"""Rounding of float32 times the largest ``‖t‖² / σ²`` up to which it serves: results are then off by at most 1e-3."""


class MixtureInformation(NamedTuple):
    """Estimates of I(X;T) and I(T;Y) of a noisy layer, in the requested unit.

    Attributes:
        I_XT: Sampling estimate, moved to the nearer bound where it lies beyond; NaN without draws.
        I_TY: The same of I(T;Y).
        I_XT_lower: Lower bound.
        I_XT_upper: Upper bound.
        I_TY_lower: Lower bound: that of I(X;T) minus the upper one of I(X;T|Y), or 0.
        I_TY_upper: Upper bound: that of I(X;T) minus the lower one of I(X;T|Y), or H(Y).
        I_XT_stderr: Standard error of the sampling estimate, given the samples; an upper bound of it for one draw.
        I_TY_stderr: The same of I(T;Y).
    """

    I_XT: float
    I_TY: float
    I_XT_lower: float
    I_XT_upper: float
    I_TY_lower: float
    I_TY_upper: float
    I_XT_stderr: float
    I_TY_stderr: float


def mixture_information(
    t: Tensor,
    y: Tensor | None,
    noise_variance: float,
    *,
    draws: int = 1,
    generator: Generator | None = None,
    unit: Unit = "bits",
) -> MixtureInformation:
    """Return I(X;T) and I(T;Y) of a noisy layer: Kolchinsky-Tracey bounds and the sampling estimate.

    The time is that of half an ``N x d`` by ``d x N`` matrix product for the bounds and of a whole one for each draw;
    the memory that of two copies of ``t``.

    Args:
        t: Activations ``(N, d)`` or ``(N,)``.
        y: Classes ``(N,)``, integer or bool; None if there are none, then all of I(T;Y) is NaN.
        noise_variance: σ².
        draws: Number of noise draws for each sample; 0 for the bounds alone.
        generator: Source of the noise; the global generator of the CPU if None.
        unit: Unit of the result.

    Raises:
        ValueError: Invalid shapes, floating ``y``, activations that are not finite, a noise variance that is not
            positive, negative draws.
    """
    rows, scale = as_rows(t), per_nat(unit)
    if not noise_variance > 0:
        raise ValueError(
            f"noise_variance={noise_variance}: expected a positive number; without noise I(X;T) is infinite"
        )
    if draws < 0:
        raise ValueError(f"draws={draws}: expected at least 0")
    h_y, edges = math.nan, []
    if y is not None:
        labels = class_labels(y, len(rows))
        h_y = code_information(torch.from_numpy(labels), unit="nats").I_XT
        edges = [0, *np.bincount(labels).cumsum().tolist()]
        rows = rows[torch.from_numpy(labels.argsort(kind="stable")).to(t.device)]
    with torch.autocast(t.device.type, enabled=False):
        pairs = _Pairs(rows, noise_variance, edges)
        lower, upper = pairs.bounds().mean(2).tolist()  # I(X;T) and I(X;T|Y)
        sampled = [pairs.sample(generator) for _ in range(draws)]
    xt, xt_stderr = sampled_mean([values[0] for values in sampled])
    ty, ty_stderr = sampled_mean([values[0] - values[1] for values in sampled])
    ty_lower = math.nan if y is None else max(0.0, lower[0] - upper[1])
    ty_upper = math.nan if y is None else min(h_y, upper[0], upper[0] - lower[1])
    xt, ty = min(max(xt, lower[0]), upper[0]), min(max(ty, ty_lower), ty_upper)  # NaN stays
    found = (xt, ty, lower[0], upper[0], ty_lower, ty_upper, xt_stderr, ty_stderr)
    return MixtureInformation(*(scale * value for value in found))


class MixtureEstimator(InformationEstimator):
    """:func:`mixture_information` of one draw for each sample."""

    has_bounds = True

    @override
    def __call__(
        self, t: Tensor, y: Tensor | None, noise_variance: float = 0.0, generator: Generator | None = None
    ) -> LayerInformation:
        found = mixture_information(t, y, noise_variance, generator=generator)
        return LayerInformation(
            found.I_XT,
            found.I_TY,
            low=(found.I_XT_lower, found.I_TY_lower),
            high=(found.I_XT_upper, found.I_TY_upper),
            stderr=(found.I_XT_stderr, found.I_TY_stderr),
        )


class _Pairs:
    """All pairs of samples, a tile at a time.

    Args:
        rows: Activations ``(N, d)``, ordered by class.
        noise_variance: σ².
        edges: Start of each class, and N; empty without classes.
    """

    def __init__(self, rows: Tensor, noise_variance: float, edges: list[int]) -> None:
        n = len(rows)
        points = rows.to(torch.promote_types(rows.dtype, torch.float32))
        points = (points - points.mean(0)).div_(2 * noise_variance**0.5)
        largest = 4 * points.norm(dim=1).max().item() ** 2
        if not math.isfinite(largest):
            raise ValueError("some activations are not finite, or too large beside the noise; leave their samples out")
        single = rows.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
        single &= largest * torch.finfo(torch.float32).eps < _MOST_ROUNDING
        self._points = points if single else points.double()
        self._halves = torch.zeros_like(self._points[:, 0])  # ‖p‖² / 2
        self._edges = edges
        side = _TILE if rows.device.type == "cpu" else _GPU_TILE
        self._blocks = [slice(start, min(n, start + side)) for start in range(0, n, side)]
        sizes = torch.tensor(edges, dtype=torch.float64, device=rows.device).diff()
        self._log_sizes = torch.full((2, n), math.nan, dtype=torch.float64, device=rows.device)
        self._log_sizes[0] = math.log(n)
        if edges:
            self._log_sizes[1] = sizes.repeat_interleave(sizes.long()).log()

    def bounds(self) -> Tensor:
        """Return lower and upper bounds of I(X;T) and I(X;T|Y) for each sample, nats, ``(2, 2, N)``."""
        sums = torch.zeros(2, *self._log_sizes.shape, dtype=torch.float64, device=self._points.device)
        for number, j in enumerate(self._blocks):
            for i in [j, *self._blocks[:number]]:
                e = self._points[i] @ self._points[j].T
                if i == j:
                    # the norms come from the same product, so equal samples are at the distance 0 exactly
                    self._halves[j] = e.diagonal() / 2
                e.sub_(self._halves[i, None]).sub_(self._halves[j])
                _exp(e, 4)
                self._add(sums[0], e, i, j)
                self._add(sums[1], e.square_().square_(), i, j)
        return self._log_sizes - sums.log()

    def sample(self, generator: Generator | None) -> Tensor:
        """Estimate I(X;T) and I(X;T|Y) for each sample from one draw, nats, ``(2, N)``; after :meth:`bounds`."""
        sums = torch.zeros_like(self._log_sizes)
        device = torch.device("cpu") if generator is None else generator.device
        for number, i in enumerate(self._blocks):
            points = self._points[i]
            noise = torch.randn(points.shape, generator=generator, device=device, dtype=points.dtype)
            z = 4 * points + 2 * noise.to(points.device)
            for j in [i, *self._blocks[:number], *self._blocks[number + 1 :]]:
                e = (z @ self._points[j].T).sub_(4 * self._halves[j])
                if i == j:
                    own = e.diagonal().clone()[:, None]
                # log of the ratio of densities; that it exceeds 88 (float32) has a probability below 1e-39
                _exp(e.sub_(own), 1)
                self._add(sums, e, i, j, mirrored=False)
        return self._log_sizes - sums.log()

    def _add(self, sums: Tensor, e: Tensor, i: slice, j: slice, *, mirrored: bool = True) -> None:
        """Add a tile to the sums over all samples and over those of the same class."""
        parts = [(0, i, j), *((1, a, b) for a, b in self._same_class(i, j))]
        for row, a, b in parts:
            part = e[a.start - i.start : a.stop - i.start, b.start - j.start : b.stop - j.start]
            sums[row, a] += part.sum(1)
            if mirrored and i != j:
                sums[row, b] += part.sum(0)

    def _same_class(self, i: slice, j: slice) -> Iterator[tuple[slice, slice]]:
        """Yield where the samples of two blocks are of one class."""
        for c in range(max(0, bisect_right(self._edges, max(i.start, j.start)) - 1), len(self._edges) - 1):
            low, high = self._edges[c], self._edges[c + 1]
            if low >= min(i.stop, j.stop):
                return
            a = slice(max(low, i.start), min(high, i.stop))
            b = slice(max(low, j.start), min(high, j.stop))
            if a.start < a.stop and b.start < b.stop:
                yield a, b


def _exp(e: Tensor, power: int) -> None:
    """Compute ``exp(e)`` in place, with 0 where its power would underflow, as numbers close to that are slow."""
    torch.threshold_(e, math.log(torch.finfo(e.dtype).tiny) / power, -math.inf).exp_()
