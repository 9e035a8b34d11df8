"""The configurations in which training must not notice the callbacks, and how one of them is judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import differences, first_difference, fit_once, run
from invariance import modules as m
from invariance.datasets import Epochs, OwnGenerators, Stream, noisy
from lightning.pytorch import Callback
from lightning.pytorch import callbacks as builtin
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from models import Classifier, loader
from torch import nn
from torch.utils.data import DataLoader

from lightning_info import FisherTraceCallback


def callbacks_under_test(num_samples: int = 12, adapter: Any = None) -> list[Any]:
    """Every callback of the package, all at once; the clock must not decide how many points there are."""
    common = {"num_samples": num_samples, "adapter": adapter, "on_error": "raise", "summary": False}
    often = {**common, "every_n_train_steps": 1}
    return [
        FisherTraceCallback("importance", draws=5, prefix="drawn", **often),
        FisherTraceCallback("exact", also=("empirical",), batch_norm="reference", prefix="reference", **often),
        FisherTraceCallback(prefix="default", max_overhead=1.0, **common),
    ]


@dataclass
class Case:
    """A module, callbacks beside ours, arguments of ours, and options of :func:`harness.run` and of the Trainer."""

    module: Callable[[], Any]
    callbacks: Callable[[], list[Callback]] = list
    measure: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, before: list[Any] = [], after: list[Any] = []) -> dict[str, list[Any]]:  # noqa: B006
        return run(self.module, *before, *self.callbacks(), *after, **self.options)


@dataclass
class Verdict:
    disturbed: dict[str, int]
    """Name of what differs -> the first recording in which it does."""
    points: list[int]
    """Points with a finite value, of each callback."""
    caught: bool
    """The harness found both acts of the saboteur, in the recording that follows them."""


class Saboteur(Callback):
    """In the middle of a run moves one weight to the next number, and draws one random number."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.batch == 0:
            torch.rand(1)
            weight = next(pl_module.parameters()).data.view(-1)
            weight[0] = torch.nextafter(weight[0], torch.full_like(weight[0], math.inf))
        self.batch -= 1


def judge(case: Case) -> Verdict:
    """Train without our callbacks, with them (before and after the others), and with the saboteur in their place."""
    plain = case.run()
    disturbed = {}
    for first in (True, False) if case.callbacks() else (True,):
        ours = callbacks_under_test(**case.measure)
        trace = case.run(before=ours) if first else case.run(after=ours)
        disturbed |= {name: first_difference(plain, trace, name) for name in differences(plain, trace)}
    middle = (len(plain["rng/torch"]) - 1) // 2
    sabotaged = case.run(before=[Saboteur(middle)])
    found = {name for name in differences(plain, sabotaged) if first_difference(plain, sabotaged, name) == middle}
    caught = "rng/torch" in found and any(name.startswith("weight/") for name in found)
    return Verdict(disturbed, [points(callback) for callback in ours], caught)


def points(callback: Any) -> int:
    """Steps at which something finite was measured."""
    return len({step for curve in callback.history.values() for step, value in curve if math.isfinite(value)})


# ---- ways to fit


def twice(make_trainer, module, *data):
    trainer = make_trainer()
    trainer.fit(module, *data)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, *data)


def with_two_trainers(make_trainer, module, *data):
    make_trainer().fit(module, *data)
    make_trainer(max_epochs=1).fit(module, *data)


def resumed(make_trainer, module, *data):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, *data)
    trainer.save_checkpoint("first.ckpt")
    make_trainer(max_epochs=3).fit(module, *data, ckpt_path="first.ckpt")


def between_evaluations(make_trainer, module, data, val_data):
    trainer = make_trainer()
    trainer.validate(module, val_data, verbose=False)
    trainer.fit(module, data, val_data)
    trainer.validate(module, val_data, verbose=False)


def tuned(make_trainer, module, *data):
    trainer = make_trainer()
    Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=1)
    Tuner(trainer).lr_find(module, num_training=8)
    trainer.fit(module)


class Draws(Callback):
    """Draws random numbers of its own."""

    def on_train_batch_start(self, *args):
        torch.rand(1)

    on_train_batch_end = on_train_epoch_end = on_train_batch_start


def averaging(kind, **options):
    return {"callbacks": lambda: [getattr(builtin, kind)(**options)], "max_epochs": 3}


def combined(mode, tuples=False, other=8):
    parts = (lambda: loader(24), lambda: loader(40, other)) if not isinstance(tuples, dict) else ()
    return parts, mode


# ---- the cases


def case(module, callbacks=list, measure=None, **options):
    return Case(module, callbacks, measure or {}, options)
