"""What callbacks cost between their points: the time of their hooks at a batch that is not measured, per training step.

    python tests/benchmarks/idle.py

One epoch of a small MLP on one thread; medians over the batches after the first points. WeightInfoCallback adds up the
losses of the first epoch (``weight_info/prequential``).
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, GradientNoiseCallback, InfoCallback, WeightInfoCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import Classifier, trainer

STEPS, BATCH, FEATURES = 3000, 64, 128
HOOKS = ("on_train_batch_start", "on_before_backward", "on_train_batch_end")
NEVER = {"every_n_train_steps": 10**9}


def timed(callback: InfoCallback, spent: list[float]) -> InfoCallback:
    """Have a callback add the time of its hooks for a batch to a list, by batches."""

    def watched(hook, is_first: bool):
        def call(*args):
            start = time.perf_counter()
            hook(*args)
            duration = time.perf_counter() - start
            if is_first:
                spent.append(duration)
            else:
                spent[-1] += duration

        return call

    for name in HOOKS:
        setattr(callback, name, watched(getattr(callback, name), name == HOOKS[0]))
    return callback


class Steps(Callback):
    """Notes the time at every batch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args):
        self.times.append(time.perf_counter())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(BATCH * STEPS, FEATURES)
    data = DataLoader(TensorDataset(x, torch.randint(0, 3, (len(x),))), BATCH)
    print("| callback | hooks of an idle batch, µs | training step, µs | share |\n|---|---|---|---|")
    for name, callback in {
        "FisherTraceCallback, an interval": FisherTraceCallback(summary=False, **NEVER),
        "FisherTraceCallback, default schedule": FisherTraceCallback(summary=False),
        "GradientNoiseCallback, an interval": GradientNoiseCallback(summary=False, **NEVER),
        "WeightInfoCallback, an interval": WeightInfoCallback(summary=False, num_samples=32, **NEVER),
    }.items():
        net = torch.nn.Sequential(torch.nn.Linear(FEATURES, 256), torch.nn.ReLU(), torch.nn.Linear(256, 3))
        spent, steps = [], Steps()
        trainer(timed(callback, spent), steps, max_epochs=1).fit(Classifier(net), data)
        idle = statistics.median(spent[100:])
        step = statistics.median(b - a for a, b in pairwise(steps.times[100:]))
        print(f"| {name} | {1e6 * idle:.1f} | {1e6 * step:.0f} | {idle / step:.2%} |")


if __name__ == "__main__":
    main()
