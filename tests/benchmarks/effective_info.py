"""Cost of one measurement of effective information, two distortions, against plain passes over the same samples.

    python tests/benchmarks/effective_info.py

A digits MLP (64-32-16-10, tanh) and the quickstart's convolutional net, trained for five epochs; 256 reference samples,
all defaults. The ratio is to a forward and backward pass over these samples in the batches of training. ``passes``
counts how often all of them went through the net with weight noise; ``estimates`` is the share of the time that the
information takes once the draws are there; ``memory`` is what the measurement takes beside what was there;
``forecast`` is what was announced at the start by the measured time, and ``errors`` are the mean standard errors of
I(X;Z) at the two distortions. CPU time of one thread.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.callbacks.base import InfoCallback
from lightning_info.quantities.effective_information import conditional_gaussian as linear_layers
from lightning_info.quantities.effective_information import noisy_activations, quantity
from lightning_info.quantities.effective_information.quantity import EffectiveInformationOfLayers
from lightning_info.quantities.weight_information import loss_rise, noisy_loss
from lightning_info.quantities.weight_information.direct_call import DirectCalls
from lightning_info.replica import timing

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import DigitsNet, loaders

BATCH, SAMPLES, EPOCHS, REPEATS = 64, 256, 5, 21


class Mlp(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def memory(field: str) -> float:
    """Resident memory now (``VmRSS``) or at its highest (``VmHWM``), MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Watched(EffectiveInformationOfLayers):
    """Notes what every measurement took."""

    seconds = estimating = megabytes = 0.0
    rows = 0
    announced = math.nan
    values: ClassVar[dict[str, float]] = {}

    def cost(self, snapshot, samples):
        self.announced = super().cost(snapshot, samples)
        return self.announced

    def measure(self, snapshot, point):
        self.rows, self.estimating = 0, 0.0
        DirectCalls.read = lambda *args: self._count_calls(*args)
        hook = snapshot.module.register_forward_hook(self._count)
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before, start = memory("VmRSS"), time.process_time()
        values = super().measure(snapshot, point)
        self.seconds, self.megabytes = time.process_time() - start, memory("VmHWM") - before
        hook.remove()
        DirectCalls.read = read
        self.values = values
        return values

    def error(self, family):
        """Mean over the layers that have a value."""
        errors = [v for tag, v in self.values.items() if tag.startswith(f"{family}_stderr/I_XZ/")]
        return statistics.mean(error for error in errors if not math.isnan(error))

    def _count(self, module, args, output):
        self.rows += noisy and len(output)

    def _count_calls(self, calls, noises, body):
        self.rows += len(noises) * sum(call.samples for call in calls.calls)
        return read(calls, noises, body)

    def estimate(self, *args, **kwargs):
        start = time.process_time()
        found = information(*args, **kwargs)
        self.estimating += time.process_time() - start
        return found


noisy = False
moved, information, read = noisy_loss.moved, quantity.effective_information, DirectCalls.read


@contextmanager
def counted(snapshot, noise):
    global noisy
    with moved(snapshot, noise):
        noisy = True
        yield
        noisy = False


def cpu_seconds(run, device):
    start = time.process_time()
    run()
    return time.process_time() - start


def plain(module: pl.LightningModule, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Median CPU seconds of a forward and backward pass over all samples."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        for x, y in batches:
            F.cross_entropy(module(x), y).backward()
        times.append(time.process_time() - start)
    return statistics.median(times)


def row(name: str, module: pl.LightningModule) -> str:
    train, _ = loaders(BATCH)
    watched = Watched(None, None, (0.05, 0.5), 64, "diagonal", 0)
    callback = InfoCallback(watched, every_n_epochs=EPOCHS, num_samples=SAMPLES, on_error="raise", summary=False)
    quantity.effective_information = watched.estimate
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(callbacks=[callback], max_epochs=EPOCHS, accelerator="cpu", **options).fit(module, train)
    levels = [dict(curve) for tag, curve in callback.history.items() if tag.endswith("/beta")]
    reached = sum(level[len(train) * EPOCHS] > 0 for level in levels)
    x, y = train.dataset[:SAMPLES]
    reference = plain(module.eval(), list(zip(x.split(BATCH), y.split(BATCH), strict=True)))
    return (
        f"| {name} | {1e3 * reference:.1f} | {watched.seconds:.1f} | {watched.seconds / reference:.0f} | "
        f"{watched.rows / SAMPLES:.0f} ({reached} levels reached) | {watched.estimating / watched.seconds:.0%} | "
        f"{watched.megabytes:.0f} | {watched.announced / watched.seconds:.2f} | "
        f"{', '.join(f'{watched.error(family):.3f}' for family in watched._targets)} |"
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in (loss_rise, noisy_activations, linear_layers):
        part.moved = counted
    timing.seconds = cpu_seconds
    print("| net | plain, ms | measurement, s | ratio | passes | estimates | memory, MB | forecast | errors |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(row("MLP 64-32-16-10", Mlp()))
    print(row("quickstart's DigitsNet", DigitsNet()))


if __name__ == "__main__":
    main()
