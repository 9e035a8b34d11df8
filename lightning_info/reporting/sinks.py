"""Loggers that take more than scalars: what one must offer, and how it is then called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from lightning_info.replica.isolation import exits_are_errors

Sink = tuple[Sequence[str], Callable[..., None]]
"""What a logger must offer (dotted attributes), and the function called with the logger and what is logged."""


def serve(trainer: Any, sinks: Sequence[Sink], *goods: Any) -> list[Exception]:
    """Serve every logger of the first process through the first sink that fits; the others are skipped.

    Returns:
        Exceptions raised by loggers; the others were still served.
    """
    errors: list[Exception] = []
    for logger in trainer.loggers if trainer.is_global_zero else ():
        try:
            with exits_are_errors(f"the logger {type(logger).__name__}"):
                for needs, hand_over in sinks:
                    if all(_offers(logger, name) for name in needs):
                        hand_over(logger, *goods)
                        break
        except Exception as error:
            errors.append(error)
    return errors


def _offers(logger: Any, name: str) -> bool:
    try:
        attrgetter(name)(logger)
    except AttributeError:
        return False
    return True
