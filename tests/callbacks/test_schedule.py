from __future__ import annotations

import pytest

from lightning_info.callbacks.schedule import Schedule


def taken(schedule: Schedule, steps: int, steps_per_epoch: int) -> list[int]:
    return [
        step
        for step in range(steps + 1)
        if schedule.falls_on(step, step // steps_per_epoch if step and step % steps_per_epoch == 0 else None)
    ]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"every_n_train_steps": 4}, [0, 4, 8, 12]),
        ({"every_n_train_steps": 1}, list(range(13))),
        ({"every_n_epochs": 1}, [0, 5, 10]),
        ({"every_n_epochs": 2}, [0, 10]),
        ({}, [0, 1, 2, 4, 5, 8, 10]),
    ],
)
def test_points(arguments, steps):
    assert taken(Schedule(**arguments), 12, steps_per_epoch=5) == steps


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        ({}, 0.05),
        ({"max_overhead": 0.2}, 0.2),
        ({"every_n_epochs": 1}, None),
        ({"every_n_train_steps": 1}, None),
        ({"every_n_train_steps": 1, "max_overhead": 0.01}, 0.01),
    ],
)
def test_an_explicit_interval_has_no_budget_unless_one_is_given(arguments, budget):
    assert Schedule(**arguments).budget == budget


def test_a_point_is_taken_when_it_keeps_the_share_within_the_budget():
    schedule = Schedule(max_overhead=0.1)
    # (1 + 0.5) / (t + 0.5) <= 0.1 from t = 14.5 on
    assert not schedule.affords(0.5, 1.0, 14.4)
    assert schedule.affords(0.5, 1.0, 14.6)
    assert Schedule(every_n_train_steps=1).affords(0.5, 1.0, 0.0)


def test_a_simulated_run_stays_within_its_budget():
    schedule, now, spent, points = Schedule(), 0.0, 0.0, 0
    for step in range(5000):
        if schedule.falls_on(step, step // 50 if step and step % 50 == 0 else None) and (
            step == 0 or schedule.affords(0.3, spent, now)
        ):
            now, spent, points = now + 0.3, spent + 0.3, points + 1
        now += 0.01
    assert spent <= 0.05 * now
    assert points >= 0.8 * 0.05 * now / 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "0, 1, 2, 4, 8, ..., the end of every epoch, and the end of fit; at most 0.05 of the run's time"),
        ({"every_n_train_steps": 50}, "0, 50, 100, ..., and the end of fit"),
        (
            {"every_n_epochs": 2, "max_overhead": 0.1},
            "0, the end of every 2 epochs, and the end of fit; at most 0.1 of",
        ),
    ],
)
def test_it_says_when(arguments, said):
    assert str(Schedule(**arguments)).startswith(said)
