"""Passes through a replica that are experiments on it: whoever watches its calls looks away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


@contextmanager
def experiment() -> Iterator[None]:
    """What this thread runs inside is none of the passes that are watched."""
    before, _here.running = is_experiment(), True
    try:
        yield
    finally:
        _here.running = before


def is_experiment() -> bool:
    """Whether this thread runs one."""
    return getattr(_here, "running", False)
