import math

import pytest
from logs import run_log

from lightning_info.run_logs.run_log import RunLog


def test_of_several_points_at_a_step_the_last_counts_as_a_resumed_run_has_them():
    run = RunLog("run", {"fisher/trace": [(0, 1.0), (10, 2.0), (20, 3.0), (10, 2.5), (30, 4.0)]})
    assert run.curves["fisher/trace"] == [(0, 1.0), (10, 2.5), (20, 3.0), (30, 4.0)]


@pytest.mark.parametrize(
    ("tag", "error"),
    [
        ("fisher/trace", "fisher/trace_stderr"),
        ("pre/effective_info/I_XZ/a", "pre/effective_info_stderr/I_XZ/a"),
        ("rank/mean/a", "rank_stderr/mean/a"),
    ],
)
def test_errors_are_found_in_both_places(tag, error):
    run = RunLog("run", {tag: [(0, 1.0), (1, 2.0)], error: [(0, 0.5), (1, math.nan)]})
    assert run.errors(tag) == {0: 0.5}


def test_ours_and_the_users():
    run = run_log()
    assert "fisher/trace" in run.ours
    assert set(run.users) == {"train_loss", "val_accuracy"}


def test_epochs_are_those_that_have_passed():
    epochs = [(step, float(step // 23)) for step in (4, 9, 14, 19, 22, 27, 45, 50, 68)]
    run = RunLog("run", {"epoch": epochs})
    assert run.epochs([0, 23, 46, 69]) == [0.0, 1.0, 2.0, 3.0]
    assert run.epochs([92]) == [4.0]
    assert RunLog("run", {}).epochs([0]) is None
