"""Warnings that point to the user's code: the innermost line of it, as a rule the one that called ``fit``."""

from __future__ import annotations

import sys
import traceback
import warnings

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_info.replica.blame import is_library

PACKAGE = "lightning_info"


@rank_zero_only
def warn(message: str) -> None:
    """Warn in the first process; filters know the warning by the module ``lightning_info``.

    The line number is part of the file's name, as Python would print the text of that line below the message.
    """
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        if not is_library(frame.f_code.co_filename):
            registry = frame.f_globals.setdefault("__warningregistry__", {})
            place = f"{frame.f_code.co_filename}:{line}"
            warnings.warn_explicit(message, UserWarning, place, 1, PACKAGE, registry)
            return
    warnings.warn_explicit(message, UserWarning, PACKAGE, 1, PACKAGE)
