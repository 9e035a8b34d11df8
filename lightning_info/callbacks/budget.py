"""One budget per run: the seconds that callbacks without an interval may take together, and the part of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_info.callbacks.clock import Clock

FLOOR = 3.0
"""Seconds that points and figures of a run may take together in any case, after the checks before the first step, so a
short run has its first, early and last points.
"""
FIGURES = 0.2
"""Initial estimate of the seconds that figures take."""
ENOUGH = 8
"""Steps whose time is enough to forecast the length of the run."""
AHEAD = 0.5
"""Part of the budget that points and figures have in any case, before it is earned, if the run's length is known."""
OWN = 0.4
"""Part of an equal part that a callback has even if others took more than theirs: cheap points are not lost."""


@dataclass(eq=False)
class Account:
    """Time that one callback takes and needs.

    Attributes:
        clock: Clock of the run, and of the time that the callback took.
        limit: Largest share of the run's time; None if points are measured whatever they cost.
        point: Seconds of the next point, NaN until they are known.
        figures: Seconds to draw all figures once.
        checked: Seconds that the check before the first step took.
        before: Seconds taken before this process resumed the run.
        is_open: Whether it will take more points.
    """

    clock: Clock
    limit: float | None
    point: float = math.nan
    figures: float = FIGURES
    checked: float = 0.0
    before: float = 0.0
    is_open: bool = True
    _last: float = math.nan

    @property
    def spent(self) -> float:
        """Seconds spent on points and figures, without the check before the first step."""
        return self.clock.spent - self.checked

    @property
    def next_point(self) -> float:
        """Seconds of the next point, 0 if they are not known."""
        return 0.0 if math.isnan(self.point) else self.point

    @property
    def ending(self) -> float:
        """Seconds that the last point and the figures at the end will take."""
        return self.next_point + self.figures

    @property
    def wanted(self) -> float:
        """Seconds taken once the next point and the end are done, infinite if they are not known."""
        if not self.is_open:
            return self.spent
        return math.inf if math.isnan(self.point) else self.spent + self.point + self.ending

    def bound(self, part: float) -> float:
        """Return the least seconds that it will have taken in the end, at most its part if it has not begun."""
        if not self.is_open:
            return self.spent
        return self.spent + self.ending if self.has_begun else max(self.spent, min(part, self.wanted))

    @property
    def has_begun(self) -> bool:
        """Whether it has taken a point."""
        return not math.isnan(self._last)

    def took(self, seconds: float) -> None:
        """Record the time of a point; the next is expected to take the lower of two, as the first is a cold start."""
        self.point = seconds if math.isnan(self._last) else min(self._last, seconds)
        self._last = seconds


