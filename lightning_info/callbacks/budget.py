"""One budget a run: the seconds that callbacks without an interval may take together, and the part of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_info.callbacks.clock import Clock

FLOOR = 3.0
"""Seconds that points and figures of a run may take together in any case, after the checks before the first step, so
that a short run has its first, early and last points."""
FIGURES = 0.2
"""Seconds that figures are expected to take at first."""
ENOUGH = 8
"""Steps after which their own time tells how long the run will be."""
AHEAD = 0.5
"""Part of the budget of a run whose length is known that points and figures have in any case, before it is earned."""


@dataclass(eq=False)
class Account:
    """What one callback takes and needs.

    Attributes:
        clock: Of the run, and of what the callback took of it.
        limit: Largest share of the run's time; None if it takes its points whatever they cost.
        point: Seconds of its next point, NaN until they are known.
        figures: Seconds of its figures, all of them once.
        checked: Seconds that its check before the first step took.
        before: Seconds that it took before this process took the run up.
        is_open: It will take more points.
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
        """Seconds that its points and figures took, without the check before the first step."""
        return self.clock.spent - self.checked

    @property
    def next_point(self) -> float:
        """Seconds of its next point, 0 if they are not known."""
        return 0.0 if math.isnan(self.point) else self.point

    @property
    def ending(self) -> float:
        """Seconds that its last point and the figures of the end will take."""
        return self.next_point + self.figures

    @property
    def wanted(self) -> float:
        """Seconds that it will have taken with its next point and its end, infinite if they are not known."""
        if not self.is_open:
            return self.spent
        return math.inf if math.isnan(self.point) else self.spent + self.point + self.ending

    def bound(self, part: float) -> float:
        """Seconds that it will have taken in the end at least; of what it has not begun no more than its part."""
        if not self.is_open:
            return self.spent
        return self.spent + self.ending if self.has_begun else max(self.spent, min(part, self.wanted))

    @property
    def has_begun(self) -> bool:
        """It has taken a point."""
        return not math.isnan(self._last)

    def took(self, seconds: float) -> None:
        """A point took so long; the lower of two is expected of the next one, as the first is a cold start."""
        self.point = seconds if math.isnan(self._last) else min(self._last, seconds)
        self._last = seconds


@dataclass
class Budget:
    """Seconds for all: the largest of their shares of the run's time.

    The checks before the first step are paid from it. Whatever they take, points and figures have :data:`FLOOR`, and of
    a run whose length is known a part (:data:`AHEAD`) of the budget, which may be taken before it is earned: early
    steps are worth most.

    Attributes:
        accounts: Of the callbacks that keep to it.
        expected: Seconds of the whole run, as far as known.
        sample_pass: Seconds of a plain forward and backward pass of a sample, NaN until they are known.
    """

    accounts: list[Account] = field(default_factory=list)
    expected: float = math.nan
    sample_pass: float = math.nan
    _first: int | None = None

    def open(self, account: Account) -> None:
        """An account of a run that starts."""
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
        """Seconds that all may have taken by now for points and figures.

        Args:
            elapsed: Seconds of the run so far.
            early: For a point at the start, which is worth most: the floor counts, and what is taken in advance.
        """
        return max(self._least if early else 0.0, self.limit * elapsed - self.checked)

    def whole(self, elapsed: float) -> float:
        """Seconds that all may take in the whole run for points and figures, as far as its length is known."""
        return max(self._least, self.limit * max(elapsed, self._known) - self.checked)

    @property
    def _known(self) -> float:
        """Seconds of the whole run; 0 if they are not known."""
        return 0.0 if math.isnan(self.expected) else self.expected

    @property
    def _least(self) -> float:
        """Seconds that points and figures have whatever the checks take."""
        return max(FLOOR, self.limit * AHEAD * self._known)

    def never_affords(self, samples: float) -> bool:
        """Whether passes over so many samples take longer than the budget of a run whose length is known."""
        if math.isnan(self.expected) or math.isnan(self.sample_pass) or self.limit >= 1:
            return False
        return samples * self.sample_pass > self.whole(0.0)

    def left(self, account: Account, early: bool) -> float:
        """Seconds that one callback may take now.

        What the others claim by now is theirs: what they have taken, need for their next point and their end, but at
        most an equal part of the whole. And all together, with their ends, must fit into the budget of the whole run.

        Args:
            account: Of the callback.
            early: See :meth:`seconds`.
        """
        elapsed = account.clock.elapsed
        now, whole = self.seconds(elapsed, early), self.whole(elapsed)
        count, others = len(self.accounts), [other for other in self.accounts if other is not account]
        claimed = sum(min(now / count, other.wanted) for other in others)
        bound = sum(other.bound(whole / count) for other in others)
        return min(now - claimed, whole - bound) - account.spent

    def affords(self, account: Account, wanted: float, early: bool = True) -> bool:
        """Whether a callback can take so many seconds now.

        Args:
            account: Of the callback.
            wanted: Seconds, with what is to come at its end.
            early: See :meth:`seconds`.
        """
        return account.limit is None or account.limit >= 1 or wanted <= self.left(account, early)

    def expect(self, trainer: Any, account: Account, step: int, seconds: float | None = None) -> None:
        """Forecast the length of the run, as far as it is known how many steps it has.

        Args:
            trainer: The trainer.
            account: Of one of the callbacks.
            step: Optimiser steps taken.
            seconds: Of a step, from a trial; otherwise from those that were taken.
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
    """Optimiser steps that the trainer has in mind."""
    steps = trainer.max_steps if (trainer.max_steps or -1) > 0 else math.inf
    batches = trainer.num_training_batches
    if (trainer.max_epochs or -1) < 0 or not math.isfinite(batches):
        return float(steps)
    return float(min(steps, trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)))


def _most_seconds(trainer: Any) -> float:
    """``max_time`` of the trainer."""
    timers = [c for c in trainer.callbacks if hasattr(c, "time_remaining") and hasattr(c, "time_elapsed")]
    remaining = [c.time_elapsed() + left for c in timers if (left := c.time_remaining()) is not None]
    return min(remaining, default=math.inf)
