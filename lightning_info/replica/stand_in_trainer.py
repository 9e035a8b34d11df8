"""Stand-ins for everything of the Trainer that a ``training_step`` could change: reading works, acting does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_info.replica.returned_loss import backward

_ACTS = (
    "callbacks", "checkpoint_callback", "checkpoint_callbacks", "early_stopping_callback", "early_stopping_callbacks",
    "logger", "loggers", "lr_scheduler_configs", "optimizers", "profiler", "progress_bar_callback", "strategy",
)  # fmt: skip

_PLACES = ("log_dir", "name", "root_dir", "save_dir", "version")
"""Where a logger writes, which is harmless to know."""


class Silent:
    """Swallows every call, attribute, item and ``with``; as a container it is empty."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Does nothing."""
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class NullObject(Silent, float):
    """A silent object that is 0.0 as a number."""


class InertOptimizer(NullObject):
    """An inert optimiser that passes ``isinstance`` as the one that Lightning would return."""

    @classmethod
    def of(cls, real: Any) -> InertOptimizer:
        """For an optimiser as Lightning wraps it."""
        optimizer = cls()
        vars(optimizer)["_kind"] = type(real) if isinstance(real, Optimizer) else cls
        return optimizer

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return vars(self)["_kind"]  # type: ignore[no-any-return]


class InertLogger(NullObject):
    """An inert logger that still tells where the real one writes."""

    @classmethod
    def of(cls, real: Any) -> InertLogger:
        """For a logger, or None."""
        logger = cls()
        vars(logger)["_real"] = real
        return logger

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_real"], name, self) if name in _PLACES else super().__getattr__(name)


class _ReadThrough:
    """Reads attributes through to an object; containers are copied, and attributes that are set stay here."""

    def __init__(self, real: Any) -> None:
        vars(self)["_real"] = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._real, name)
        return value.copy() if isinstance(value, (dict, list)) else value

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReadThrough:
        return self


class StandInTrainer(_ReadThrough):
    """Reads through to the trainer and its datamodule; loggers, optimisers, callbacks, strategy, methods are inert."""

    def __getattr__(self, name: str) -> Any:
        if name == "logger":
            return InertLogger.of(self._real.logger)
        if name in _ACTS:
            inert = NullObject()
            if name == "strategy":
                vars(inert)["root_device"] = getattr(self._real.strategy, "root_device", inert)
            return inert
        value = super().__getattr__(name)
        if name == "datamodule" and value is not None:
            vars(self)[name] = _ReadThrough(value)
            return vars(self)[name]
        return NullObject() if callable(value) and not isinstance(value, nn.Module) else value


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Takes the place of a method that would act on the trainer."""


def _identity(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def detach_from_trainer(module: nn.Module, stand_in: StandInTrainer) -> None:
    """Put the stand-in in the trainer's place on a replica, and make its logging and optimisation methods inert."""
    real = stand_in._real
    wrapped = getattr(getattr(real, "strategy", None), "_lightning_optimizers", None)
    optimizers = _like([InertOptimizer.of(one) for one in wrapped or getattr(real, "optimizers", None) or ()])
    schedulers = _like([NullObject() for _ in getattr(real, "lr_scheduler_configs", None) or ()])
    vars(stand_in).update(model=module, lightning_module=module)
    for part in module.modules():
        vars(part)["train"] = lambda mode=True, part=part: part  # stays in eval mode
        if "_trainer" not in vars(part):
            continue
        vars(part).update(
            _trainer=stand_in,
            log=_ignore,
            log_dict=_ignore,
            print=_ignore,
            manual_backward=backward,
            toggle_optimizer=_ignore,
            untoggle_optimizer=_ignore,
            clip_gradients=_ignore,
            all_gather=_identity,
            optimizers=lambda *args, **kwargs: optimizers,
            lr_schedulers=lambda *args, **kwargs: schedulers,
        )


def _like(inert: list[Any]) -> Any:
    """As Lightning returns as many: None, one, or a list."""
    return None if not inert else inert[0] if len(inert) == 1 else inert
