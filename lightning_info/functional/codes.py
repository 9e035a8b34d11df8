"""Integers without rounding: exact codes of whole rows, their hashes, and bins with exact edges.

Source of the mixing function: Steele, Lea & Flood (2014), SplitMix64.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # those of SplitMix64
_LOW, _HIGH = -(1 << 63), (1 << 63) - 1


def exact_codes(t: Tensor) -> Tensor:
    """Return one integer per sample, equal if all units are equal: the layer itself, if its units are integers.

    Args:
        t: Integers or booleans ``(N, d)`` or ``(N,)``.

    Returns:
        ``(N,)``, int64, from 0 upwards without gaps, on the device of ``t``.

    Raises:
        ValueError: A shape is wrong, or values are not integers.
    """
    if t.is_floating_point() or t.is_complex() or t.dim() not in (1, 2) or 0 in t.shape:
        raise ValueError(
            f"values of shape {tuple(t.shape)}, {t.dtype}: expected integers (N,) or (N, d); bin continuous ones, for "
            "example bin_codes(t)"
        )
    codes: Tensor = torch.unique(as_int64(t), dim=0, return_inverse=True)[1]
    return codes


def value_codes(t: Tensor) -> Tensor:
    """Return one integer per sample, equal if all values are equal, to the last bit: the net's own grid of numbers.

    Args:
        t: ``(N, ...)``, real or complex floating-point numbers of any precision, integers or booleans.

    Returns:
        ``(N,)``, int64, on the device of ``t``; a 64-bit hash, see :func:`row_hashes`.
    """
    t = t.detach()
    rows = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(len(t), -1)
    if rows.is_floating_point():
        size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
        rows = (rows + 0.0 if rows.element_size() > 1 else rows).contiguous().view(size)  # -0 and 0 are one value
    return row_hashes(rows)


def row_hashes(rows: Tensor) -> Tensor:
    """64-bit hashes of rows of integers ``(N, d) -> (N,)``, int64.

    Two of N different rows get the same one with a probability of about ``N² / 2⁶⁵``.
    """
    return hashed(as_int64(rows).clone())


def hashed(keys: Tensor) -> Tensor:
    """Return hashes of int64 rows ``(N, d) -> (N,)``, which are overwritten."""
    keys += _GOLDEN * torch.arange(1, keys.shape[1] + 1, device=keys.device)
    return _mix(keys).sum(1)


def _mix(keys: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 in place; int64 wraps, and the masks make its shifts logical."""
    keys.bitwise_xor_((keys >> 30) & (1 << 34) - 1).mul_(_MIX_1)
    keys.bitwise_xor_((keys >> 27) & (1 << 37) - 1).mul_(_MIX_2)
    return keys.bitwise_xor_((keys >> 31) & (1 << 33) - 1)


def as_int64(t: Tensor) -> Tensor:
    """Convert integers or booleans to int64, keeping their order; ``2⁶³`` is subtracted from uint64."""
    return t.view(torch.int64) ^ _LOW if t.dtype == torch.uint64 else t.long()


def smallest_and_largest(t: Tensor) -> tuple[int, int]:
    """Return the smallest and largest of integers or booleans, as Python's integers."""
    low, high = torch.aminmax(as_int64(t))
    return int(low) + _offset(t), int(high) + _offset(t)


def integer_bins(t: Tensor, bins: int, low: float, high: float) -> Tensor:
    """Return bins of integers as if they had all digits: the k-th is ``low + k w <= t < low + (k + 1) w``.

    Args:
        t: Integers or booleans of any shape.
        bins: Number of bins, of width ``w = (high - low) / bins``; values outside fall into the outermost ones.
        low: Lower end of the first, an integer or a floating-point number.
        high: Upper end of the last; for ``low`` itself all values are in the first bin.

    Returns:
        int64 of the same shape.
    """
    if low == high:
        return torch.zeros_like(t, dtype=torch.int64)
    edges = [max(edge - _offset(t), _LOW) for edge in _edges(bins, low, high) if edge - _offset(t) <= _HIGH]
    return torch.searchsorted(torch.tensor(edges, dtype=torch.int64, device=t.device), as_int64(t), right=True)


@lru_cache
def _edges(bins: int, low: float, high: float) -> tuple[int, ...]:
    """Return the smallest integer of every bin but the first."""
    first, last = Fraction(low), Fraction(high)
    whole = first.denominator * last.denominator
    start, width = first.numerator * last.denominator, (last - first) * whole
    return tuple(-(-(start * bins + k * int(width)) // (whole * bins)) for k in range(1, bins))


def _offset(t: Tensor) -> int:
    return 1 << 63 if t.dtype == torch.uint64 else 0
