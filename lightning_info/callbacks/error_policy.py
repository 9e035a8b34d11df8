"""What happens when a measurement fails: the run goes on, with one warning of each kind."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_info.replica.blame import text_of
from lightning_info.replica.isolation import exits_are_errors
from lightning_info.replica.user_warning import warn


class Refused(MisconfigurationException):
    """Something that cannot be measured, found before the first step; the message says what to write.

    Args:
        message: The reason and what to write, with lines of code after an empty line.
        details: What was seen; shown in :meth:`~.InfoCallback.report` and if the refusal ends the run.

    Attributes:
        brief: The message alone.
    """

    def __init__(self, message: str, details: str = "") -> None:
        reason, _, code = message.partition("\n\n")
        whole = f"{reason.rstrip(':.')}. {details}" if details else reason
        super().__init__(f"{whole}\n\n{code}" if code else whole)
        self.brief = message


class WrongArgument(Refused):
    """An argument that does not fit this module; it ends the run before the first step, whatever ``on_error`` says."""


class NoRoom(Refused):
    """A measurement that can never fit into the run's time budget; the callback is off, whatever ``on_error`` says."""


class ErrorPolicy:
    """The error policy of one callback.

    Args:
        owner: Name of the callback's class.
        on_error: ``"warn"``, or ``"raise"`` to end the run.

    Attributes:
        told: The warnings given, with details that are too long for a warning.
    """

    def __init__(self, owner: str, on_error: Literal["warn", "raise"]) -> None:
        self.owner = owner
        self.on_error = on_error
        self.told: list[str] = []
        self._warned: set[str] = set()

    def report(self, error: Exception, what: str, step: int | None = None) -> None:
        """Warn of a fault once, or raise it."""
        if self.on_error == "raise":
            raise error
        at = "" if step is None else f" at step {step}"
        self.warn_once(
            f"{what}{at} failed and training goes on: {text_of(error)}; report() has the traceback",
            kind=f"{what}: {type(error).__name__}",
            details="".join(traceback.format_exception(error)),
        )

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Report what fails inside; a refusal always passes."""
        try:
            with exits_are_errors(what):
                yield
        except Refused:
            raise
        except Exception as error:
            self.report(error, what)

    def warn_once(self, message: str, kind: str, details: str = "") -> None:
        """Warn, unless a warning of this kind was given; the details go to the report only."""
        if kind not in self._warned:
            self._warned.add(kind)
            self.told.append(f"Warning: {message}\n{details}".rstrip())
            warn(f"{self.owner}: {message}")