@dataclass
class Budget:
    """Seconds for all callbacks: the largest of their shares of the run's time.

    It pays for the checks before the first step. Whatever they take, points and figures have :data:`FLOOR` and, if the
    length of the run is known, a part (:data:`AHEAD`) of the budget, which may be spent before it is earned: early
    steps are worth most.

    Attributes:
        accounts: Accounts of the callbacks that keep to the budget.
        expected: Seconds of the whole run, as far as known.
        sample_pass: Seconds of a plain forward and backward pass of a sample, NaN until they are known.
    """

    accounts: list[Account] = field(default_factory=list)
    expected: float = math.nan
    sample_pass: float = math.nan
    _first: int | None = None

    def open(self, account: Account) -> None:
        """Add the account of a run that starts."""
        if account.limit is not None:
            self.accounts.append(account)

    @property
    def limit(self) -> float:
        """Largest share of the run's time."""
        return max((account.limit or 0.0 for account in self.accounts), default=0.0)

    @property
    def checked(self) -> float:
        """Seconds that the checks before the first step took."""
        return sum(account.checked for account in self.accounts)

    def seconds(self, elapsed: float, early: bool) -> float:
        """Return the seconds that all may have spent on points and figures by now.

        Args:
            elapsed: Seconds of the run so far.
            early: Whether it is a point at the start, which is worth most: the floor and the advance then count.
        """
        return max(self._least if early else 0.0, self.limit * elapsed - self.checked)

    def whole(self, elapsed: float) -> float:
        """Return the seconds for points and figures in the whole run, as far as its length is known."""
        return max(self._least, self.limit * max(elapsed, self._known) - self.checked)

    @property
    def _known(self) -> float:
        """Seconds of the whole run; 0 if they are not known."""
        return 0.0 if math.isnan(self.expected) else self.expected

    @property
    def _least(self) -> float:
        """Seconds available to points and figures whatever the checks take."""
        return max(FLOOR, self.limit * AHEAD * self._known)

    def never_affords(self, samples: float) -> bool:
        """Tell whether passes over so many samples exceed the budget of a run whose length is known."""
        if math.isnan(self.expected) or math.isnan(self.sample_pass) or self.limit >= 1:
            return False
        return samples * self.sample_pass > self.whole(0.0)

    def left(self, account: Account, early: bool) -> float:
        """Return the seconds that one callback may take now.

        The others keep what they claim by now: what they have taken and need for their next point and their end, but
        at most an equal part of the whole. All together, with their ends, must fit into the budget of the whole run;
        but if others have exceeded their equal parts, each has its own for a first point, and :data:`OWN` of it later.

        Args:
            account: Account of the callback.
            early: See :meth:`seconds`.
        """
        elapsed = account.clock.elapsed
        now, whole = self.seconds(elapsed, early), self.whole(elapsed)
        count, others = len(self.accounts), [other for other in self.accounts if other is not account]
        claimed = sum(min(now / count, other.wanted) for other in others)
        bound = sum(other.bound(whole / count) for other in others)
        has_excess = any(other.spent > whole / count for other in others)
        part = OWN if account.has_begun else 1.0
        own = part * min(now, whole) / count if has_excess else 0.0
        return max(own, min(now - claimed, whole - bound)) - account.spent

    def affords(self, account: Account, wanted: float, early: bool = True) -> bool:
        """Tell whether a callback can take so many seconds now.

        Args:
            account: Account of the callback.
            wanted: Seconds wanted, including those of its end.
            early: See :meth:`seconds`.
        """
        return account.limit is None or account.limit >= 1 or wanted <= self.left(account, early)

    def expect(self, trainer: Any, account: Account, step: int, seconds: float | None = None) -> None:
        """Forecast the length of the run, as far as its number of steps is known.

        Args:
            trainer: The trainer.
            account: Account of one of the callbacks.
            step: Optimiser steps taken.
            seconds: Seconds of a step, from a trial; by default the mean of the steps taken.
        """
        if self._first is None:
            self._first = step
        taken, elapsed = step - self._first, account.clock.elapsed
        if seconds is None and taken >= ENOUGH:
            seconds = (elapsed - sum(other.clock.spent for other in self.accounts)) / taken
        if seconds is not None:
            whole = min(elapsed + max(0, _planned(trainer) - step) * seconds, _most_seconds(trainer))
            self.expected = whole if math.isfinite(whole) else math.nan


def _planned(trainer: Any) -> float:
    """Return the optimiser steps that the trainer plans."""
    steps = trainer.max_steps if (trainer.max_steps or -1) > 0 else math.inf
    batches = trainer.num_training_batches
    if (trainer.max_epochs or -1) < 0 or not math.isfinite(batches):
        return float(steps)
    return float(min(steps, trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)))


def _most_seconds(trainer: Any) -> float:
    """Return the trainer's ``max_time``."""
    timers = [c for c in trainer.callbacks if hasattr(c, "time_remaining") and hasattr(c, "time_elapsed")]
    remaining = [c.time_elapsed() + left for c in timers if (left := c.time_remaining()) is not None]
    return min(remaining, default=math.inf)
