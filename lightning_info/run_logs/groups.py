"""Runs that belong together, such as seeds of one setting: their mean, its error, and differences between groups."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_info.run_logs.run_log import RunLog
from lightning_info.student import NORMAL, student_factor

MOST_POINTS = 400
"""Of a curve that is drawn."""
MOST_ALONE = 6
"""Runs that are shown one by one unless it is said how to group them."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RunGroup:
    """Runs that are shown as one.

    Attributes:
        name: What they have in common.
        runs: At least one.
    """

    name: str
    runs: Sequence[RunLog]


@dataclass(frozen=True)
class BandedCurve:
    """A curve with its band of 95 %.

    Attributes:
        steps: ``n`` of them, rising.
        values: ``(n,)``, NaN where there is none.
        low: Lower end of the band, NaN where it is not known.
        high: Upper end.
        runs: How many runs it is the mean of.
        epochs: Epochs passed; None where they are not known.
    """

    steps: list[int]
    values: Array
    low: Array
    high: Array
    runs: int
    epochs: list[float] | None = None

    @property
    def end(self) -> End:
        """The last point."""
        half = (self.high[-1] - self.low[-1]) / 2
        return End(self.steps[-1], float(self.values[-1]), float(half), self.runs)


@dataclass(frozen=True)
class End:
    """Where a curve ends.

    Attributes:
        step: The last step.
        value: There.
        half: Half the width of the 95 % band, NaN where it is not known.
        runs: How many runs it is the mean of.
    """

    step: int
    value: float
    half: float
    runs: int


def grouped(runs: Sequence[RunLog], how: str | None = None) -> list[RunGroup]:
    """Bring runs together.

    Args:
        runs: The runs.
        how: A regular expression that is searched in the names: runs of the same match (of its groups, if it has some)
            belong together (``^`` for all); or ``name=`` for runs of one value of a hyperparameter. None: few runs stay
            alone, of more those of a folder belong together.

    Raises:
        ValueError: It is no regular expression.
    """
    if how is None:
        key: Callable[[RunLog], str] = _folder if len(runs) > MOST_ALONE else _name
    elif how.endswith("=") and any(how[:-1] in run.settings for run in runs):
        key = lambda run: f"{how}{run.settings.get(how[:-1], '?')}"  # noqa: E731
    else:
        try:
            pattern = re.compile(how)
        except re.error as error:
            raise ValueError(
                f"--group {how} is no regular expression ({error}); give for example 'lr[0-9.]+'"
            ) from error
        key = lambda run: _matched(pattern, run.name)  # noqa: E731
    found: dict[str, list[RunLog]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return [RunGroup(name, members) for name, members in found.items()]


def banded(group: RunGroup, tag: str) -> BandedCurve | None:
    """The curve of a tag in a group: of one run with the error of its measurement, of several their mean.

    The band of several is that of the mean over runs, by Student's distribution; between its points a run is taken as
    straight, as runs need not be measured at the same steps. None where no run has a value.
    """
    runs = [run for run in group.runs if any(math.isfinite(value) for _, value in run.curves.get(tag, ()))]
    if not runs:
        return None
    if len(runs) == 1:
        return _alone(runs[0], tag)
    finite = [[point for point in run.curves[tag] if math.isfinite(point[1])] for run in runs]
    first, last = max(curve[0][0] for curve in finite), min(curve[-1][0] for curve in finite)
    steps = sorted({step for curve in finite for step, _ in curve if first <= step <= last})
    if not steps:  # they have no step in common
        return _alone(runs[0], tag)
    steps = thinned(steps)
    rows = np.array([np.interp(steps, [s for s, _ in curve], [v for _, v in curve]) for curve in finite])
    values = rows.mean(0)
    half = NORMAL * rows.std(0, ddof=1) / math.sqrt(len(rows)) * student_factor(len(rows) - 1)
    return BandedCurve(steps, values, values - half, values + half, len(rows), runs[0].epochs(steps))


def difference(one: RunGroup, other: RunGroup, tag: str) -> tuple[float, float] | None:
    """By how much the end of a tag in a group lies above that in another, and half the width of its 95 % band.

    Of several runs in both by Welch's test; of one run each by the errors of measurement, which tell nothing of what
    another seed would give; NaN where neither is known. None where one of them has no value.
    """
    ends = [ends_of(group, tag) for group in (one, other)]
    if not all(ends):
        return None
    (a, b) = (np.array([value for value, _ in part]) for part in ends)
    by = float(a.mean() - b.mean())
    if len(a) > 1 and len(b) > 1:
        squares = [float(part.var(ddof=1)) / len(part) for part in (a, b)]
        whole = sum(squares)
        if whole == 0:
            return by, 0.0
        freedom = whole**2 / sum(s**2 / (len(part) - 1) for s, part in zip(squares, (a, b), strict=True))
        return by, NORMAL * math.sqrt(whole) * student_factor(max(1, int(freedom)))
    if len(a) == len(b) == 1:
        return by, NORMAL * math.hypot(ends[0][0][1], ends[1][0][1])
    return by, math.nan


def ends_of(group: RunGroup, tag: str) -> list[tuple[float, float]]:
    """Last finite value of each run and its standard error of measurement, NaN where it is not known."""
    found = []
    for run in group.runs:
        finite = [point for point in run.curves.get(tag, ()) if math.isfinite(point[1])]
        if finite:
            step, value = finite[-1]
            found.append((value, run.errors(tag).get(step, math.nan)))
    return found


def mean_end(group: RunGroup, tag: str) -> tuple[float, float, int] | None:
    """Mean of the ends of a tag in a group, half the width of its 95 % band, number of runs; None without a value."""
    ends = ends_of(group, tag)
    if not ends:
        return None
    values = [value for value, _ in ends]
    error = ends[0][1]
    if len(values) > 1:
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) * student_factor(len(values) - 1)
    return float(np.mean(values)), NORMAL * error, len(values)


def thinned(steps: Sequence[int], most: int = MOST_POINTS) -> list[int]:
    """At most so many of some steps, evenly, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]


def _alone(run: RunLog, tag: str) -> BandedCurve:
    curve: Mapping[int, float] = dict(run.curves[tag])
    steps, errors = thinned(list(curve)), run.errors(tag)
    values = np.array([curve[step] for step in steps], dtype=np.float64)
    half = NORMAL * np.array([errors.get(step, math.nan) for step in steps])
    ends = []
    for sign, name in ((-1, "_low"), (1, "_high")):
        told = dict(run.curves.get(f"{tag}{name}", ()))
        ends.append(np.array([told.get(s, v) for s, v in zip(steps, values + sign * half, strict=True)]))
    return BandedCurve(steps, values, ends[0], ends[1], 1, run.epochs(steps))


def _name(run: RunLog) -> str:
    return run.name


def _folder(run: RunLog) -> str:
    return run.name.rpartition("/")[0] or run.name


def _matched(pattern: re.Pattern[str], name: str) -> str:
    found = pattern.search(name)
    if found is None:
        return "others"
    return " ".join(part for part in found.groups() if part) or found[0] or "all runs"
