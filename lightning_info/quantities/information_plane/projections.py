"""Several sets of random combinations of a wide layer: the mean over them, and its error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from lightning_info.functional.information_estimator import LayerInformation
from lightning_info.functional.standard_error import standard_error
from lightning_info.quantities.information_plane.trajectory import Plane
from lightning_info.reporting.table import Curve

Parts = Mapping[str, Sequence[str]]
"""Layer -> the keys of its projections, one for a layer that is not projected."""


def keys_of(layer: str, count: int) -> list[str]:
    """Return the keys of the projections of a layer; the first is its label."""
    return [layer, *(f"{layer}\n{number}" for number in range(1, count))]


def averaged(readings: Sequence[LayerInformation]) -> LayerInformation:
    """Return the mean over projections; its standard errors hold those of the readings."""
    if len(readings) == 1:
        return readings[0]
    i_xt, i_ty = [one.I_XT for one in readings], [one.I_TY for one in readings]
    own = [math.sqrt(fmean(e * e for e in errors) / len(readings)) for errors in _pairs(one.stderr for one in readings)]
    spread = [standard_error(values) for values in (i_xt, i_ty)]
    x, y = (math.hypot(*pair) for pair in zip(own or (0.0, 0.0), spread, strict=True))
    return LayerInformation(
        fmean(i_xt),
        fmean(i_ty),
        fmean(one.unique for one in readings),
        _mean_pair(one.low for one in readings),
        _mean_pair(one.high for one in readings),
        (x, y),
        max(one.excess for one in readings),
    )


def averaged_plane(plane: Plane, parts: Parts) -> Plane:
    """Return the mean curves of layers, of the curves of their projections."""
    found: Plane = {}
    for layer, keys in parts.items():
        curves = [plane[key] for key in keys if key in plane]
        if curves:
            found[layer] = [
                (points[0][0], fmean(x for _, x, _ in points), fmean(y for _, _, y in points))
                for points in zip(*curves, strict=True)
            ]
    return found


def errors_of_plane(plane: Plane, parts: Parts) -> dict[str, Curve]:
    """Return the standard errors of the mean I(X;T) of layers that are projected several times."""
    found: dict[str, Curve] = {}
    for layer, keys in parts.items():
        curves = [plane[key] for key in keys if key in plane]
        if len(curves) > 1:
            found[layer] = [
                (points[0][0], standard_error([x for _, x, _ in points])) for points in zip(*curves, strict=True)
            ]
    return found


def _pairs(pairs: Iterable[tuple[float, float] | None]) -> list[tuple[float, ...]]:
    there = [pair for pair in pairs if pair is not None]
    return list(zip(*there, strict=True))


def _mean_pair(pairs: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    columns = _pairs(pairs)
    return (fmean(columns[0]), fmean(columns[1])) if columns else None
