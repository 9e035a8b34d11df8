"""Validation of the estimators and bin ranges that a user names, one or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from lightning_info import validation as arguments
from lightning_info.functional.information_estimators import EstimatorName, estimator_named
from lightning_info.quantities.information_plane.estimates import BinRange, Estimate, range_name


def estimates(
    owner: str, estimator: EstimatorName | Sequence[EstimatorName], bin_range: BinRange | Sequence[BinRange]
) -> list[Estimate]:
    """Return every estimator with every range that applies to it; the first has the plain tags.

    Raises:
        ValueError: A name is unknown, a range is empty, or one is given twice.
    """
    names = [estimator] if isinstance(estimator, str) else list(estimator)
    found = [(name, estimator_named(name, owner)) for name in names]
    pairs: list[tuple[str, BinRange | None]] = []
    for name, one in found:
        pairs += [(name, given) for given in _ranges(owner, bin_range)] if one.has_bins else [(name, None)]
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"{owner}: name each estimator and range once, for example estimator=['binning', 'mixture']")
    tails = [name if given is None else f"{name}_{range_name(given)}" for name, given in pairs]
    families = ["info_plane", *(f"info_plane_{tail}" for tail in tails[1:])]
    return [Estimate(family, *pair) for family, pair in zip(families, pairs, strict=True)]


def _ranges(owner: str, bin_range: BinRange | Sequence[BinRange]) -> list[BinRange]:
    is_one = isinstance(bin_range, str) or (len(bin_range) > 0 and not isinstance(bin_range[0], (str, list, tuple)))
    ranges: list[BinRange] = []
    for given in [bin_range] if is_one else list(bin_range):
        if isinstance(given, str):
            arguments.one_of(owner, "bin_range", given, ("global", "fixed", "adaptive"))
            ranges.append(cast(BinRange, given))
            continue
        ends = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if not (
            len(ends) == 2 and all(isinstance(e, (int, float)) and math.isfinite(e) for e in ends) and ends[0] < ends[1]
        ):
            raise ValueError(
                f"{owner}: bin_range={given!r} is not a range; choose 'global', 'fixed', 'adaptive' or (low, high), "
                f"for example bin_range=(-1.0, 1.0)"
            )
        ranges.append((float(ends[0]), float(ends[1])))
    return ranges
