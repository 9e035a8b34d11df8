"""A claim of the paper as a criterion on numbers, and the verdict that follows from the numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REPRODUCED, IN_PART, NOT = "reproduced", "in part", "not reproduced"


@dataclass(frozen=True)
class Claim:
    """One thing that a figure says.

    Attributes:
        figure: ``"1A"``, say.
        text: The claim.
        values: What was measured: one number for each seed, or for each layer and seed, or one in all.
        at_least: Smallest value that agrees with the claim.
        at_most: Largest one.
        unit: Of the values and the limits.
        source: ``"paper"``, or ``"here"`` for what the paper does not say.
    """

    figure: str
    text: str
    values: Sequence[float]
    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = ""
    source: str = "paper"

    def __post_init__(self) -> None:
        if math.isinf(self.at_least) and math.isinf(self.at_most):
            raise ValueError(f"claim {self.text!r}: no criterion; give at_least or at_most")

    @property
    def holding(self) -> int:
        """How many values meet the criterion; NaN does not."""
        return sum(self.at_least <= value <= self.at_most for value in self.values)

    @property
    def verdict(self) -> str:
        """Reproduced if all values meet the criterion and there are any, in part if some do."""
        if self.holding == 0:
            return NOT
        return REPRODUCED if self.holding == len(self.values) else IN_PART

    @property
    def criterion(self) -> str:
        """In words."""
        ends = [(self.at_least, "≥"), (self.at_most, "≤")]
        said = " and ".join(f"{sign} {end:.4g}" for end, sign in ends if not math.isinf(end))
        return f"{said} {self.unit}".rstrip() + ("" if len(self.values) == 1 else ", each")

    @property
    def measured(self) -> str:
        """The values, of more than eight how many hold and their range."""
        if len(self.values) <= 8:
            return " ".join(f"{value:.3g}" for value in self.values)
        return f"{self.holding} of {len(self.values)} hold; {min(self.values):.3g} to {max(self.values):.3g}"


def report(claims: Iterable[Claim]) -> str:
    """Claims as they are printed."""
    return "\n".join(
        f"[{claim.figure}] {claim.text}\n     {claim.criterion}: {claim.measured or 'no values'} -> {claim.verdict}"
        for claim in claims
    )


def markdown(claims: Iterable[Claim]) -> str:
    """Claims as a table."""
    rows = ["| figure | claim | said by | criterion | value | verdict |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {c.figure} | {c.text} | {c.source} | {c.criterion} | {c.measured or 'no values'} | **{c.verdict}** |"
        for c in claims
    ]
    return "\n".join(rows)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN of none."""
    return sum(values) / len(values) if values else math.nan
