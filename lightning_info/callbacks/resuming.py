"""State of a callback in a checkpoint, and how a run goes on from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback

from lightning_info.callbacks import messages
from lightning_info.callbacks.clock import Clock
from lightning_info.callbacks.points import Points
from lightning_info.replica.declared_samples import DeclaredSamples
from lightning_info.replica.likelihood_choice import LikelihoodCall


class Resuming(Points, Callback, ABC):
    """Continues the curves of a checkpoint, or starts them anew if a setting has changed what their values mean."""

    num_samples: int
    save_samples: bool

    _off: str  # why nothing is measured in this run; empty if something is

    _step: int | None  # of the last decision
    _resumed: bool  # a state was taken up, and no batch seen yet
    _changes: dict[str, tuple[str, str]]  # settings that differ from that state: then and now
    _ended: dict[str, list[tuple[int, float]]]  # the curves of that state if such settings differ
    _declared: DeclaredSamples
    _saved: list[dict[str, Any]] | None  # the reference samples of that state

    @property
    def state_key(self) -> str:
        """Keeps two instances with different prefixes apart in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix, **self._kind)

    @property
    def _kind(self) -> dict[str, str]:
        """Settings that distinguish a callback from others of its class."""
        return {}

    # not state_dict and load_state_dict: of two callbacks that override these under one state_key Lightning refuses to
    # make a Trainer, before setup can say which argument is missing

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the state where Lightning puts those of callbacks."""
        if not self._off:
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._state()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take up the state of a callback of this class and prefix."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state:
            self._take_up(state)

    def _state(self) -> dict[str, Any]:
        """Settings, history, position, clock and reference samples, as plain Python values and tensors."""
        return {
            "settings": self._settings(),
            "history": {tag: [list(point) for point in curve] for tag, curve in self.history.items()},
            "step": self._step,
            "elapsed": self._clock.elapsed,
            "spent": self._clock.spent,
            "point": self.account.point,
            "points": self._points,
            "cheapened": self._cheapened,
            "finished": sorted(self._finished),
            "epochs": dict(self._epochs),
            "samples": self._samples.state() if self.save_samples else None,
            "quantity": self._state_of_quantity(),
        }

    def _state_of_quantity(self) -> dict[str, Any]:
        with self._error_policy.guard("keeping the quantity in a checkpoint"):
            return self.quantity.state_dict()
        return {}

    def _take_up(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_state` returned; with other settings the curves start anew."""
        self._restart()
        with self._error_policy.guard("taking up the state of the checkpoint"):
            history = {tag: [(int(s), float(v)) for s, v in curve] for tag, curve in state["history"].items()}
            clock = Clock(float(state["elapsed"]), float(state["spent"]))
            position = (
                state["step"],
                int(state["points"]),
                state["samples"] or None,
            )
            now = self._settings()
            changes = {
                name: (old, now[name]) for name, old in state.get("settings", {}).items() if now.get(name, old) != old
            }
            self._clock, self._changes = clock, changes
            self._step, self._points, self._saved = position
            self.account.point = float(state["point"])
            self._cheapened = int(state.get("cheapened", 0))
            self._resumed = True
            if changes:
                self.history, self._ended = {}, history
                self._saved = None if "num_samples" in changes else self._saved
            else:
                self.history = history
                self._finished.update(state.get("finished", ()))
                self._epochs.update(state.get("epochs", {}))
                self._measured = max((step for curve in history.values() for step, _ in curve), default=None)
        if state.get("quantity"):
            with self._error_policy.guard("taking up what the checkpoint keeps of the quantity"):
                self.quantity.load_state_dict(state["quantity"], not self._changes)

    @abstractmethod
    def _restart(self) -> None:
        """Return to the state at the start of a run."""

    def arguments(self) -> dict[str, object]:
        """Return the arguments that must agree for values to be comparable."""
        adapter = getattr(self.adapter, "__qualname__", type(self.adapter).__qualname__) if self.adapter else None
        if isinstance(self.adapter, LikelihoodCall):
            adapter = repr(self.adapter)
        settings: dict[str, object] = {
            "num_samples": self.num_samples,
            "adapter": adapter,
            "batch_norm": self.batch_norm,
            "unit": self.unit,
        }
        if self._declared.text:
            settings["samples"] = self._declared.text
        return settings | dict(self.quantity.settings())

    def _settings(self) -> dict[str, str]:
        """Return them in Python's notation."""
        return {name: repr(value) for name, value in self.arguments().items()}

    def _end_curves(self, trainer: Any) -> None:
        """End the curves of a checkpoint with other settings."""
        step = steps_taken(trainer)
        self._error_policy.warn_once(messages.starts_anew(self._changes, step), "settings")
        self._report_values(trainer, dict.fromkeys(self._ended, math.nan), step)
        self._ended = {}


def steps_taken(trainer: Any) -> int:
    """Count the batches after which the optimisers stepped: two optimisers count once, accumulated batches do not."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)
