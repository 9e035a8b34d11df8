"""One budget a run, in simulated runs with a clock of their own, and in real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback, InfoCallback
from lightning_info.callbacks import budget as budgets
from lightning_info.callbacks import forecast as forecasts
from lightning_info.callbacks import preparing
from lightning_info.callbacks.budget import AHEAD, FIGURES, FLOOR, OWN, Account, Budget
from lightning_info.callbacks.schedule import Schedule
from lightning_info.quantities import Quantity
from lightning_info.quantities.fisher_trace.quantity import FisherTrace


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
                    account.took(seconds)
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


def test_a_check_before_the_first_step_is_in_the_budget_and_starves_nobody():
    time, budget = Time(100.0), Budget()
    dear, other = Account(FakeClock(time, spent=4.0), 0.05, checked=4.0), Account(FakeClock(time), 0.05)
    for account in (dear, other):
        budget.open(account)
        account.point = 0.5
    for account in (dear, other):
        assert budget.affords(account, account.point + account.ending)  # of the 3 s beside the check
        assert not budget.affords(account, 2.4)
    budget.expected = 1000.0  # of 50 s, half of them in advance
    assert budget.affords(other, 23.0)
    assert not budget.affords(other, 25.0)
    assert budget.whole(0.0) == 46.0  # the check is paid from it
    dear.checked, dear.clock.spent = 40.0, 40.0
    assert budget.whole(0.0) == budget.seconds(0.0, early=True) == 25.0  # but leaves a half
    assert budget.seconds(900.0, early=False) == 5.0
    dear.clock.take(50.0)  # points that took longer than expected
    dear.took(50.0)
    assert budget.affords(other, 25.0 / 2)  # a first point has a whole part
    assert not budget.affords(other, 0.1 + 25.0 / 2)
    other.took(0.5)
    assert budget.affords(other, OWN * 25.0 / 2)
    assert not budget.affords(other, 0.1 + OWN * 25.0 / 2)


def test_a_run_whose_length_is_known_tells_what_it_can_never_hold():
    budget = Budget()
    budget.open(Account(FakeClock(Time()), 0.05))
    assert not budget.never_affords(1e9)
    budget.expected, budget.sample_pass = 200.0, 0.1  # 10 s are 100 passes of a sample
    assert budget.never_affords(101)
    assert not budget.never_affords(99)
    budget.open(Account(FakeClock(Time()), 1.0))
    assert not budget.never_affords(1e9)


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


# ---- in a run


class Dear(Quantity):
    """Says that a point takes so many seconds a sample for 64 draws."""

    name = "dear"
    tags = ("dear/draws", "dear/samples")

    def __init__(self, seconds: float):
        self.seconds = seconds

    def reset(self):
        self.draws = 64

    def cost(self, snapshot, samples):
        return self.seconds * samples * self.draws / 64

    def cheaper(self):
        if self.draws == 16:
            return ""
        self.draws //= 2
        return f"{self.draws} draws instead of 64"

    def measure(self, snapshot, point):
        return {"dear/draws": self.draws, "dear/samples": snapshot.size}


@pytest.fixture
def generous(monkeypatch):
    """A floor beside which the time of the run itself is nothing."""
    monkeypatch.setattr(budgets, "FLOOR", 300.0)


def measured(seconds, **options):
    one = InfoCallback(Dear(seconds), **{"num_samples": 128, "summary": False, **options})
    trainer(one, max_epochs=3).fit(Classifier(), loader(256, batch_size=64))
    return one


def of_step(one, step):
    return {tag: dict(curve)[step] for tag, curve in one.history.items() if tag != "dear/overhead"}


@pytest.mark.parametrize(
    ("point", "draws", "samples", "said"),
    [
        (50.0, 64, 128, ""),
        (200.0, 32, 128, "32 draws instead of 64 (about 1e+02 s a point)"),
        (400.0, 16, 128, "16 draws instead of 64 (about 1e+02 s a point)"),
        (800.0, 16, 64, "16 draws instead of 64, 64 samples instead of 128 (about 1e+02 s a point)"),
    ],
)
@pytest.mark.usefixtures("generous")
def test_a_point_that_does_not_fit_is_measured_with_less_and_says_so(point, draws, samples, said):
    one = measured(point / 128)
    assert of_step(one, 0) == of_step(one, 12) == {"dear/draws": draws, "dear/samples": samples}
    assert said in " ".join(one.report().split())
    assert ("instead of 64" in one.report()) == bool(said)


def test_an_interval_measures_everything_whatever_it_takes():
    one = measured(100.0, every_n_epochs=1)
    assert of_step(one, 4) == {"dear/draws": 64, "dear/samples": 128}


def test_what_does_not_fit_at_all_is_one_warning_and_no_point():
    with pytest.warns(UserWarning, match=r"no point fits .* takes about \d+ s; max_overhead") as warned:
        one = measured(100 / 128)
    assert one.history == {}
    assert sum("no point fits" in str(w.message) for w in warned) == 1


@pytest.mark.usefixtures("generous")
def test_a_second_fit_has_all_of_its_draws_again(monkeypatch):
    one = InfoCallback(Dear(200.0 / 128), num_samples=128, summary=False)
    trainer(one, max_epochs=1).fit(Classifier(), loader(256, batch_size=64))
    assert of_step(one, 0)["dear/draws"] == 32
    monkeypatch.setattr(budgets, "FLOOR", 1e6)
    trainer(one, max_epochs=1).fit(Classifier(), loader(256, batch_size=64))
    assert of_step(one, 0)["dear/draws"] == 64


@pytest.mark.usefixtures("generous")
def test_fewer_of_the_samples_that_are_given():
    reference = (torch.randn(128, 6), torch.randint(3, (128,)))
    one = measured(800.0 / 128, reference=reference)
    assert of_step(one, 0) == {"dear/draws": 16, "dear/samples": 64}


class NeverCheapEnough(Dear):
    def cheaper(self):
        return "less"


def test_a_quantity_that_can_always_be_cheaper_ends_the_search_and_one_that_fails_goes_on(monkeypatch):
    def fail(self):
        raise RuntimeError("a fault of the quantity")

    one = InfoCallback(NeverCheapEnough(1e30), num_samples=128, summary=False)
    trainer(one, max_epochs=1).fit(Classifier(), loader(256, batch_size=64))
    assert one.history == {}
    monkeypatch.setattr(Dear, "cheaper", fail)
    one = measured(100.0 / 128)
    assert one.history == {}


def test_a_check_that_fails_costs_one_warning_and_the_points_are_taken(monkeypatch):
    def fail(self, *args):
        raise RuntimeError("a fault of the check")

    monkeypatch.setattr(InfoCallback, "_look", fail)
    with pytest.warns(UserWarning, match="a fault of the check") as warned:
        one = measured(0.5 / 128)
    assert of_step(one, 12) == {"dear/draws": 64, "dear/samples": 128}
    assert not any("attribute" in str(w.message) for w in warned)


class NeverFits(Dear):
    name = "other"
    tags = ("other/draws", "other/samples")
    least_passes = 1e12

    def prepare(self, snapshot, point):
        raise AssertionError("looked at")


def test_what_the_budget_can_never_hold_is_not_looked_at_and_said_once():
    first, never = (InfoCallback(kind, num_samples=64, summary=False, on_error="raise") for kind in (
        Dear(0.001), NeverFits(0.001)))  # fmt: skip
    with pytest.warns(UserWarning, match=r"does not hold two points.*max_overhead=\.\.\.") as warned:
        trainer(first, never, max_epochs=1).fit(Classifier(), loader(256, batch_size=64))
    assert never.history == {}
    assert "is off" in never.report()
    assert of_step(first, 4)
    assert sum("does not hold two points" in str(w.message) for w in warned) == 1


@pytest.mark.usefixtures("generous")
def test_a_dear_fisher_trace_is_measured_with_fewer_draws_as_if_they_had_been_asked_for(monkeypatch):
    def first(**options):
        torch.manual_seed(0)
        callback = FisherTraceCallback(num_samples=128, summary=False, on_error="raise", **options)
        trainer(callback, max_epochs=3).fit(Classifier(), loader(256, batch_size=64))
        return callback, callback.history["fisher/trace"][0], callback.history["fisher/trace_stderr"][0]

    _, *asked = first(draws=16)
    monkeypatch.setattr(FisherTrace, "cost", lambda self, snapshot, samples: 8.0 * self._draws)  # two of 64 are 1024 s
    callback, *less = first()
    assert "16 draws instead of 64" in callback.report()
    assert callback.draws == 64
    assert less == asked


@pytest.mark.parametrize(("statistics", "passes"), [("reference", 32), ("running", 0)])
def test_the_forecast_holds_the_pass_for_the_statistics_of_batch_norm(monkeypatch, statistics, passes):
    """Trials of a clock that says one second a call: 256 samples are 32 trials of eight."""
    found = []

    def noted(*args):
        found.append(forecasts.forecast(*args))
        return found[-1]

    monkeypatch.setattr(preparing, "forecast", noted)
    monkeypatch.setattr(forecasts, "trial", lambda call, device: 1.0)
    monkeypatch.setattr(forecasts, "training_pass", lambda snapshot, batch: 1.0)
    callback = FisherTraceCallback(every_n_train_steps=100, batch_norm=statistics, on_error="raise")
    trainer(callback, max_steps=1).fit(Classifier(batch_norm=True), loader(256))
    assert [one.statistics for one in found] == [passes]
    assert found[0].seconds > 1 + passes


def test_fewer_draws_leave_the_statistics_of_batch_norm_as_dear_as_they_are(monkeypatch):
    """A point of 1 s, of which 0.8 s are for the statistics: half of the draws leave 0.9, half of the samples half."""
    callback = FisherTraceCallback(summary=False)
    asked = []

    def known(snapshot, copying, point, normalised):
        return forecasts.Forecast(1.0, 0.8, 0.001, "a trial")

    def affords(trainer, seconds, early=True):
        asked.append(seconds - FIGURES)
        return len(asked) > 5

    monkeypatch.setattr(preparing, "forecast", known)
    monkeypatch.setattr(callback, "_affords", affords)
    trainer(callback, max_steps=1).fit(Classifier(batch_norm=True), loader(256))
    points = [seconds / 2 for seconds in asked[:5]]  # the next, and the one at the end
    assert points == pytest.approx([1.0, 0.9, 0.85, 0.825, 0.4125])


def test_a_cheap_callback_keeps_its_points_when_a_dear_one_takes_more_than_it_said():
    """The dear one says 0.2 s a point and takes 4: of 3 s for both, 0.4 of an equal part are 0.6 s for the other."""
    time, budget = Time(), Budget()
    cheap, dear = Account(FakeClock(time), 0.05), Account(FakeClock(time), 0.05)
    for account, seconds in ((cheap, 0.02), (dear, 0.2)):
        budget.open(account)
        account.point = seconds
    budget.expected = 20.0
    dear.clock.take(4.0)
    dear.took(4.0)
    taken = 0
    while budget.affords(cheap, cheap.point + cheap.ending):
        cheap.clock.take(0.02)
        cheap.took(0.02)
        taken += 1
    assert taken == int((OWN * FLOOR / 2 - FIGURES) / 0.02) - 1  # and its end
    assert not budget.affords(dear, dear.point + dear.ending)
