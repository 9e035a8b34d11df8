"""The share of a run's time that measurements take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_info.replica.timing import seconds


class Clock:
    """Seconds of the run, and those spent on measuring.

    Args:
        elapsed: Seconds of the run before this process resumed it.
        spent: Seconds of these that were spent on measuring.
    """

    def __init__(self, elapsed: float = 0.0, spent: float = 0.0) -> None:
        self.elapsed_before = elapsed
        self._started = time.perf_counter() - elapsed
        self._spent = spent
        self._spending_since: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    @property
    def spent(self) -> float:
        """Seconds spent on measuring, up to this moment."""
        since = self._spending_since
        return self._spent + (0.0 if since is None else time.perf_counter() - since)

    @property
    def overhead(self) -> float:
        """Share of the run's time spent on measuring."""
        return self.spent / self.elapsed

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count what happens inside as measuring."""
        self._spending_since = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._spending_since = self.spent, None

    def wait_for(self, device: torch.device) -> None:
        """Let an accelerator finish what training has queued, which is not part of measuring."""
        self._spent -= seconds(lambda: None, device)
