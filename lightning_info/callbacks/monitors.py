"""Users of the values in ``trainer.callback_metrics``: callbacks and learning-rate schedulers with a ``monitor``."""

from __future__ import annotations

from typing import Any


def monitors(trainer: Any) -> dict[str, list[Any]]:
    """Return callbacks and configurations of schedulers, by the tag that they monitor."""
    found: dict[str, list[Any]] = {}
    for one in (*trainer.callbacks, *trainer.lr_scheduler_configs):
        if isinstance(tag := getattr(one, "monitor", None), str):
            found.setdefault(tag, []).append(one)
    return found


def name_of(monitor: Any) -> str:
    """Return the class name of a callback or scheduler."""
    return type(getattr(monitor, "scheduler", monitor)).__name__


def is_tolerant(monitor: Any) -> bool:
    """Tell whether it ignores a missing tag; others end the run."""
    return getattr(monitor, "strict", True) is False
