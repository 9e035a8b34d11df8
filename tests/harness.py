"""Train with and without a callback, write down everything it could disturb, and name what differs.

``differences(run(make), run(make, callback))`` is empty if training does not notice the callback.
"""

from __future__ import annotations

import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import Logger
from models import loader, trainer
from torch import Tensor, nn
from torchmetrics import Metric

Trace = dict[str, list[Any]]
"""``"kind/name" -> its values over training``, frozen so that ``==`` compares bits."""

_NO_STATE = {*vars(LightningModule()), "_torchdynamo_wrapper_id"}  # the latter is a memory address


def fit_once(make_trainer: Callable[..., Any], module: LightningModule, *data: Any) -> None:
    """One fit."""
    make_trainer().fit(module, *data)


def run(
    make_module: Callable[[], LightningModule],
    *callbacks: Callback,
    data: Callable[[], Any] = lambda: loader(24),
    val_data: Callable[[], Any] = lambda: None,
    loggers: Callable[[], list[Logger]] = list,
    fit: Callable[..., None] = fit_once,
    **trainer_options: Any,
) -> Trace:
    """Seed everything, train in an empty folder, and give what was recorded; global state is put back.

    Recorded are the state at the start of every batch (after the callbacks) and at the end, every loss, the metrics
    after every batch and validation, what reaches loggers and checkpoints. Of attributes: plain values, arrays,
    tensors, generators, modules, metrics and containers of them; of other objects only the type.

    Args:
        make_module: Makes the module, after the seeds are set.
        callbacks: Of the trainer; the recorder comes after them.
        data: Makes the loaders, or a datamodule.
        val_data: Makes the validation loaders.
        loggers: Makes loggers that come before the recording one; TensorBoard's files are read back.
        fit: ``(make_trainer, module, *data)``; ``make_trainer`` takes further options of the Trainer.
        trainer_options: Of every trainer that is made.
    """
    recorder, memory = _Recorder(), _MemoryLogger()
    with TemporaryDirectory() as folder, global_state_kept():
        os.chdir(folder)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (the global one is what a callback could disturb)
        random.seed(0)
        module = make_module()
        options = {"logger": [*loggers(), memory], "log_every_n_steps": 1, **trainer_options}
        fit(lambda **more: trainer(*callbacks, recorder, **{**options, **more}), module, data(), val_data())
        for step, name, value in (*memory.rows, *_tensorboard(Path(folder))):
            recorder.trace.setdefault(f"metric/{name}", []).append((step, value))
        recorder.trace["files"] = sorted(path.name for path in Path(folder).rglob("*.ckpt"))
    return recorder.trace


def differences(plain: Trace, other: Trace) -> list[str]:
    """What ``other`` disturbed, as ``"kind/name"``; metrics that only ``other`` has are its own."""
    return sorted(
        name
        for name in plain.keys() | other.keys()
        if plain.get(name) != other.get(name) and (name in plain or not name.startswith("metric/"))
    )


def first_difference(plain: Trace, other: Trace, name: str) -> int:
    """The first recording in which the values of a name differ."""
    pairs = enumerate(zip_longest(plain.get(name, ()), other.get(name, ())))
    return next(i for i, (a, b) in pairs if a != b)


