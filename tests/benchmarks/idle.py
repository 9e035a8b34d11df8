"""What a callback costs between its points: the time of its hook at a batch that is not measured, per training step.

    python tests/benchmarks/idle.py

One Trainer run of an MLP on one thread; medians over the batches after the first points.
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

from lightning_info import FisherTraceCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import Classifier, trainer

STEPS = 4000


class Timed(FisherTraceCallback):
    """Notes the duration of its hook for every batch."""

    def on_train_batch_start(self, *args):
        start = time.perf_counter()
        super().on_train_batch_start(*args)
        durations.append(time.perf_counter() - start)


class Steps(Callback):
    """Notes the time at every batch."""

    def on_train_batch_start(self, *args):
        times.append(time.perf_counter())


durations: list[float] = []
times: list[float] = []


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(64 * 100, 784)
    net = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 3))
    data = DataLoader(TensorDataset(x, torch.randint(0, 3, (len(x),))), 64)
    print("| callback | hook of an idle batch, µs | training step, µs | share |\n|---|---|---|---|")
    for name, options in {"every_n_train_steps=10**9": {"every_n_train_steps": 10**9}, "default schedule": {}}.items():
        durations.clear()
        times.clear()
        trainer(Timed(summary=False, **options), Steps(), max_epochs=-1, max_steps=STEPS).fit(Classifier(net), data)
        idle = statistics.median(durations[100:])
        step = statistics.median(b - a for a, b in pairwise(times[100:]))
        print(f"| {name} | {1e6 * idle:.1f} | {1e6 * step:.0f} | {idle / step:.2%} |")


if __name__ == "__main__":
    main()
