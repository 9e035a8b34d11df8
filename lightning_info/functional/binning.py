r"""The information plane by binning: I(X;T) and I(T;Y) of a layer whose activations are cut into intervals.

A deterministic network gives one activation per input, so the binned layer ``T = bin(t)`` has

.. math:: I(X;T) = H(T), \qquad I(T;Y) = H(T) + H(Y) - H(T, Y)

over the N equally likely samples, *if no input is there twice*. Every sample's bins are packed into one integer, its
code (:func:`bin_codes`), from which :func:`~.code_information.code_information` computes the rest.

Both numbers have a ceiling: ``I(X;T) <= log N``, and if every code is unique ``I(T;Y) = H(Y)`` whatever the layer
knows. :attr:`~.CodeInformation.unique` and :func:`~.shuffled_information` show this. Integers are binned without
rounding, and need no bins if they are codes (:func:`~.codes.exact_codes`).

Source: Saxe et al. (2018), section 2; ``bins`` counts intervals (the authors' "30 bins" are 30 edges).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_info.functional.code_information import EXACT_BITS, code_information
from lightning_info.functional.codes import hashed, integer_bins, smallest_and_largest
from lightning_info.functional.units import Unit, per_nat

BinRange = Literal["fixed", "adaptive"] | tuple[float, float]

_PRODUCT_BITS = 53
"""Integers up to this size are exact in float64."""

_CHUNK = 2**19
"""Number of activations that are binned at a time on the CPU, to fit into its caches."""

_FAR, _LIFT = 2.0**900, 2.0**512
"""If the range of values is wider than the first, or narrower than its inverse, they are scaled by the second, which is
exact: the width of the bins, or its inverse, would otherwise lose digits."""


class Information(NamedTuple):
    """A point of the information plane: I(X;T) and I(T;Y), in the requested unit."""

    I_XT: float
    I_TY: float


def binned_information(
    t: Tensor, y: Tensor | None, bins: int = 30, bin_range: BinRange = "adaptive", *, unit: Unit = "bits"
) -> Information:
    """Return I(X;T) and I(T;Y) of a layer by binning.

    Args:
        t: Activations ``(N, d)`` of N distinct inputs, or ``(N,)`` for a single unit.
        y: Classes ``(N,)``, integer or bool; None if there are none.
        bins: Number of intervals a unit is cut into.
        bin_range: Range that the intervals cover: ``"fixed"`` is (-1, 1), ``"adaptive"`` is the range of ``t``, or
            ``(low, high)``. Values outside fall into the outermost bins.
        unit: Unit of the result.

    Returns:
        ``(I_XT, I_TY)``; I_TY is NaN without ``y``.

    Raises:
        ValueError: Invalid shapes, activations that are not finite, floating ``y``, bins below 1, an empty range.
    """
    return Information(*code_information(bin_codes(t, bins, bin_range), y, unit=unit)[:2])


def bin_codes(t: Tensor, bins: int = 30, bin_range: BinRange = "adaptive") -> Tensor:
    """Return one integer per sample that encodes the bin of each of its units.

    The code is the number whose digits are the bins of the units, as long as it fits into 62 bits (12 units of 30
    bins). Otherwise it is a 64-bit hash of them: two of N samples in different bins get the same code with a
    probability of about ``N² / 2⁶⁵`` (5e-13 for 4096 samples), which is the only error.

    Args:
        t: See :func:`binned_information`.
        bins: See :func:`binned_information`.
        bin_range: See :func:`binned_information`.

    Returns:
        ``(N,)``, int64, on the device of ``t``.

    Raises:
        ValueError: See :func:`binned_information`; not for labels.
    """
    codes = [_codes(index, bins) for index in _indices(as_rows(t), bins, bin_range)]
    return torch.cat(codes) if len(codes) > 1 else codes[0]


def subset_information(
    t: Tensor,
    x: Tensor,
    subset: Sequence[int] | Tensor,
    bins: int = 30,
    bin_range: BinRange = "adaptive",
    *,
    conditional: bool = False,
    unit: Unit = "bits",
) -> float:
    """Return the information of a binned layer with some of its discrete inputs, X_S; X_R are the rest.

    Either ``I(T; X_S)``, the rest being noise, or ``I(T; X_S | X_R)``. The two readings of "information with a subset"
    differ a lot; the chain rule ties them: ``I(T;X) = I(T;X_R) + I(T;X_S|X_R)``. Source: Saxe et al. (2018), section 5.

    Args:
        t: See :func:`binned_information`.
        x: Inputs ``(N, D)`` of discrete values; the samples are equally likely.
        subset: Columns of ``x``, as indices or as a boolean mask ``(D,)``.
        bins: See :func:`binned_information`.
        bin_range: See :func:`binned_information`.
        conditional: The second reading.
        unit: Unit of the result.

    Raises:
        ValueError: See :func:`binned_information`; ``x`` is not ``(N, D)``.
    """
    codes = bin_codes(t, bins, bin_range)
    if x.dim() != 2 or len(x) != len(codes):
        raise ValueError(f"x of shape {tuple(x.shape)}: expected (N, D) with N = {len(codes)}")
    chosen = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    chosen[subset if isinstance(subset, Tensor) else list(subset)] = True
    rest = code_information(codes, _row_classes(x[:, ~chosen]), unit=unit).I_TY if conditional else 0.0
    used = x if conditional else x[:, chosen]
    return max(0.0, code_information(codes, _row_classes(used), unit=unit).I_TY - rest)


def unit_entropies(t: Tensor, bins: int = 30, bin_range: BinRange = "adaptive", *, unit: Unit = "bits") -> Tensor:
    """Return the entropy of every unit's bin.

    Args:
        t: See :func:`binned_information`.
        bins: See :func:`binned_information`.
        bin_range: See :func:`binned_information`.
        unit: Unit of the result.

    Returns:
        ``(d,)``, float64, on the device of ``t``.

    Raises:
        ValueError: See :func:`binned_information`; not for labels.
    """
    rows = as_rows(t)
    first = bins * torch.arange(rows.shape[1], device=t.device)
    counts = torch.zeros(rows.shape[1] * bins, dtype=torch.int64, device=t.device)
    for index in _indices(rows, bins, bin_range):
        counts += (index.long() + first).flatten().bincount(minlength=len(counts))
    share = counts.reshape(-1, bins).double() / len(rows)
    nats: Tensor = torch.special.entr(share).sum(1)
    return per_nat(unit) * nats


def bin_targets(y: Tensor, bins: int = 30) -> Tensor:
    """Turn targets into classes: regression targets, or several labels per sample.

    Args:
        y: Floating ``(N,)`` or ``(N, k)``: each column is cut into ``bins`` equal intervals over its own range, and
            rows in the same intervals are one class. Integer or bool ``(N,)`` or ``(N, k)``: equal rows are one class.
        bins: Number of intervals.

    Returns:
        ``(N,)``, int64, from 0 upwards without gaps.

    Raises:
        ValueError: Invalid shapes, targets that are not finite, bins below 1.
    """
    rows = as_rows(y)
    if not y.is_floating_point():
        return _row_classes(rows)
    low, high = (end.double() for end in torch.aminmax(rows, dim=0))
    lift = torch.where((high - low).isinf(), 0.5, 1.0)
    width = torch.where(high > low, lift * high - lift * low, 1.0)
    shares = (lift * rows.double() - lift * low) / width
    classes: Tensor = torch.unique(bin_codes(shares, bins, (0.0, 1.0)), return_inverse=True)[1]
    return classes


def as_rows(values: Tensor) -> Tensor:
    """Return values ``(N, d)`` or ``(N,)`` as ``(N, d)``, without their graph.

    Raises:
        ValueError: Other shapes, empty ones, complex values.
    """
    shape = values.shape
    if values.is_complex():
        raise ValueError(
            "complex values: give real and imaginary part as two units, for example torch.view_as_real(t).flatten(1)"
        )
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            f"values of shape {tuple(shape)}: expected (N,) or (N, d), neither of them 0; reduce further axes first, "
            "for example t.flatten(1) or t.mean((2, 3))"
        )
    return values.detach() if len(shape) == 2 else values.detach()[:, None]


def _indices(rows: Tensor, bins: int, bin_range: BinRange) -> Iterator[Tensor]:
    """Yield the bins as whole numbers ``(n, d)``, float64, some samples at a time."""
    low, high = _ends(rows, bins, bin_range)
    n, d = rows.shape
    samples = max(1, _CHUNK // d) if rows.device.type == "cpu" else n
    chunks = [rows] if n <= samples else torch.split(rows, samples)
    if not rows.is_floating_point():
        yield from (integer_bins(chunk, bins, low, high).double() for chunk in chunks)
        return
    lift = 1 / _LIFT if high - low > _FAR else _LIFT if 0 < high - low < 1 / _FAR else 1.0
    low, width = lift * low, lift * high - lift * low
    scale = bins / width if width else 0.0
    for chunk in chunks:
        values = chunk.double() if lift == 1 else chunk.double().mul(lift)
        index = values.sub(low) if values is chunk else values.sub_(low)
        yield index.mul_(scale).floor_().clamp_(0, bins - 1)


def _ends(rows: Tensor, bins: int, bin_range: BinRange) -> tuple[float, float]:
    """Return the lower end of the first bin and upper end of the last."""
    if bins < 1:
        raise ValueError(f"bins={bins}: expected the number of intervals, at least 1, for example bins=30")
    if rows.is_floating_point():
        low, high = (float(end) for end in torch.aminmax(rows))
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("some values are not finite; leave their samples out")
    else:
        low, high = smallest_and_largest(rows)
    if bin_range == "adaptive":
        return low, high
    if bin_range == "fixed":
        return -1.0, 1.0
    if isinstance(bin_range, str):
        raise ValueError(
            f"bin_range={bin_range!r}: choose 'fixed', 'adaptive' or (low, high); for one range over the whole "
            "training pass its ends, for example bin_range=(0.0, 8.5)"
        )
    low, high = bin_range
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"bin_range={bin_range}: expected low < high, for example bin_range=(-1.0, 1.0)")
    return low, high


def _codes(index: Tensor, bins: int) -> Tensor:
    """Codes of whole numbers ``(n, d)``; a float64 product is exact as long as the result has at most 53 bits."""
    n, d = index.shape
    digits = d if bins == 1 else min(d, max(1, int(_PRODUCT_BITS / math.log2(bins))))
    radix = _radix(bins, digits, index.device)
    if digits == d:
        return torch.mv(index, radix).long()
    blocks = -(-d // digits)
    padded: Tensor = torch.nn.functional.pad(index, (0, blocks * digits - d))
    keys = torch.mv(padded.reshape(n * blocks, digits), radix).long().reshape(n, blocks)
    if d * math.log2(bins) <= EXACT_BITS:
        return torch.add(keys[:, 0], keys[:, 1], alpha=bins**digits)
    return hashed(keys)


@lru_cache
def _radix(bins: int, digits: int, device: torch.device) -> Tensor:
    return torch.tensor([float(bins**i) for i in range(digits)], dtype=torch.float64, device=device)


def _row_classes(rows: Tensor) -> Tensor:
    if rows.shape[1] == 0:
        return torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    classes: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return classes
