"""The plane of effective information as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.functional.effective_information import EffectiveInformation
from lightning_info.functional.standard_error import NORMAL
from lightning_info.quantities.effective_information.label_axis import FAMILY
from lightning_info.quantities.quantity import Record


def plane(
    family: str,
    layers: Sequence[str],
    last: Mapping[str, EffectiveInformation],
    how: str,
    by_decoders: bool,
    record: Record,
    unit: str,
    factor: float,
) -> Figure:
    """Draw the plane of a level.

    Args:
        family: First part of its tags.
        layers: The layers.
        last: Values of the last point.
        how: The level and the draws, for the title.
        by_decoders: Whether upwards is what decoders tell of the label from the layers without noise.
        record: What was logged.
        unit: Unit of the figure.
        factor: The figure's unit per nat.
    """
    upward = f"{FAMILY}/I_TY" if by_decoders else f"{family}/I_ZY"
    errors = f"{FAMILY}_stderr/I_TY" if by_decoders else f"{family}_stderr/I_ZY"
    curves = []
    for layer in layers:
        x, y = (dict(record.curves.get(f"{tag}/{layer}", ())) for tag in (f"{family}/I_XZ", upward))
        points = [(step, x[step], y.get(step, math.nan)) for step in sorted(x)]
        halves = [_half(record, f"{tag}/{layer}") for tag in (f"{family}_stderr/I_XZ", errors)]
        is_saturated = layer in last and last[layer].is_saturated
        curves.append(PlaneCurve(layer, points, is_saturated, (halves[0], halves[1])).times(factor))
    found = list(last.values())
    return information_plane(
        curves,
        title=f"Effective information, {how} (lower bounds)",
        ceiling_x=found[0].ceiling * factor if found else math.inf,
        ceiling_y=found[0].label_entropy * factor if found else math.inf,
        epochs=record.epochs,
        unit=unit,
        symbol="T" if by_decoders else "Z",
        across="I(X;Z)",
        caption=f"{'I(T;Y): by decoders, without noise. ' if by_decoders else ''}Bars: 95 % at the last point",
    )


def _half(record: Record, tag: str) -> float:
    curve = record.curves.get(tag, ())
    return NORMAL * curve[-1][1] if curve else math.nan
