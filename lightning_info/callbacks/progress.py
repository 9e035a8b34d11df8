"""A progress bar for a long measurement, during which training stands still."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

PATIENCE = 2.0
"""Seconds after which a measurement shows a bar."""


@contextmanager
def progress(trainer: Any, owner: str, step: int, expected: float) -> Iterator[None]:
    """Show a bar if what happens inside takes more than :data:`PATIENCE`.

    It is drawn if the Trainer has a progress bar, by its own thread, which only looks at the clock: progress is
    relative to the expected time.

    Args:
        trainer: The trainer.
        owner: Name of the callback's class.
        step: Optimiser steps taken.
        expected: Expected seconds; NaN if not known.
    """
    bar = trainer.progress_bar_callback
    if bar is None or not getattr(bar, "is_enabled", True) or not trainer.is_global_zero:
        yield
        return
    done = threading.Event()
    is_line = "Rich" in type(bar).__name__  # which draws the screen itself
    shown = threading.Thread(target=_show, args=(done, f"{owner} at step {step}", expected, is_line), daemon=True)
    shown.start()
    try:
        yield
    finally:
        done.set()
        shown.join()


def _show(done: threading.Event, title: str, expected: float, is_line: bool) -> None:
    started = time.perf_counter()
    if done.wait(PATIENCE):
        return
    total = None if math.isnan(expected) else max(PATIENCE, expected)
    of = "" if total is None else f" of about {total:.0f} s"
    if is_line:
        print(f"{title} takes a while{of.replace(' of', ',')}", flush=True)
        return
    with tqdm(total=total, desc=title, leave=False, file=sys.stdout, bar_format="{desc}: {n:.0f} s" + of) as bar:
        while True:
            bar.n = time.perf_counter() - started
            bar.refresh()
            if done.wait(0.5):
                return
