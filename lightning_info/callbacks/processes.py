"""Common decisions of the processes of a run; all of them call these or none does, so none waits for another."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def in_all_processes(trainer: Any, yes: bool) -> bool:
    """Tell whether it is true in every process."""
    return trainer.strategy.reduce_boolean_decision(yes, all=True) if trainer.world_size > 1 else yes


def in_any_process(trainer: Any, yes: bool) -> bool:
    """Tell whether it is true in at least one process."""
    return trainer.strategy.reduce_boolean_decision(yes, all=False) if trainer.world_size > 1 else yes


def of_rank_zero(trainer: Any, value: T) -> T:
    """Return the value of the first process."""
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value
