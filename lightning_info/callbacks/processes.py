"""What several processes of a run decide together, so that none waits for another: called by all of them or by none."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def in_all_processes(trainer: Any, yes: bool) -> bool:
    """Whether it is so in every process."""
    return trainer.strategy.reduce_boolean_decision(yes, all=True) if trainer.world_size > 1 else yes


def in_any_process(trainer: Any, yes: bool) -> bool:
    """Whether it is so in at least one process."""
    return trainer.strategy.reduce_boolean_decision(yes, all=False) if trainer.world_size > 1 else yes


def of_rank_zero(trainer: Any, value: T) -> T:
    """The value that the first process has."""
    return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value
