"""A claim of the paper as a criterion on numbers, and the verdict that follows from the numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REPRODUCED, IN_PART, NOT = "reproduced", "in part", "not reproduced"
COMPRESSES = 0.5
"""Fall of I(X;T) from its peak to its end, in bits: a layer compresses from here on, in all figures with bins."""


@dataclass(frozen=True)
class Claim:
    """One thing that a figure says.

    Attributes:
        figure: The figure, for example ``"1A"``.
        text: The claim.
        values: Measured values: one for each seed, or for each layer and seed, or one in all.
        at_least: Smallest value that agrees with the claim.
        at_most: Largest value that agrees with the claim.
        unit: Unit of the values and the limits.
        source: ``"paper"``, or ``"here"`` for what the paper does not say.
        learned: Whether the networks behind each value learned their task; one that did not learn agrees with nothing.
            For claims that an untrained network meets, such as that it does not compress; None for others.
        why: Explanation of a verdict other than "reproduced", a sentence or two.
    """

    figure: str
    text: str
    values: Sequence[float]
    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = ""
    source: str = "paper"
    learned: Sequence[bool] | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if math.isinf(self.at_least) and math.isinf(self.at_most):
            raise ValueError(f"claim {self.text!r}: no criterion; give at_least or at_most")
        if self.learned is not None and len(self.learned) != len(self.values):
            raise ValueError(f"claim {self.text!r}: {len(self.values)} values, but learned has {len(self.learned)}")

    @property
    def holding(self) -> int:
        """Number of values that meet the criterion; NaN and values of networks that did not learn do not."""
        learned = [True] * len(self.values) if self.learned is None else self.learned
        return sum(self.at_least <= v <= self.at_most and did for v, did in zip(self.values, learned, strict=True))

    @property
    def verdict(self) -> str:
        """Verdict: reproduced if all values meet the criterion and there are any, in part if some do."""
        if self.holding == 0:
            return NOT
        return REPRODUCED if self.holding == len(self.values) else IN_PART

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        ends = [(self.at_least, "≥"), (self.at_most, "≤")]
        said = " and ".join(f"{sign} {end:.4g}" for end, sign in ends if not math.isinf(end))
        return f"{said} {self.unit}".rstrip() + ("" if len(self.values) == 1 else ", each")

    @property
    def measured(self) -> str:
        """The values, or how many hold and their range if there are more than eight; and how many did not learn."""
        said = " ".join(f"{value:.3g}" for value in self.values)
        if len(self.values) > 8:
            said = f"{self.holding} of {len(self.values)} hold; {min(self.values):.3g} to {max(self.values):.3g}"
        failed = 0 if self.learned is None else self.learned.count(False)
        return f"{said} ({failed} of networks that did not learn)" if failed else said


def report(claims: Iterable[Claim]) -> str:
    """Return the claims as they are printed."""
    return "\n".join(
        f"[{claim.figure}] {claim.text}\n     {claim.criterion}: {claim.measured or 'no values'} -> {claim.verdict}"
        for claim in claims
    )


def markdown(claims: Iterable[tuple[str, Claim]]) -> str:
    """Return lengths of runs and their claims as a table."""
    rows = ["| figure | claim | said by | run | criterion | value | verdict |", "|---|---|---|---|---|---|---|"]
    rows += [
        f"| {c.figure} | {c.text} | {c.source} | {length} | {c.criterion} | {c.measured or 'no values'} "
        f"| **{c.verdict}** |"
        for length, c in claims
    ]
    return "\n".join(rows)


def difference(claim: Claim) -> str:
    """Return a verdict other than "reproduced" as an item of a list, with the reason."""
    why = f" {claim.why}" if claim.why else ""
    return f"- {claim.figure}, {claim.text}: **{claim.verdict}** ({claim.criterion}; {claim.measured}).{why}"


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN without values."""
    return sum(values) / len(values) if values else math.nan


def chosen(values: Sequence[float], learned: Sequence[bool]) -> list[float]:
    """Return the values of networks that learned."""
    return [value for value, did in zip(values, learned, strict=True) if did]