def assert_identical(plain: Trace, other: Trace) -> None:
    """Fail with the names of all that differs, and the first recording in which each does."""
    where = {name: first_difference(plain, other, name) for name in differences(plain, other)}
    assert not where, f"training was disturbed; name -> first recording that differs: {where}"


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Put back what a run leaves changed in the process: generators, modes, environment, folder, compiled code."""
    restore = [
        (torch.set_rng_state, torch.get_rng_state()),
        (np.random.set_state, np.random.get_state()),  # noqa: NPY002
        (random.setstate, random.getstate()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        (torch.set_num_threads, torch.get_num_threads()),
        (os.chdir, Path.cwd()),
    ]
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))
        for setter, value in restore:
            stack.callback(setter, value)
        stack.callback(lambda: "torch._dynamo" in sys.modules and torch.compiler.reset())
        yield


class _MemoryLogger(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, float]] = []

    name = version = "memory"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows += [(step, name, freeze(value)) for name, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def _tensorboard(folder: Path) -> Iterator[tuple[int, str, Any]]:
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield event.step, f"tensorboard/{value.tag}", value.SerializeToString()


class _Recorder(Callback):
    changes_training = False

    def __init__(self) -> None:
        self.trace: Trace = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._record([*_state(trainer, pl_module), ("batch/tensors", batch)])

    def on_before_backward(self, trainer, pl_module, loss):
        self._record([("loss/backward", loss)])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._record([("loss/training_step", outputs), *_metrics(trainer)])

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self._record([("loss/validation_step", outputs)])

    def on_validation_end(self, trainer, pl_module):
        self._record(_metrics(trainer))

    def on_train_end(self, trainer, pl_module):
        self._record([*_state(trainer, pl_module), *_metrics(trainer)])

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self._record((f"checkpoint/{name}", value) for name, value in checkpoint.items() if name != "callbacks")

    def _record(self, named: Iterable[tuple[str, Any]]) -> None:
        for name, value in named:
            self.trace.setdefault(name, []).append(freeze(value))


def _metrics(trainer: Any) -> Iterator[tuple[str, Any]]:
    for kind in ("callback_metrics", "logged_metrics", "progress_bar_metrics"):
        for name, value in getattr(trainer, kind).items():
            yield f"metric/{kind}/{name}", value


def _state(trainer: Any, pl_module: LightningModule) -> Iterator[tuple[str, Any]]:
    for name, parameter in pl_module.named_parameters():
        yield f"weight/{name}", parameter
        yield f"grad/{name}", parameter.grad
        yield f"requires_grad/{name}", parameter.requires_grad
    for name, buffer in pl_module.named_buffers():
        yield f"buffer/{name}", buffer
    for path, module in pl_module.named_modules():
        yield f"training/{path}", module.training
        yield f"hooks/{path}", [len(table) for name, table in vars(module).items() if name.endswith("_hooks")]
        yield from _attributes(path, module)
    for i, optimizer in enumerate(trainer.optimizers):
        yield f"optimizer/{i}", optimizer.state_dict()
    for i, config in enumerate(trainer.lr_scheduler_configs):
        yield f"scheduler/{i}", config.scheduler.state_dict()
    for i, iterable in enumerate(trainer.fit_loop._combined_loader.flattened):
        yield from _attributes(f"loader {i}", iterable)
        yield from _attributes(f"dataset {i}", getattr(iterable, "dataset", None))
    yield from _attributes("datamodule", trainer.datamodule)
    yield "progress", (trainer.global_step, trainer.current_epoch, trainer.should_stop, trainer.accumulate_grad_batches)
    yield "rng/torch", torch.get_rng_state()
    yield "rng/numpy", np.random.get_state()  # noqa: NPY002
    yield "rng/python", random.getstate()
    yield "mode/grad", (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled())
    yield "mode/dtype", (str(torch.get_default_dtype()), torch.is_autocast_enabled("cpu"))
    yield "mode/kernels", (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())


def _attributes(owner: str, value: Any) -> Iterator[tuple[str, Any]]:
    for name, attribute in getattr(value, "__dict__", {}).items():
        if name not in _NO_STATE:
            yield f"attribute/{owner}.{name}", attribute


def freeze(value: Any) -> Any:
    """A copy for which ``==`` means the same bits; objects that are no data by their type only."""
    if isinstance(value, Tensor):
        flat = (value.to_dense() if value.is_sparse else value).detach().cpu().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, (np.ndarray, np.generic)):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return [(freeze(key), freeze(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [freeze(item) for item in value]
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    if isinstance(value, torch.Generator):
        return freeze(value.get_state())
    if isinstance(value, np.random.Generator):
        return freeze(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, Metric):
        return freeze({name: getattr(value, name) for name in (*value._defaults, "_update_count")})
    if isinstance(value, nn.Module):
        return freeze(value.state_dict())
    return type(value).__qualname__
