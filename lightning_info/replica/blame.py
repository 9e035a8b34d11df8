"""Where in the user's own code something happened: what a message has to name."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

_LIBRARIES = (
    *{sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(__file__).parents[1]),
    "<",  # frozen or generated
)
_LONGEST = 300


def text_of(error: BaseException) -> str:
    """Type and message of an exception in a line or two, with the line of the user's code that it came from."""
    message = " ".join(str(error).split())
    message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return said + _place(reversed(frames))


def place_of(frame: FrameType | None) -> str:
    """The line of the user's code that a frame was called from, in parentheses; empty if there is none."""
    return _place((inner.f_code, line) for inner, line in traceback.walk_stack(frame))


def is_library(path: str) -> bool:
    """Whether this is the path of code that is installed, not written by the user."""
    return path.startswith(_LIBRARIES)


def _place(frames: Iterator[tuple[CodeType, int]]) -> str:
    for code, line in frames:  # from the innermost
        if not is_library(code.co_filename):
            return f" ({Path(code.co_filename).name}:{line}, in {code.co_name})"
    return ""
