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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "0, 1, 2, 4, 8, ..., the end of every epoch, and the end of fit"),
        ({"every_n_train_steps": 50}, "0, 50, 100, ..., and the end of fit"),
        (
            {"every_n_epochs": 2, "max_overhead": 0.1},
            "0, the end of every 2 epochs, and the end of fit",
        ),
    ],
)
def test_it_says_when(arguments, said):
    assert str(Schedule(**arguments)).startswith(said)
