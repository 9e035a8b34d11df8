"""What the check before the first step takes, as a ratio to a plain forward and backward pass of a batch.

    python tests/benchmarks/start_check.py

Wall clock on one thread, the lowest of several runs: each callback alone, and all four in one Trainer, where the first
one finds the samples for the others. Trials of what a point will cost are in it.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from budget import ALL, fit, mlp
from engines import resnet18
from quickstart import DigitsNet

NETS = {
    "MLP 784-256-256-10": (lambda: mlp(784, 256, 256, 10), (784,), 64, 5),
    "quickstart's DigitsNet": (DigitsNet, (1, 8, 8), 64, 5),
    "ResNet-18, 32x32": (resnet18, (3, 32, 32), 32, 2),
}
"""Name -> net, shape of a sample, samples of a batch, repetitions."""


class Ends(Callback):
    """Ends the run before the first step, as Ctrl-C does."""

    def on_train_batch_start(self, *args: object) -> None:
        raise KeyboardInterrupt


def plain(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    started = time.perf_counter()
    F.cross_entropy(net(x), y).backward()
    return time.perf_counter() - started


def checked(net: nn.Module, data: DataLoader, classes: tuple[type, ...]) -> float:
    """Seconds; so many samples are asked for that no point is measured at step 0."""
    callbacks = [kind(num_samples=len(data.dataset)) for kind in classes]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(KeyboardInterrupt, SystemExit):
        fit(net, data, 10**6, [*callbacks, Ends()])
    return sum(callback.account.checked for callback in callbacks)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = [kind.__name__.removesuffix("Callback") for kind in ALL]
    print(f"| net | plain, ms | {' | '.join(names)} | all four |\n{'|---' * (len(names) + 3)}|", flush=True)
    for name, (make, shape, batch, repetitions) in NETS.items():
        torch.manual_seed(0)
        x, y = torch.randn(2 * batch, *shape), torch.randint(10, (2 * batch,))
        data, net = DataLoader(TensorDataset(x, y), batch), make()
        unit = min(plain(net, x[:batch], y[:batch]) for _ in range(5))
        sets = [*((kind,) for kind in ALL), ALL]
        times = [min(checked(make(), data, classes) for _ in range(repetitions)) for classes in sets]
        print(f"| {name} | {1e3 * unit:.1f} | {' | '.join(f'{t / unit:.1f}' for t in times)} |", flush=True)


if __name__ == "__main__":
    main()
