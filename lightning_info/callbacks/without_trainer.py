"""What ``lightning_info.measure`` calls in the place of the Trainer's hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_info.callbacks.member import Member
from lightning_info.callbacks.preparing import Preparing
from lightning_info.callbacks.resuming import steps_taken


class WithoutTrainer(Preparing):
    """Is measured by whoever calls, when it calls."""

    _offline = False

    def go_offline(self) -> None:
        """Forget everything measured; from now on there is no Trainer, and no summary is printed."""
        self.history, self._offline = {}, True
        self._restart()

    def take_samples(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep reference samples of a batch until they are complete; check the module at the first one.

        What fails here is raised whatever ``on_error`` says, as nothing can be measured without it.
        """
        if self.is_ready:
            return
        self._error_policy.on_error = "raise"
        self._collect(trainer, pl_module, batch, batch_idx)
        self._error_policy.on_error = self.on_error

    def take_point(self, trainer: Any, pl_module: Any, due: Sequence[Member]) -> None:
        """Measure at the present step, whatever the schedule says.

        Args:
            trainer: What stands for one.
            pl_module: The module.
            due: All callbacks that are measured at this step; they share a replica and a pass.
        """
        self._step = steps_taken(trainer)
        self._measure_and_log(trainer, pl_module, self._step, due)

    def let_go(self) -> None:
        """Keep nothing of the present step."""
        self._session.clear()

    def look_back(self, trainer: Any) -> None:
        """Add to the history what is known only when the last point is."""
        self._write_end(trainer)

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """The figures of what was measured, by tag; each is drawn when it is called."""
        return {self.tagged(tag): draw for tag, draw in self.quantity.figures(self.record()).items()}
