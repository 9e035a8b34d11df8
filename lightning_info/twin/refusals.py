"""What a twin cannot follow, found before the first step, with the reason and what to do about it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from typing import Any

from lightning_info.twin.watching import IN_STEP, WatchedHook

PACKAGES = ("lightning", "pytorch_lightning")

HARMLESS = {
    "BatchSizeFinder", "Callback", "Checkpoint", "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor",
    "ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint", "ProgressBar", "RichModelSummary", "RichProgressBar",
    "ThroughputMonitor", "Timer", "TQDMProgressBar",
}  # fmt: skip
"""Lightning's own callbacks that change nothing of what is trained."""

COPIED = {"GradientAccumulationScheduler"}
"""Callbacks that the twin gets a copy of, as they only need the epoch's number."""

HOOKS = (
    "on_train_start", "on_train_epoch_start", *IN_STEP, "on_train_epoch_end",
    "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end",
    "on_validation_epoch_end", "on_validation_end",
)  # fmt: skip
"""Hooks in which a callback can change weights, gradients, optimisers or batches while training."""


class NotSupported(Exception):
    """A run that no twin can follow; the message says why and what to do."""


def refuse_run(trainer: Any, *others: str | None, trust: Collection[str] = ()) -> None:
    """Refuse what cannot be followed, all of it at once.

    Args:
        trainer: The trainer at the start of training, with optimisers, schedulers and the training loader.
        others: Other reasons why there is no twin, None for each that does not apply.
        trust: Names of classes of callbacks that change nothing of what is trained.

    Raises:
        NotSupported: There is no twin; the message has every reason.
    """
    reasons = [
        refuse_strategy(trainer),
        *others,
        _refuse_length(trainer),
        _refuse_iterator(trainer.lightning_module),
        *(refuse_callback(callback, trust) for callback in trainer.callbacks),
    ]
    found = [reason for reason in reasons if reason is not None]
    if found:
        raise NotSupported("; ".join(found))


def refuse_strategy(trainer: Any) -> str | None:
    """Refuse several processes or devices, as a twin trains in one process on one device."""
    name = type(trainer.strategy).__name__
    if trainer.world_size == 1 and name == "SingleDeviceStrategy":
        return None
    return (
        f"{name} with {trainer.world_size} processes: a twin can only be trained in one process, on one device; take "
        f"Trainer(devices=1), or remove the callback"
    )


def refuse_loader(loader: Any) -> str | None:
    """Refuse loaders that do not ask the data set for samples by index, as none can be replaced there."""
    if isinstance(loader, (list, tuple, dict)):
        return "several training loaders: a sample can be replaced in one only; give the Trainer a single DataLoader"
    if not all(hasattr(loader, name) for name in ("dataset", "sampler", "batch_sampler", "collate_fn", "num_workers")):
        return f"the training loader is a {type(loader).__name__}, in which no sample has an index; give a DataLoader"
    if not hasattr(loader.dataset, "__getitem__") or _is_iterable_dataset(loader.dataset):
        return (
            f"{type(loader.dataset).__name__} has no indices, so none of its samples can be replaced; give the "
            f"training data as a Dataset with __getitem__ and __len__"
        )
    if loader.batch_sampler is None and loader.batch_size is None and not _gives_batches(loader.sampler):
        return "the training loader does not make batches of samples; give it a batch_size or a batch_sampler"
    if not getattr(loader, "in_order", True):
        return "in_order=False gives batches in an order that the sampler does not know; leave it out"
    return None


def _is_iterable_dataset(dataset: Any) -> bool:
    return any(cls.__name__ == "IterableDataset" for cls in type(dataset).__mro__)


def _gives_batches(sampler: Any) -> bool:
    return hasattr(sampler, "batch_size") or hasattr(sampler, "drop_last")


def _refuse_length(trainer: Any) -> str | None:
    if math.isfinite(trainer.num_training_batches):
        return None
    return (
        "the number of training batches is not known, so the twin cannot know which one is the last; set "
        "Trainer(limit_train_batches=...) to a number, or give the batch sampler a __len__"
    )


def _refuse_iterator(module: Any) -> str | None:
    if "dataloader_iter" not in inspect.signature(module.training_step).parameters:
        return None
    return "training_step(dataloader_iter) fetches its own batches, which no one else sees; take (batch, batch_idx)"


def refuse_callback(callback: Any, trust: Collection[str] = ()) -> str | None:
    """Refuse callbacks of Lightning that change the training, and those that inherit from them.

    A user's class states that it changes nothing with an attribute ``changes_training = False``; other classes are
    exempted by their names.
    """
    hooks = watched_hooks(callback, trust)
    if not any(not _is_own(callback, hook) and _package(_owner(hook, type(callback))) in PACKAGES for hook in hooks):
        return None
    name = type(callback).__name__
    return f"{name} changes what is trained, in a way that a twin does not follow; remove it or this callback"


def watched_hooks(callback: Any, trust: Collection[str] = ()) -> list[str]:
    """Return hooks that could change what is trained; whether they do is checked when they are called."""
    if _denies(callback, trust) or type(callback).__name__ in COPIED:
        return []
    return [hook for hook in HOOKS if not _is_known(callback, hook)]


def needs_watching(trainer: Any, trust: Collection[str] = ()) -> bool:
    """Tell whether something unknown could change weights or optimisers between two batches of the user's run."""
    validation = [hook for hook in HOOKS if hook.startswith("on_validation")]
    module = type(trainer.lightning_module)
    unknown = any(_denies(callback, trust) or watched_hooks(callback, trust) for callback in trainer.callbacks)
    return unknown or any(is_overridden(hook, module) for hook in validation)


def is_overridden(name: str, cls: type) -> bool:
    """Tell whether a method is the user's, not Lightning's."""
    return _package(_owner(name, cls)) not in PACKAGES


def _denies(callback: Any, trust: Collection[str]) -> bool:
    named = any(cls.__name__ in trust for cls in type(callback).__mro__)
    return named or getattr(type(callback), "changes_training", True) is False


def _is_known(callback: Any, hook: str) -> bool:
    if _is_own(callback, hook):
        return False
    owner = _owner(hook, type(callback))
    package = _package(owner)
    return package == "lightning_info" or (package in PACKAGES and owner.__name__ in HARMLESS)


def _is_own(callback: Any, hook: str) -> bool:
    """Tell whether a hook is an attribute of this one object."""
    found = vars(callback).get(hook)
    return (found.own if isinstance(found, WatchedHook) else found) is not None


def _owner(name: str, cls: type) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
