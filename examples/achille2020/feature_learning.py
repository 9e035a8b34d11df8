"""Does the Fisher information follow what a network learns? Criteria on curves over training, and their verdicts.

The paper (figure 1): "As the network learns an increasingly complex classification boundary, the Fisher increases.
Moreover, learning of a new feature corresponds to small bumps in the Fisher plot". It gives no numbers; those below
were set before anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from contourpy import contour_generator

REPRODUCED, IN_PART, NOT = "reproduced", "in part", "not reproduced"
RISE = 10.0  # nats
CORRELATION = 0.5
PROMINENCE = 0.02  # of the curve's range
CONTRAST = 1.5
GAIN = 0.01  # accuracy


class Curves(NamedTuple):
    """One training run, at its measured steps.

    Attributes:
        steps: Optimiser steps taken, ``(T,)``.
        log_det: log det(N F + cI), nats, ``(T,)``.
        logits: Logits at the points of a square grid over the plane, ``(T, G, G)``.
        accuracy: Accuracy on the training points, ``(T,)``.
        side: Side of the square.
    """

    steps: Sequence[int]
    log_det: np.ndarray
    logits: np.ndarray
    accuracy: np.ndarray
    side: float

    @property
    def length(self) -> np.ndarray:
        """Length of the decision boundary, the zero level set of the logits, ``(T,)``."""
        ends = np.linspace(0, self.side, self.logits.shape[-1])
        return np.array([zero_level_length(ends, one) for one in self.logits])

    @property
    def movement(self) -> np.ndarray:
        """Share of the plane that changes its class from one measured step to the next, ``(T - 1,)``."""
        return np.diff(self.logits > 0, axis=0).mean((1, 2))


class Bump(NamedTuple):
    """A local maximum, and how far it reaches down to half its prominence."""

    left: int
    top: int
    right: int


class Row(NamedTuple):
    """A claim, its criterion, the values of the seeds, and how many of them meet it."""

    claim: str
    criterion: str
    values: list[float]
    holding: int

    @property
    def verdict(self) -> str:
        """Verdict: reproduced if all values meet the criterion, in part if some do."""
        if not self.holding:
            return NOT
        return REPRODUCED if self.holding == len(self.values) else IN_PART


def verdicts(runs: Sequence[Curves]) -> list[Row]:
    """Judge the paper's claims on growth (a) and on bumps (b, c), by criterion; one value for each run."""

    def row(claim: str, criterion: str, least: float, values: list[float]) -> Row:
        return Row(claim, criterion, values, sum(value >= least for value in values))

    rises = [one.log_det - one.log_det[0] for one in runs]
    found = [bumps(one.log_det) for one in runs]
    both = list(zip(runs, found, strict=True))
    return [
        row("(a) the Fisher increases", f"peak - start ≥ {RISE:g} nats", RISE, [r.max() for r in rises]),
        row("(a) ... and is higher after training", f"end - start ≥ {RISE:g} nats", RISE, [r[-1] for r in rises]),
        row(
            "(a) ... as the boundary becomes complex",
            f"rank correlation with its length ≥ {CORRELATION:g}",
            CORRELATION,
            [spearman(one.log_det, one.length) for one in runs],
        ),
        row(
            "(b) there are small bumps",
            f"of prominence ≥ {PROMINENCE:.0%} of the range: ≥ 1",
            1,
            [len(its) for its in found],
        ),
        row(
            "(c) bumps are where the boundary moves",
            f"movement inside / around, median ≥ {CONTRAST:g}",
            CONTRAST,
            [median([contrast(one.movement, bump) for bump in its]) for one, its in both],
        ),
        row(
            "(c) ... and where a feature is learned",
            f"accuracy gained inside, median ≥ {GAIN:g}",
            GAIN,
            [median([one.accuracy[bump.right] - one.accuracy[bump.left] for bump in its]) for one, its in both],
        ),
    ]


def summary(rows: Sequence[Row], letter: str) -> str:
    """Return the verdict of all criteria of one claim together."""
    found = {row.verdict for row in rows if row.claim.startswith(f"({letter})")}
    return found.pop() if len(found) == 1 else IN_PART


def table(rows: Sequence[Row]) -> str:
    """Return a table ``claim | criterion | value | verdict``."""
    cells = [("claim", "criterion", "value of each seed", "verdict")]
    cells += [(r.claim, r.criterion, " ".join(f"{v:.3g}" for v in r.values), r.verdict) for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])


def bumps(curve: np.ndarray) -> list[Bump]:
    """Find local maxima whose prominence, the height above the higher of the two saddles beside it, is large enough."""
    found = []
    for top in range(1, len(curve) - 1):
        if not curve[top - 1] < curve[top] >= curve[top + 1]:
            continue
        higher = np.flatnonzero(curve > curve[top])
        first, last = higher[higher < top].max(initial=-1) + 1, higher[higher > top].min(initial=len(curve))
        prominence = curve[top] - max(curve[first : top + 1].min(), curve[top:last].min())
        if prominence >= PROMINENCE * np.ptp(curve):
            below = np.flatnonzero(curve < curve[top] - prominence / 2)
            left, right = below[below < top].max(initial=0), below[below > top].min(initial=len(curve) - 1)
            found.append(Bump(int(left), top, int(right)))
    return found


def contrast(movement: np.ndarray, bump: Bump) -> float:
    """Return the mean movement inside a bump over that in equal times before and after it; NaN if nothing moves."""
    width = bump.right - bump.left
    around = np.r_[movement[max(0, bump.left - width) : bump.left], movement[bump.right : bump.right + width]]
    inside = movement[bump.left : bump.right].mean()
    if around.size == 0 or inside == around.mean() == 0:
        return math.nan
    return inside / around.mean() if around.any() else math.inf


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation; NaN if one of them is constant, or has a NaN."""
    if not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return math.nan
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks; equal values share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[which]


def median(values: Sequence[float]) -> float:
    """Return the median; NaN without values."""
    return float(np.median(values)) if values else math.nan


def zero_level_length(ends: np.ndarray, logits: np.ndarray) -> float:
    """Return the length of the curve where the logits ``(G, G)`` over the square ``ends x ends`` are zero."""
    lines = contour_generator(ends, ends, logits).lines(0.0)
    return float(sum(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines))
