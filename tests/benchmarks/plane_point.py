"""Cost of a default point of ``InfoPlaneCallback``, as a ratio to a plain forward + backward pass of 64 samples.

    python tests/benchmarks/plane_point.py [name of a net ...]

A real Trainer with a TensorBoard logger, 1024 reference samples, a point at every step; beside each point a plain pass
of the same net. CPU time on one thread; medians, with the quartiles of the ratio. Figures are not in it
(``figures.py``).
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import InfoPlaneCallback
from lightning_info.callbacks import points
from lightning_info.replica.snapshot import ModelSnapshot

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from budget import mlp
from engines import resnet18
from models import Classifier
from quickstart import DigitsNet

BATCH, SAMPLES = 64, 1024
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 64-256-128-10": (partial(mlp, 64, 256, 128, 10), (64,), 60),
    "MLP 784-256-256-10": (partial(mlp, 784, 256, 256, 10), (784,), 60),
    "quickstart's DigitsNet": (DigitsNet, (1, 8, 8), 60),
    "ResNet-18, 32x32": (resnet18, (3, 32, 32), 4),
}
"""Name -> net, shape of a sample, points."""

PHASES = ("statistics of BatchNorm", "forward", "histograms", "all the rest")


class Timer:
    """CPU seconds of calls, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.process_time() - started

        return timed


class Plane(InfoPlaneCallback):
    """Draws no figures."""

    def _draw(self, *args: Any) -> None:
        pass


class PlainPasses(Callback):
    """A plain pass after every point; keeps what the point took, by phase, and the time of the pass as ``plain``."""

    def __init__(self, timer: Timer, net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.timer, self.net, self.x, self.y = timer, net, x, y
        self.points: list[dict[str, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        seconds, self.timer.seconds = self.timer.seconds, {}
        self.net.zero_grad()
        started = time.process_time()
        F.cross_entropy(self.net(self.x), self.y).backward()
        seconds["plain"] = time.process_time() - started
        if "point" in seconds:
            seconds["all the rest"] = seconds["point"] - sum(seconds.get(phase, 0.0) for phase in PHASES)
            self.points.append(seconds)


def points_of(make: Callable[[], nn.Module], shape: tuple[int, ...], count: int) -> list[dict[str, float]]:
    """CPU seconds of each point's phases, and of the plain pass beside it; the first three are left out."""
    timer = Timer()
    x, y = torch.randn(SAMPLES, *shape), torch.randint(10, (SAMPLES,))
    net = make()
    passes = PlainPasses(timer, make(), x[:BATCH], y[:BATCH])
    callback = Plane(every_n_train_steps=1, summary=False, num_samples=SAMPLES)
    with ExitStack() as stack:
        for phase, owner, name in (
            ("point", callback, "_measure_and_log"),
            ("statistics of BatchNorm", ModelSnapshot, "use_reference_statistics"),
            ("forward", ModelSnapshot, "_pass"),
            ("histograms", points, "report_histogram"),
        ):
            stack.enter_context(patch.object(owner, name, timer.around(phase, getattr(owner, name))))
        Trainer(
            accelerator="cpu",
            max_steps=SAMPLES // BATCH + count + 3,
            max_epochs=-1,
            callbacks=[callback, passes],
            logger=TensorBoardLogger(stack.enter_context(TemporaryDirectory())),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(net if isinstance(net, DigitsNet) else Classifier(net), DataLoader(TensorDataset(x, y), BATCH))
    return passes.points[3:]


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"| net | plain, ms | a point | {' | '.join(PHASES)} |\n{'|---' * (len(PHASES) + 3)}|", flush=True)
    for name, case in NETS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(0)
        found = points_of(*case)
        ratios = {
            phase: [seconds.get(phase, 0.0) / seconds["plain"] for seconds in found] for phase in ("point", *PHASES)
        }
        low, middle, high = statistics.quantiles(ratios["point"], n=4)
        plain = 1e3 * statistics.median(seconds["plain"] for seconds in found)
        parts = " | ".join(f"{statistics.median(ratios[phase]):.2f}" for phase in PHASES)
        print(f"| {name} | {plain:.1f} | {middle:.1f} ({low:.1f}-{high:.1f}) | {parts} |", flush=True)


if __name__ == "__main__":
    main()
