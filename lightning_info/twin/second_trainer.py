"""The second Trainer, which trains the twin in its own thread, as the user's trains the user's module."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_info.replica.blame import text_of
from lightning_info.replica.left_out import saves_left_out
from lightning_info.replica.side_effects import Guard, SideEffect, SideEffectRefused
from lightning_info.replica.stand_in_trainer import InertLogger
from lightning_info.twin.certificate import fingerprint
from lightning_info.twin.handover import Closed, Feed, Handover, OutOfStep, Word
from lightning_info.twin.randomness import RandomState, set_random_state
from lightning_info.twin.refusals import COPIED, PACKAGES, is_overridden, needs_watching
from lightning_info.twin.state import saved, to_be_loaded

_DONE = (
    "configure_model", "on_exception", "on_fit_end", "on_fit_start", "on_train_end", "prepare_data", "print", "setup",
    "teardown",
)  # fmt: skip
"""Methods that the user's run has already called on the module, or that a twin does not need."""

TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Hooks that have already been applied to the batches when the twin gets them."""


def is_left_out(hook: str) -> bool:
    """Tell whether a twin does not run a method of this name of the user's module."""
    return hook in (*_DONE, *TRANSFER) or any(
        part in hook for part in ("validation", "test_", "predict_", "dataloader")
    )


class SecondTrainer:
    """Trains a copy of the user's module on what is handed over.

    Args:
        trainer: The user's Trainer.
        twin: A copy of its module.
        datamodule: A copy of its datamodule, if it has one.
        random: The random number generators at the start of training.
        checkpoint: A state to go on from.
        trust: See :func:`~.refusals.refuse_run`.

    Attributes:
        user: The user's Trainer.
        trainer: The second Trainer, once there is one.
        handover: Channel that tells it what to do.
        guard: Guard against what its code would do outside of the process.
        error: The error that ended it, if it was not told to end.
        is_watched: Whether something unknown could change weights or optimisers between two batches.
        fingerprint: Fingerprint of the twin's weights and optimisers after its last batch, if they are watched.
    """

    def __init__(
        self,
        trainer: Any,
        twin: Any,
        datamodule: Any,
        random: RandomState,
        checkpoint: dict[str, Any] | None,
        trust: Collection[str] = (),
    ) -> None:
        self.handover = Handover()
        self.trainer: Any = None
        self.guard = Guard("the twin", is_mute=True)
        self.error: Exception | None = None
        self.fingerprint: dict[str, Any] | None = None
        self.user, self._twin, self._datamodule = trainer, twin, datamodule
        self._random, self._checkpoint = random, checkpoint
        self.is_watched = needs_watching(trainer, trust)
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="lightning-info twin", daemon=True)

    def start(self) -> None:
        """Run until the twin waits in its first epoch, or has failed."""
        _shadow(self._twin, dict.fromkeys(_DONE, _nothing))
        _shadow(self._twin, dict.fromkeys(TRANSFER, _unchanged))
        _shadow(self._twin, {"configure_callbacks": lambda: []})
        if self._datamodule is not None:
            _shadow(self._datamodule, dict.fromkeys(_DONE, _nothing))
        with saves_left_out():
            self._thread.start()
            self.handover.wait()

    def give(self, word: Word) -> None:
        """Tell the twin what the user's run has done, and wait until it has done so too.

        Raises:
            OutOfStep: The twin is elsewhere, or ended itself, or was about to do what only the run may do.
            Exception: The error with which the twin failed.
        """
        with saves_left_out():
            try:
                self.handover.give(word)
            except BaseException:  # Ctrl-C while the run waits: the twin ends its step as it would have
                self._end()
                raise
        if self.guard.refused is not None:  # even if the twin went on
            raise OutOfStep(self.guard.refused)
        if self.error is not None:
            raise self.error

    def take_rates(self) -> None:
        """Copy the learning rates of the user's run, if a scheduler follows a metric that the twin does not have."""
        configs = zip(self.user.lr_scheduler_configs, self.trainer.lr_scheduler_configs, strict=True)
        for config, own in configs:
            if config.reduce_on_plateau:
                groups = zip(config.scheduler.optimizer.param_groups, own.scheduler.optimizer.param_groups, strict=True)
                for group, twin_group in groups:
                    twin_group["lr"] = copy.copy(group["lr"])

    def transfer(self, batch: Any) -> Any:
        """Apply to a collated batch what happens until it is trained on, with the hooks of the copies."""
        with saves_left_out(), self._guarded():
            return self._transferred(batch)

    def _transferred(self, batch: Any) -> Any:
        batch = self.trainer.precision_plugin.convert_input(batch)
        device = self.trainer.strategy.root_device
        for name, arguments in zip(TRANSFER, ((0,), (device, 0), (0,)), strict=True):
            owner = self._twin
            if self._datamodule is not None and is_overridden(name, type(self._datamodule)):
                owner = self._datamodule
            batch = getattr(type(owner), name)(owner, batch, *arguments)
        return batch

    def stop(self) -> None:
        """End the thread."""
        with saves_left_out():
            self._end()
        self.guard.clean_up()

    def _end(self) -> None:
        self.handover.close()
        if self._thread.ident is not None:
            self._thread.join()

    def save(self) -> Tensor:
        """Return the bytes of the second Trainer's checkpoint."""
        self.handover.wait()
        with saves_left_out(), self._guarded():  # on_save_checkpoint of the copies
            return saved(self.trainer)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self.guard.acting():
                yield
        except SideEffectRefused as error:
            raise OutOfStep(str(error)) from error

    # ---- the thread

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._threads)  # sums depend on it
            with self._guarded():
                self._fit()
        except Closed:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.handover.end()

    def _fit(self) -> None:
        feed = Feed(self.handover, int(self.user.num_training_batches))
        copied = [copy.deepcopy(c) for c in self.user.callbacks if type(c).__name__ in COPIED]
        side = _Side(self, feed, self._random)
        make = next(c for c in type(self.user).__mro__ if c.__module__.partition(".")[0] in PACKAGES)
        self.trainer = make(**_options(self.user), callbacks=[side, *copied])
        # a training_step that calls the one means the user's file; the other is what Trainer.fit runs
        _shadow(self.trainer, {"save_checkpoint": _nothing, "_fit_impl": _without_exits(self.trainer._fit_impl)})
        if self._datamodule is not None:
            self.trainer.datamodule = self._datamodule
            self._datamodule.trainer = self.trainer
        if self._checkpoint is None:
            self.trainer.fit(self._twin, feed)
            return
        with to_be_loaded(self._checkpoint) as path:
            self.trainer.fit(self._twin, feed, ckpt_path=path)


