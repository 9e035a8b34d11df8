"""Who acts on the values in ``trainer.callback_metrics``: callbacks and learning-rate schedulers with a ``monitor``."""

from __future__ import annotations

from typing import Any


def monitors(trainer: Any) -> dict[str, list[Any]]:
    """Callbacks and configurations of schedulers, by the tag that they monitor."""
    found: dict[str, list[Any]] = {}
    for one in (*trainer.callbacks, *trainer.lr_scheduler_configs):
        if isinstance(tag := getattr(one, "monitor", None), str):
            found.setdefault(tag, []).append(one)
    return found


def name_of(monitor: Any) -> str:
    """The class of a callback or scheduler."""
    return type(getattr(monitor, "scheduler", monitor)).__name__


def is_tolerant(monitor: Any) -> bool:
    """Whether it passes over a tag that is not there; others end the run."""
    return getattr(monitor, "strict", True) is False
