"""The units of information."""

from __future__ import annotations

import math
from typing import Literal

Unit = Literal["bits", "nats"]


def per_nat(unit: Unit) -> float:
    """Return the number of units in a nat.

    Raises:
        ValueError: The unit is neither bits nor nats.
    """
    if unit not in ("bits", "nats"):
        raise ValueError(f"unit={unit!r}: choose 'bits' or 'nats'")
    return 1 / math.log(2) if unit == "bits" else 1.0


def in_unit(unit: str, chosen: Unit | None) -> tuple[str, float]:
    """Return a unit converted to the chosen unit of information, and the factor for its values.

    Args:
        unit: Unit of information (``"bits"``, ``"nats"``, ``"nats/sample"``); any other stays as it is.
        chosen: The chosen unit; None leaves every unit as it is.
    """
    first, slash, rest = unit.partition("/")
    if chosen is None or first not in ("bits", "nats") or rest not in ("", "sample"):
        return unit, 1.0
    return f"{chosen}{slash}{rest}", per_nat(chosen) / per_nat("bits" if first == "bits" else "nats")
