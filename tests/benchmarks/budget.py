"""What our callbacks take of whole runs with the default schedule: their hooks, timed from outside, by the run's time.

    python tests/benchmarks/budget.py [name of a run ...]

Wall clock on one thread, one run each: a budget is kept or it is not. ``allowed`` is the larger of 5 % of the run, and
of the checks with what points and figures have in any case: 3 s, or half of the 5 %.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    WeightInfoCallback,
)
from lightning_info.callbacks.budget import AHEAD, FLOOR
from lightning_info.callbacks.schedule import DEFAULT_OVERHEAD

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from engines import resnet18
from models import Classifier

ALL = (FisherTraceCallback, InfoPlaneCallback, EffectiveInfoCallback, WeightInfoCallback)
HOOKS = ("setup", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end",
         "on_train_epoch_end", "on_train_end", "teardown")  # fmt: skip


def mlp(*widths: int) -> nn.Module:
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Sleeps(nn.Module):
    """Takes 50 ms a training step beyond its own, as slow data would."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(20, 64, 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.05)
        return self.net(x)


RUNS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float, tuple[Any, ...]]] = {
    "MLP 64-256-128-10": (partial(mlp, 64, 256, 128, 10), (64,), 64, 15, ALL[:1]),
    "MLP 64-256-128-10, two": (partial(mlp, 64, 256, 128, 10), (64,), 64, 15, ALL[:2]),
    "MLP 20-64-64-10 on slow data": (Sleeps, (20,), 32, 32, ALL),
    "ResNet-18, 32x32": (resnet18, (3, 32, 32), 32, 180, ALL),
}
"""Name -> net, shape of a sample, samples of a batch, seconds of training, callbacks."""


def timed(callback: Any, spent: list[float]) -> Any:
    def around(hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return hook(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - started

    for name in HOOKS:
        setattr(callback, name, partial(around, getattr(callback, name)))
    return callback


def steps_in(net: nn.Module, data: DataLoader, seconds: float) -> int:
    """Steps that a plain training takes in so many seconds."""
    counts = []
    for steps in (4, 4, 24):  # the first is cold
        started = time.perf_counter()
        fit(net, data, steps, [])
        counts.append(time.perf_counter() - started)
    return max(20, int(seconds / (counts[2] - counts[1]) * 20))


def fit(net: nn.Module, data: DataLoader, steps: int, callbacks: list[Any]) -> None:
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=callbacks, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, logger=TensorBoardLogger(folder),
        )  # fmt: skip
        trainer.fit(Classifier(net), data)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    columns = ("run", "callbacks", "run, s", "checks, s", "all, s", "allowed, s", "points")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in names or RUNS:
        make, shape, batch, seconds, classes = RUNS[name]
        torch.manual_seed(0)
        data = DataLoader(TensorDataset(torch.randn(batch * 100, *shape), torch.randint(10, (batch * 100,))), batch)
        steps, spent = steps_in(make(), data, seconds), [0.0]
        callbacks = [timed(c(), spent) for c in classes]
        started = time.perf_counter()
        fit(make(), data, steps, callbacks)
        whole = time.perf_counter() - started
        points = ", ".join(f"{c.family} {len(c.history.get(f'{c.family}/overhead', ()))}" for c in callbacks)
        checks = sum(c.account.checked for c in callbacks)
        allowed = max(checks + max(FLOOR, AHEAD * DEFAULT_OVERHEAD * whole), DEFAULT_OVERHEAD * whole)
        cells = (name, len(callbacks), f"{whole:.1f}", f"{checks:.2f}", f"{spent[0]:.2f}", f"{allowed:.1f}", points)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
