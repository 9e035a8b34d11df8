import math

import numpy as np
import pytest
from scipy import stats

from lightning_info.run_logs.groups import RunGroup, banded, difference, grouped, mean_end, thinned
from lightning_info.run_logs.run_log import RunLog

TAG = "fisher/trace"


def runs(values, steps=(0, 10)):
    return [RunLog(f"run{i}", {TAG: [(step, value) for step in steps]}) for i, value in enumerate(values)]


def test_the_band_over_seeds_is_that_of_students_interval():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    curve = banded(RunGroup("all", runs(values)), TAG)
    low, high = stats.t.interval(0.9500042, 3, values.mean(), stats.sem(values))
    assert curve.runs == 4
    np.testing.assert_allclose([curve.values[-1], curve.low[-1], curve.high[-1]], [values.mean(), low, high], rtol=1e-6)


def test_the_band_of_one_run_is_that_of_its_measurement():
    run = RunLog("run", {TAG: [(0, 5.0), (10, 6.0)], f"{TAG}_stderr": [(0, 1.0)]})
    curve = banded(RunGroup("run", [run]), TAG)
    np.testing.assert_allclose(curve.low, [5 - 1.96, math.nan])
    np.testing.assert_allclose(curve.high, [5 + 1.96, math.nan])


def test_ends_of_a_band_that_are_logged_are_taken():
    ends = {f"{TAG}_low": [(0, 4.0)], f"{TAG}_high": [(0, 9.0)]}
    curve = banded(RunGroup("run", [RunLog("run", {TAG: [(0, 5.0)], f"{TAG}_stderr": [(0, 1.0)], **ends})]), TAG)
    assert (curve.low[0], curve.high[0]) == (4.0, 9.0)


def test_runs_that_were_measured_at_other_steps_are_taken_as_straight_between():
    one = RunLog("one", {TAG: [(0, 0.0), (10, 10.0)]})
    other = RunLog("other", {TAG: [(0, 0.0), (4, 8.0), (20, 8.0)]})
    curve = banded(RunGroup("all", [one, other]), TAG)
    assert curve.steps == [0, 4, 10]
    np.testing.assert_allclose(curve.values, [0.0, 6.0, 9.0])


def test_runs_without_a_value_are_no_part_of_a_mean():
    lost = RunLog("lost", {TAG: [(0, math.nan)]})
    assert banded(RunGroup("all", [lost]), TAG) is None
    assert banded(RunGroup("all", [lost, *runs([3.0])]), TAG).runs == 1
    assert mean_end(RunGroup("all", [lost]), TAG) is None


def test_the_difference_is_that_of_welch():
    a, b = [1.0, 2.0, 4.0], [10.0, 11.0, 15.0, 16.0]
    by, half = difference(RunGroup("b", runs(b)), RunGroup("a", runs(a)), TAG)
    assert by == pytest.approx(np.mean(b) - np.mean(a))
    welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.9500042)
    assert half >= (welch.high - welch.low) / 2  # whole degrees of freedom, rounded down
    assert half == pytest.approx((welch.high - welch.low) / 2, rel=0.1)


def test_the_difference_of_single_runs_has_their_own_errors_only():
    one, other = (
        RunLog(n, {TAG: [(0, v)], f"{TAG}_stderr": [(0, e)]}) for n, v, e in (("a", 1.0, 3.0), ("b", 6.0, 4.0))
    )
    by, half = difference(RunGroup("b", [other]), RunGroup("a", [one]), TAG)
    assert (by, half) == (5.0, pytest.approx(1.96 * 5))
    assert math.isnan(difference(RunGroup("b", runs([1.0, 2.0])), RunGroup("a", [one]), TAG)[1])


def test_groups():
    names = [f"lr{lr}/seed{seed}" for lr in (0.1, 0.2) for seed in range(4)]
    logs = [RunLog(name, {}, settings={"lr": name[2:5]}) for name in names]

    def by(how, logs=logs):
        return {group.name: len(group.runs) for group in grouped(logs, how)}

    assert by(None) == {"lr0.1": 4, "lr0.2": 4}
    assert by(None, logs[:3]) == dict.fromkeys(names[:3], 1)
    assert by("seed[0-9]") == dict.fromkeys(("seed0", "seed1", "seed2", "seed3"), 2)
    assert by("lr(0.1)") == {"0.1": 4, "others": 4}
    assert by("lr=") == {"lr=0.1": 4, "lr=0.2": 4}
    assert by("^") == {"all runs": 8}
    with pytest.raises(ValueError, match=r"--group \( is no regular expression"):
        by("(")


def test_thinned_steps_keep_both_ends():
    assert thinned(range(1000), 4) == [0, 333, 666, 999]
    assert thinned([1, 2], 4) == [1, 2]
