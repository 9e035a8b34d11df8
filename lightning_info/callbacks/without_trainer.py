"""The methods that ``lightning_info.measure`` calls in place of the Trainer's hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightning_info.callbacks.member import Member
from lightning_info.callbacks.preparing import Preparing
from lightning_info.callbacks.resuming import steps_taken


class WithoutTrainer(Preparing):
    """A callback that measures when its caller says so."""

    _offline = False

    def go_offline(self) -> None:
        """Forget everything measured; from now on there is no Trainer, and no summary is printed."""
        self.history, self._offline = {}, True
        self._restart()

    def take_samples(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep reference samples of a batch until they are complete; check the module on the first one.

        Failures here are raised whatever ``on_error`` says, as nothing can be measured without these steps.
        """
        if self.is_ready:
            return
        self._error_policy.on_error = "raise"
        self._collect(trainer, pl_module, batch, batch_idx)
        self._error_policy.on_error = self.on_error

    def take_point(self, trainer: Any, pl_module: Any, due: Sequence[Member]) -> None:
        """Measure at the current step, whatever the schedule says.

        Args:
            trainer: A stand-in for the Trainer.
            pl_module: The module.
            due: All callbacks that measure at this step; they share a replica and a pass.
        """
        self._step = steps_taken(trainer)
        self._measure_and_log(trainer, pl_module, self._step, due)

    def let_go(self) -> None:
        """Release everything of the current step."""
        self._session.clear()

    def look_back(self, trainer: Any) -> None:
        """Add to the history what is known only after the last point."""
        self._write_end(trainer)

    def drawings(self) -> dict[str, Callable[[], Figure]]:
        """Return the figures of what was measured, by tag; each is drawn when it is called."""
        return {self.tagged(tag): draw for tag, draw in self.quantity.figures(self.record()).items()}
