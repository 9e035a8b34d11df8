"""When to measure: a pure decision from counters and clocks."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_OVERHEAD = 0.05


@dataclass
class Schedule:
    """Decides which optimiser steps are measured.

    Args:
        every_n_epochs: Interval n in epochs: measure at initialisation, then after epochs n, 2n, ...
        every_n_train_steps: Interval n in optimiser steps: measure at steps 0, n, 2n, ...
        max_overhead: Largest share of the run's time that measurements may take, see :class:`~.Budget`. The default is
            0.05 without an interval, and no limit with one.

    Without an interval, steps 0, 1, 2, 4, 8, ... and the end of every epoch are measured.
    """

    every_n_epochs: int | None = None
    every_n_train_steps: int | None = None
    max_overhead: float | None = None

    def __str__(self) -> str:
        if self.every_n_train_steps is not None:
            points = f"0, {self.every_n_train_steps}, {2 * self.every_n_train_steps}, ..."
        elif self.every_n_epochs is not None:
            points = "0, the end of every " + ("epoch" if self.every_n_epochs == 1 else f"{self.every_n_epochs} epochs")
        else:
            points = "0, 1, 2, 4, 8, ..., the end of every epoch"
        return f"{points}, and the end of fit"

    @property
    def budget(self) -> float | None:
        """Largest share of the run's time, None for no limit."""
        explicit = self.every_n_epochs is not None or self.every_n_train_steps is not None
        return self.max_overhead if explicit or self.max_overhead is not None else DEFAULT_OVERHEAD

    def falls_on(self, step: int, epochs: int | None) -> bool:
        """Tell whether a point falls on this step, regardless of the time budget.

        Args:
            step: Optimiser steps taken.
            epochs: Epochs completed if this is the first step after the end of one, otherwise None.
        """
        if step == 0:
            return True
        if self.every_n_train_steps is not None:
            return step % self.every_n_train_steps == 0
        if self.every_n_epochs is not None:
            return epochs is not None and epochs % self.every_n_epochs == 0
        return epochs is not None or self.is_early(step)

    @staticmethod
    def is_early(step: int) -> bool:
        """Tell whether a step is one of 0, 1, 2, 4, 8, ..., which are worth most."""
        return step & (step - 1) == 0
