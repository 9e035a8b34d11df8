"""Arguments of the callbacks among the hyperparameters of the run, on request."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

from lightning_info.callbacks.take_away import TakeAway
from lightning_info.functional.units import in_unit
from lightning_info.replica.isolation import exits_are_errors
from lightning_info.reporting.hyperparameters import OURS, JoinedHyperparameters

EMPTY = ("", "()", "[]", "{}")
"""What an argument that asks for nothing is written as."""


class LogsHyperparameters(TakeAway):
    """Adds its arguments to the hyperparameters that the loggers get, if that is wanted."""

    log_hyperparams: bool

    _joined: tuple[JoinedHyperparameters, ...] = ()  # of the loggers of this run; the first that asks has them

    def hyperparameters(self) -> dict[str, object]:
        """Return the arguments that decide what is measured and when, by name, as plain values."""
        quantity = self.quantity
        own = {name: getattr(quantity, name, None) for name in inspect.signature(type(quantity)).parameters}
        known = {**own, "seed": self.seed, **asdict(self._schedule), **self.arguments()}
        known["unit"] = in_unit(quantity.unit, self.unit)[0]
        title = f"{OURS}/{self.tagged(type(self).__name__)}"
        plain = {f"{title}/{name}": _plain(value) for name, value in known.items() if value is not None}
        return {name: value for name, value in plain.items() if value not in EMPTY}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Add the arguments of all callbacks that are asked to, before Lightning logs the module's hyperparameters."""
        asked = [c for c in trainer.callbacks if isinstance(c, LogsHyperparameters) and c.log_hyperparams]
        if not asked or asked[0] is not self or trainer.barebones:
            return
        with self._error_policy.guard("adding its arguments to the hyperparameters"):
            settings = {name: value for c in asked for name, value in c.hyperparameters().items()}
            for logger in trainer.loggers:
                self._joined += (JoinedHyperparameters(logger, settings),)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Log the arguments if nothing else was logged."""
        self._end_hyperparameters()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Log the arguments if nothing else was logged."""
        self._end_hyperparameters()

    def _end_hyperparameters(self) -> None:
        joined, self._joined = self._joined, ()
        for one in joined:
            try:
                with exits_are_errors("a logger"):
                    one.end()
            except Exception as error:
                self._error_policy.report(error, "writing hyperparameters to a logger")


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else repr(value)
