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
