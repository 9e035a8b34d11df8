"""The least callback that drives a twin, and what it sees."""

from __future__ import annotations

import threading
from typing import Any

from lightning.pytorch import Callback

from lightning_info.twin import OutOfStep, Twin


class Drive(Callback):
    """Measures the distance before every batch and at the end, and the twin's losses."""

    changes_training = False

    def __init__(self, index: int | None = 3, replacement: int | None = 3, seed: int = 0):
        self.given = index, replacement, seed
        self.twin = Twin(*self.given)
        self.distances: list[float] = []
        self.steps: list[int] = []
        self.reasons: list[str | None] = []
        self.final: dict[str, Any] | None = None  # the twin's last weights

    @property
    def state_key(self):
        return f"Drive {self.given}"

    def setup(self, trainer, pl_module, stage):
        if stage == "fit":
            self.twin.install(trainer)

    def on_train_start(self, trainer, pl_module):
        self.twin.start(trainer, pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        self.twin.epoch_start(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.twin.batch_start(trainer, pl_module, batch)
        self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.twin.batch_end(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self.twin.epoch_end(trainer)

    def on_train_end(self, trainer, pl_module):
        self.twin.finish(trainer, pl_module)
        self._measure(trainer, pl_module)
        if self.twin.reason is None:
            self.final = {name: value.clone() for name, value in self.twin.weights().state_dict().items()}
        self.twin.stop()

    def on_exception(self, trainer, pl_module, exception):
        self.twin.stop()

    def teardown(self, trainer, pl_module, stage):
        self.twin.stop()

    def state_dict(self) -> dict[str, Any]:
        return self.twin.state_dict()

    def load_state_dict(self, state_dict):
        self.twin.load_state_dict(state_dict)

    def _measure(self, trainer, pl_module):
        self.reasons.append(self.twin.reason)
        self.steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)
        try:
            self.distances.append(distance(pl_module, self.twin.weights()))
        except OutOfStep:
            self.distances.append(float("nan"))


def distance(module, twin) -> float:
    pairs = zip(module.parameters(), twin.parameters(), strict=True)
    return sum(float((q.detach().double() - p.detach().double()).square().sum()) for p, q in pairs) ** 0.5


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "lightning-info" in thread.name]