class _Side(Callback):
    """Waits for the user's run in the twin's hooks, and restores its random numbers there."""

    def __init__(self, second: SecondTrainer, feed: Feed, random: RandomState) -> None:
        self._second, self._feed, self._random = second, feed, random
        self._watched = second.is_watched

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.interval = "never"  # the rates are those of the user's run, see take_rates
        set_random_state(self._random, trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        word = self._feed.handover.take("the start of an epoch")
        set_random_state(word.random, trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert self._feed.random is not None
        set_random_state(self._feed.random, trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._second.fingerprint = fingerprint(pl_module, trainer.optimizers) if self._watched else None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        word = self._feed.handover.take("the end of an epoch")
        set_random_state(word.random, trainer.strategy.root_device)
        trainer.should_stop = trainer.should_stop or self._feed.stopping

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._feed.handover.take("the end of training")  # the weights stay where they are until it is closed


def _options(trainer: Any) -> dict[str, Any]:
    device = trainer.strategy.root_device
    return {
        "accelerator": "gpu" if device.type == "cuda" else device.type,
        "devices": 1 if device.index is None or device.type == "cpu" else [device.index],
        "plugins": [copy.deepcopy(trainer.precision_plugin)],
        "max_epochs": trainer.max_epochs,
        "min_epochs": trainer.min_epochs,
        "max_steps": trainer.max_steps,
        "min_steps": trainer.min_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "detect_anomaly": torch.is_anomaly_enabled(),
        "log_every_n_steps": trainer.log_every_n_steps,
        "default_root_dir": trainer.default_root_dir,
        "logger": [InertLogger.of(logger) for logger in trainer.loggers] or False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _shadow(owner: Any, methods: dict[str, Callable[..., Any]]) -> None:
    """Shadow methods of one object with functions; not through ``setattr``, which modules override."""
    vars(owner).update(methods)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _unchanged(batch: Any, *args: Any, **kwargs: Any) -> Any:
    return batch


def _without_exits(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an exit of the twin into an error, as neither the process nor a Trainer should shut down for it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return fit(*args, **kwargs)
        except (Exception, SideEffect):
            raise
        except BaseException as error:
            raise OutOfStep(f"the twin was ended by its own code: {text_of(error)}") from error

    return run
