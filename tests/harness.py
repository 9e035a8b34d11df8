"""Train with and without a callback, write down everything it could disturb, and name what differs.

``differences(run(make), run(make, callback))`` is empty if training does not notice the callback.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import Logger
from models import loader, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

Trace = dict[str, list[Any]]
"""``"kind/name" -> its values over training``, frozen so that ``==`` compares bits."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def run(
    make_module: Callable[[], LightningModule],
    *callbacks: Callback,
    data: Callable[[], DataLoader] = lambda: loader(24),
    val_data: Callable[[], DataLoader] | None = None,
    **trainer_options: Any,
) -> Trace:
    """Seed everything, train, and give what was recorded: at the start of every batch, after the callbacks; at the end.

    The user's metrics are in it only once they reach the logger, and attributes of the modules only if they are plain
    values, tensors or containers of them.
    """
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global one is what a callback could disturb)
    random.seed(0)
    module = make_module()
    logger, recorder = _MemoryLogger(), _Recorder()
    options = {"logger": logger, "log_every_n_steps": 1, **trainer_options}
    trainer(*callbacks, recorder, **options).fit(module, data(), val_data and val_data())
    for step, name, value in logger.rows:
        recorder.trace.setdefault(f"metric/{name}", []).append((step, value))
    return recorder.trace


def differences(plain: Trace, other: Trace) -> list[str]:
    """What ``other`` disturbed, as ``"kind/name"``; metrics that only ``other`` has are its own."""
    return sorted(
        name
        for name in plain.keys() | other.keys()
        if plain.get(name) != other.get(name) and (name in plain or not name.startswith("metric/"))
    )


def assert_identical(plain: Trace, other: Trace) -> None:
    """Fail with the names of all that differs, and the first recording in which each does."""
    where = {}
    for name in differences(plain, other):
        pairs = enumerate(zip_longest(plain.get(name, ()), other.get(name, ())))
        where[name] = next(i for i, (a, b) in pairs if a != b)
    assert not where, f"training was disturbed; name -> first recording that differs: {where}"


class _MemoryLogger(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, float]] = []

    name = version = "memory"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows += [(step, name, freeze(value)) for name, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Recorder(Callback):
    def __init__(self) -> None:
        self.trace: Trace = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._record(trainer, pl_module, [("batch/tensors", batch)])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trace.setdefault("loss/training_step", []).append(freeze(outputs))

    def on_train_end(self, trainer, pl_module):
        self._record(trainer, pl_module)

    def _record(self, trainer, pl_module, more: Iterable[tuple[str, Any]] = ()) -> None:
        for name, value in (*_state(trainer, pl_module), *more):
            self.trace.setdefault(name, []).append(freeze(value))


def _state(trainer: Any, pl_module: LightningModule) -> Iterable[tuple[str, Any]]:
    for name, parameter in pl_module.named_parameters():
        yield f"weight/{name}", parameter
        yield f"grad/{name}", parameter.grad
        yield f"requires_grad/{name}", parameter.requires_grad
    for name, buffer in pl_module.named_buffers():
        yield f"buffer/{name}", buffer
    for path, module in pl_module.named_modules():
        yield f"training/{path}", module.training
        yield f"hooks/{path}", [len(table) for name, table in vars(module).items() if name.endswith("_hooks")]
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in _OF_EVERY_MODULE:
                yield f"attribute/{path}.{name}", value
    for i, optimizer in enumerate(trainer.optimizers):
        yield f"optimizer/{i}", optimizer.state_dict()
    for i, config in enumerate(trainer.lr_scheduler_configs):
        yield f"scheduler/{i}", config.scheduler.state_dict()
    yield "rng/torch", torch.get_rng_state()
    yield "rng/numpy", np.random.get_state()  # noqa: NPY002
    yield "rng/python", random.getstate()
    yield "mode/grad", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield "mode/dtype", (str(torch.get_default_dtype()), torch.is_autocast_enabled("cpu"))


def freeze(value: Any) -> Any:
    """A copy for which ``==`` means the same bits; objects that are no data by their type only."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {key: freeze(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [freeze(item) for item in value]
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return repr(value)
    return type(value).__qualname__
