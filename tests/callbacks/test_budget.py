"""One budget a run, in simulated runs with a clock of their own, and in real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from lightning_info.callbacks import budget as budgets
from lightning_info.callbacks.budget import AHEAD, FIGURES, FLOOR, Account, Budget
from lightning_info.callbacks.schedule import Schedule


@dataclass
class Time:
    """Seconds of a simulated run."""

    now: float = 0.0


@dataclass
class FakeClock:
    time: Time
    spent: float = 0.0

    @property
    def elapsed(self) -> float:
        return self.time.now

    def take(self, seconds: float) -> None:
        self.spent += seconds
        self.time.now += seconds


@dataclass
class Simulated:
    """A run of so many steps in which callbacks with points of given seconds ask the budget."""

    points: list[float]
    steps: int
    step_seconds: float
    is_length_known: bool = True
    taken: list[list[int]] = field(default_factory=list)

    def run(self) -> tuple[float, list[float]]:
        """Seconds of the run, and those of each callback."""
        time, budget = Time(), Budget()
        accounts = [Account(FakeClock(time), 0.05) for _ in self.points]
        self.taken = [[] for _ in self.points]
        for account, seconds in zip(accounts, self.points, strict=True):
            budget.open(account)
            account.point = seconds
        if self.is_length_known:
            budget.expected = self.steps * self.step_seconds
        for step in range(self.steps):
            epochs = step // 50 if step and step % 50 == 0 else None
            for account, seconds, taken in zip(accounts, self.points, self.taken, strict=True):
                if Schedule().falls_on(step, epochs) and budget.affords(
                    account, seconds + account.ending, Schedule.is_early(step)
                ):
                    account.clock.take(seconds)
                    taken.append(step)
            time.now += self.step_seconds
        for account, seconds in zip(accounts, self.points, strict=True):
            account.clock.take(seconds + FIGURES)
            account.is_open = False
        return time.now, [account.clock.spent for account in accounts]


@pytest.mark.parametrize("points", [[0.01], [0.3], [0.05, 0.1], [0.01, 0.02, 0.2, 0.3, 0.3]], ids=str)
@pytest.mark.parametrize("seconds", [15, 60, 600], ids="{} s".format)
@pytest.mark.parametrize("is_length_known", [True, False], ids=["known", "endless"])
def test_all_callbacks_together_keep_within_the_budget(points, seconds, is_length_known):
    run = Simulated(points, 2000, seconds / 2000, is_length_known)
    whole, spent = run.run()
    forced = sum(points) + FIGURES * len(points)  # the end
    assert sum(spent) <= max(FLOOR, 0.05 * whole, forced) + 1e-9
    assert all(taken and taken[0] == 0 for taken in run.taken)


def test_early_steps_are_taken_in_advance_of_a_run_whose_length_is_known():
    early = [0, 1, 2, 4, 8, 16]
    run = Simulated([1.0], 20_000, 0.03)  # 600 s: the budget is 30 s, half of it in advance
    run.run()
    assert run.taken[0][:6] == early
    run = Simulated([1.0], 20_000, 0.03, is_length_known=False)  # the floor has one, and the end
    run.run()
    assert run.taken[0][:2] != early[:2]


def test_a_cheap_callback_leaves_its_share_to_a_dear_one_and_keeps_its_points():
    alone, both = Simulated([2.0], 20_000, 0.03), Simulated([2.0, 0.01], 20_000, 0.03)
    alone.run()
    both.run()
    assert len(both.taken[0]) >= 0.8 * len(alone.taken[0])
    cheap = Simulated([0.01], 20_000, 0.03)
    cheap.run()
    assert len(both.taken[1]) >= 0.95 * len(cheap.taken[0])


def test_two_alike_get_alike():
    run = Simulated([0.4, 0.4], 20_000, 0.03)
    _, (one, other) = run.run()
    assert one == pytest.approx(other, rel=0.1)


def test_a_callback_that_overdrew_does_not_starve_another():
    time, budget = Time(100.0), Budget()
    dear, other = Account(FakeClock(time, spent=50.0), 0.05, checked=50.0), Account(FakeClock(time), 0.05)
    budget.open(dear)
    budget.open(other)
    other.point = 0.5
    assert not budget.affords(dear, 0.1)
    assert budget.affords(other, 2.2)  # half of 5 s, less the figures of the dear one
    assert not budget.affords(other, 2.6)


def test_the_largest_share_is_that_of_all_and_a_whole_one_is_no_limit():
    time, budget = Time(100.0), Budget()
    small, large, whole = (Account(FakeClock(time), share) for share in (0.05, 0.1, 1.0))
    free = Account(FakeClock(time), None)
    for account in (small, large, free):
        budget.open(account)
    assert len(budget.accounts) == 2
    assert budget.limit == 0.1
    assert budget.affords(free, math.inf)
    budget.open(whole)
    assert budget.affords(whole, 1e9)


def test_the_lower_of_two_points_is_expected_of_the_next():
    account = Account(FakeClock(Time()), 0.05)
    for seconds, expected in ((5.0, 5.0), (1.0, 1.0), (3.0, 1.0), (3.0, 3.0)):
        account.took(seconds)
        assert account.point == expected


def test_the_floor_and_the_advance_are_what_is_documented():
    budget = Budget()
    budget.open(Account(FakeClock(Time()), 0.05))
    assert budget.seconds(0.0, early=True) == FLOOR
    assert budget.seconds(0.0, early=False) == 0.0
    budget.expected = 1000.0
    assert budget.seconds(0.0, early=True) == AHEAD * 50.0
    assert budget.seconds(0.0, early=False) == 0.0
    assert budget.seconds(1000.0, early=False) == 50.0
    assert budgets.FLOOR == 3.0
