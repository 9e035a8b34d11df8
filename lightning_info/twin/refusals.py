"""What a twin cannot follow, found before the first step, with the reason and what to do about it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from typing import Any

PACKAGES = ("lightning", "pytorch_lightning")

HARMLESS = {
    "BatchSizeFinder", "Callback", "Checkpoint", "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor",
    "ModelCheckpoint", "ModelSummary", "OnExceptionCheckpoint", "ProgressBar", "RichModelSummary", "RichProgressBar",
    "ThroughputMonitor", "Timer", "TQDMProgressBar",
}  # fmt: skip
"""Lightning's own callbacks that change nothing of what is trained."""

COPIED = {"GradientAccumulationScheduler"}
"""Those of which the twin gets a copy, as they need nothing but the epoch's number."""

HOOKS = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end",
    "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end",
    "on_validation_epoch_end", "on_validation_end",
)  # fmt: skip
"""In which a callback can change weights, gradients, optimisers or batches while training."""


class NotSupported(Exception):
    """A run that no twin can follow; the message tells why and what to do."""


def refuse_run(trainer: Any, *others: str | None, trust: Collection[str] = ()) -> None:
    """Refuse what cannot be followed, all of it at once.

    Args:
        trainer: At the start of training: optimisers, schedulers and the training loader are there.
        others: Why there is no twin for other reasons, or None for each that does not hold.
        trust: Names of classes of callbacks that change nothing of what is trained.

    Raises:
        NotSupported: With every reason.
    """
    reasons = [
        refuse_strategy(trainer),
        *others,
        _refuse_length(trainer),
        _refuse_schedulers(trainer),
        _refuse_iterator(trainer.lightning_module),
        *(refuse_callback(callback, trust) for callback in trainer.callbacks),
    ]
    found = [reason for reason in reasons if reason is not None]
    if found:
        raise NotSupported("; ".join(found))


def refuse_strategy(trainer: Any) -> str | None:
    """A twin trains in one process, on one device."""
    name = type(trainer.strategy).__name__
    if trainer.world_size == 1 and name == "SingleDeviceStrategy":
        return None
    return (
        f"{name} with {trainer.world_size} processes: a twin can only be trained in one process, on one device; take "
        f"Trainer(devices=1), or remove the callback"
    )


def refuse_loader(loader: Any) -> str | None:
    """A sample can be replaced only where the loader asks the data set for it by its index."""
    if isinstance(loader, (list, tuple, dict)):
        return "several training loaders: a sample can be replaced in one only; give the Trainer a single DataLoader"
    if not all(hasattr(loader, name) for name in ("dataset", "sampler", "batch_sampler", "collate_fn", "num_workers")):
        return f"the training loader is a {type(loader).__name__}, in which no sample has an index; give a DataLoader"
    if not hasattr(loader.dataset, "__getitem__") or _is_iterable_dataset(loader.dataset):
        return (
            f"{type(loader.dataset).__name__} has no indices, so that no sample of it can be replaced; give the "
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
        "the number of training batches is not known, so that the twin cannot know which one is the last; set "
        "Trainer(limit_train_batches=...) to a number, or give the batch sampler a __len__"
    )


def _refuse_iterator(module: Any) -> str | None:
    if "dataloader_iter" not in inspect.signature(module.training_step).parameters:
        return None
    return "training_step(dataloader_iter) fetches its own batches, which nobody else sees; take (batch, batch_idx)"


def _refuse_schedulers(trainer: Any) -> str | None:
    names = [type(c.scheduler).__name__ for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
    if not names:
        return None
    return f"{names[0]} follows a metric, which the twin, being never validated, has not; take another scheduler"


def refuse_callback(callback: Any, trust: Collection[str] = ()) -> str | None:
    """A callback that can change the training is refused, unless it is known not to, or it is said.

    A class says so itself with an attribute ``changes_training = False``; of others it is said by their names.
    """
    if _denies(callback, trust) or type(callback).__name__ in COPIED:
        return None
    hooks = [hook for hook in HOOKS if not _is_known(callback, hook)]
    if not hooks:
        return None
    name = type(callback).__name__
    if _package(type(callback)) in PACKAGES and hooks[0] not in vars(callback):
        return f"{name} changes what is trained, in a way that a twin does not follow; remove it or this callback"
    return (
        f"{name}.{hooks[0]} could change what is trained, which the twin would not follow; if it only watches, say so "
        f"by StabilityCallback(trust=[{name!r}]) or a class attribute `changes_training = False`; otherwise remove it "
        f"or this callback"
    )


def needs_watching(trainer: Any, trust: Collection[str] = ()) -> bool:
    """Whether something that is not known could change the weights between two batches of the user's run."""
    validation = [hook for hook in HOOKS if hook.startswith("on_validation")]
    module = type(trainer.lightning_module)
    denied = any(_denies(callback, trust) for callback in trainer.callbacks)
    return denied or any(is_overridden(hook, module) for hook in validation)


def is_overridden(name: str, cls: type) -> bool:
    """Whether a method is the user's, not Lightning's."""
    return _package(_owner(name, cls)) not in PACKAGES


def _denies(callback: Any, trust: Collection[str]) -> bool:
    named = any(cls.__name__ in trust for cls in type(callback).__mro__)
    return named or getattr(type(callback), "changes_training", True) is False


def _is_known(callback: Any, hook: str) -> bool:
    if hook in vars(callback):
        return False
    owner = _owner(hook, type(callback))
    package = _package(owner)
    return package == "lightning_info" or (package in PACKAGES and owner.__name__ in HARMLESS)


def _owner(name: str, cls: type) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
