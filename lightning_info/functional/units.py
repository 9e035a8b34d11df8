"""The units of information."""

from __future__ import annotations

import math
from typing import Literal

Unit = Literal["bits", "nats"]


def per_nat(unit: Unit) -> float:
    """How many units a nat has.

    Raises:
        ValueError: It is neither of the two.
    """
    if unit not in ("bits", "nats"):
        raise ValueError(f"unit={unit!r}: choose 'bits' or 'nats'")
    return 1 / math.log(2) if unit == "bits" else 1.0


def in_unit(unit: str, chosen: Unit | None) -> tuple[str, float]:
    """A unit with the chosen one of information in its place, and the factor by which values are multiplied.

    Args:
        unit: Of information (``"bits"``, ``"nats"``, ``"nats/sample"``); any other stays what it is.
        chosen: None leaves every unit what it is.
    """
    first, slash, rest = unit.partition("/")
    if chosen is None or first not in ("bits", "nats") or rest not in ("", "sample"):
        return unit, 1.0
    return f"{chosen}{slash}{rest}", per_nat(chosen) / per_nat("bits" if first == "bits" else "nats")
