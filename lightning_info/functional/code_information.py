r"""Information of codes, integers that are equal where T is, by counting: the plug-in estimate.

With N samples, equally likely, ``I(X;T) = H(T)`` and ``I(T;Y) = H(T) + H(Y) - H(T, Y)``. Sorting the codes with the
labels in their low bits counts everything at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from typing_extensions import override

from lightning_info.functional.codes import value_codes
from lightning_info.functional.information_estimator import InformationEstimator, LayerInformation
from lightning_info.functional.units import Unit, per_nat

Integers = NDArray[np.int64]

EXACT_BITS = 62
"""Largest size in bits of mixed-radix codes; beyond it hashes are used."""


class CodeInformation(NamedTuple):
    """I(X;T) = H(T) and I(T;Y) of codes, and the share of the samples whose code no other sample has."""

    I_XT: float
    I_TY: float
    unique: float


class ShuffledInformation(NamedTuple):
    """Mean and standard deviation of I(T;Y) over permutations of the labels."""

    mean: float
    sd: float


def code_information(codes: Tensor, y: Tensor | None = None, *, unit: Unit = "bits") -> CodeInformation:
    """Return I(X;T) = H(T) and I(T;Y) of codes.

    Args:
        codes: ``(N,)``, int64, as from :func:`~.bin_codes`; any integers that are equal where T is.
        y: Classes ``(N,)``, integer or bool; None if there are none.
        unit: Unit of the result.

    Returns:
        The two and the share of unique codes; I_TY is NaN without ``y``.

    Raises:
        ValueError: Invalid shapes, floating ``y``.
    """
    scale, n = per_nat(unit), len(codes)
    if codes.dim() != 1 or n == 0 or codes.is_floating_point():
        raise ValueError(
            f"codes of shape {tuple(codes.shape)}, {codes.dtype}: expected integers (N,), for example bin_codes(t)"
        )
    keys = codes.cpu().numpy().astype(np.int64, copy=False)
    labels = None if y is None else class_labels(y, n)
    y_counts = np.array([n]) if labels is None else np.bincount(labels)
    bits = (len(y_counts) - 1).bit_length()
    used = int(np.bitwise_or.reduce(keys))
    if not 0 <= used < 1 << (EXACT_BITS - bits):
        keys = np.unique(keys, return_inverse=True)[1]
        used = n
    joint = keys.copy() if labels is None else keys << bits | labels
    if used < 1 << (31 - bits):
        joint = joint.astype(np.int32)  # sorted in half the time
    joint.sort()
    t_runs = _run_lengths(joint >> bits)
    t_logs = _n_log_n(t_runs)
    h_t = scale * max(0.0, math.log(n) - t_logs / n)
    unique = float(t_runs[1] / n)
    if labels is None:
        return CodeInformation(h_t, math.nan, unique)
    y_counts = y_counts[y_counts > 0]
    shared = _n_log_n(_run_lengths(joint)) - t_logs - float(y_counts @ np.log(y_counts))
    return CodeInformation(h_t, scale * max(0.0, math.log(n) + shared / n), unique)


def shuffled_information(
    codes: Tensor,
    y: Tensor,
    *,
    repeats: int = 10,
    generator: Generator | None = None,
    unit: Unit = "bits",
    estimate: Callable[[Tensor, Tensor], CodeInformation | LayerInformation] = code_information,
) -> ShuffledInformation:
    """Return I(T;Y) where there is nothing to know: for the same codes with permuted labels.

    Args:
        codes: ``(N,)``, int64, as from :func:`~.bin_codes`.
        y: Classes ``(N,)``, integer or bool.
        repeats: Number of permutations.
        generator: Source of the permutations; the global generator of the CPU if None.
        unit: Unit of the result.
        estimate: Estimator of the information of codes and labels, in bits.

    Returns:
        Mean and standard deviation; the latter is NaN for a single permutation.

    Raises:
        ValueError: Invalid shapes, floating ``y``, repeats below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: expected at least 1, for example repeats=10")
    codes = torch.unique(codes, return_inverse=True)[1]
    device = torch.device("cpu") if generator is None else generator.device
    found = torch.empty(repeats, dtype=torch.float64)
    for i in range(repeats):
        order = torch.randperm(len(codes), generator=generator, device=device)
        found[i] = estimate(codes, y[order.to(y.device)]).I_TY
    found *= per_nat(unit) / per_nat("bits")
    return ShuffledInformation(found.mean().item(), found.std().item() if repeats > 1 else math.nan)


def class_labels(y: Tensor, n: int) -> Integers:
    """Return classes as labels ``(N,)`` from 0 to below 4 N.

    Raises:
        ValueError: Invalid shapes, floating ``y``.
    """
    if y.shape != (n,):
        raise ValueError(
            f"y of shape {tuple(y.shape)}: expected ({n},), a class for each sample; rows of several labels become "
            "classes by bin_targets(y)"
        )
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"y of dtype {y.dtype}: expected classes; bin regression targets, for example bin_targets(y)")
    labels = y.cpu().numpy().astype(np.int64, copy=False)
    return labels if 0 <= np.bitwise_or.reduce(labels) < 4 * n else np.unique(labels, return_inverse=True)[1]


def _run_lengths(keys: Integers) -> Integers:
    """Return how many runs of equal keys there are of each length, from 0 to the longest."""
    new = np.ones(len(keys) + 1, dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
    starts = np.flatnonzero(new)
    return np.bincount(starts[1:] - starts[:-1])


def _n_log_n(lengths: Integers) -> float:
    """Return the sum of n log n over runs."""
    n = np.flatnonzero(lengths)
    return float((lengths[n] * n) @ np.log(n))


class PlugInEstimator(InformationEstimator):
    """The information of the bins, counted."""

    has_bins = True

    @override
    def __call__(
        self, t: Tensor, y: Tensor | None, noise_variance: float = 0.0, generator: Generator | None = None
    ) -> LayerInformation:
        return LayerInformation(*code_information(t, y))


class ExactEstimator(PlugInEstimator):
    """The information of activations as they are, counted."""

    has_bins = False
    is_exact = True

    @override
    def __call__(
        self, t: Tensor, y: Tensor | None, noise_variance: float = 0.0, generator: Generator | None = None
    ) -> LayerInformation:
        return LayerInformation(*code_information(value_codes(t), y))


def exact_information(t: Tensor, y: Tensor | None = None, *, unit: Unit = "bits") -> CodeInformation:
    """Return I(X;T) = H(T) and I(T;Y) of activations as they are: samples share T if all values are equal to the bit.

    It is exact, without an estimator, for networks that compute on a grid of numbers: quantised ones, integer codes,
    half precision. Of wide layers in single precision every sample has its own T; the values are then log N and H(Y),
    whatever the layer knows. Source: Lorenzen, Igel & Nielsen (2022), "Information bottleneck: exact analysis of
    (quantized) neural networks".

    Args:
        t: ``(N, ...)``, of any type.
        y: Classes ``(N,)``, integer or bool; None if there are none.
        unit: Unit of the result.

    Returns:
        The two and the share of the samples whose T no other has; I_TY is NaN without ``y``. T is told apart by 64-bit
        hashes, which merge two of 4096 samples with a probability of 5e-13.

    Raises:
        ValueError: See :func:`code_information`.
    """
    return code_information(value_codes(t), y, unit=unit)
