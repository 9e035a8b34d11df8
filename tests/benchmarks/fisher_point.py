"""Cost of one Fisher-trace point, replica included, as a ratio to a plain forward + backward pass of one batch.

    python tests/benchmarks/fisher_point.py

256 reference samples, 64 draws, batches of 64; all methods interleaved in one process on one thread, medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.gradients import Plan
from lightning_info.quantities.fisher_trace.sampling import pool_trace
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.samples_at_once import samples_at_once
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import DigitsNet

BATCH, POOL, DRAWS, REPEATS = 64, 256, 64, 15
ENGINES = ("backpack", "backpack_vmap", "func", "loop")


class Mlp(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


def snapshot_of(module: pl.LightningModule, pool: tuple[torch.Tensor, ...], at_once: int) -> ModelSnapshot:
    predictor = Predictor(StandInTrainer(None))
    return ModelSnapshot(replicate(module), predictor, [pool], BATCH, torch.device("cpu"), at_once=at_once)


def point(module: pl.LightningModule, pool: tuple[torch.Tensor, ...], engine: str, at_once: int) -> None:
    pool_trace(snapshot_of(module, pool, at_once), Plan(engine, 2), "importance", DRAWS, torch.Generator())


def plain(module: pl.LightningModule, pool: tuple[torch.Tensor, ...]) -> None:
    x, y = pool
    module.zero_grad()
    net = module.net if isinstance(module, Mlp) else module
    F.cross_entropy(net(x[:BATCH]), y[:BATCH]).backward()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (POOL,))
    cases = {
        "MLP 784-256-256-10": (Mlp(), (torch.randn(POOL, 784), labels)),
        "quickstart's DigitsNet": (DigitsNet(), (torch.randn(POOL, 1, 8, 8), labels)),
    }
    print("| module | plain, ms | backpack | backpack_vmap | func | loop |\n|---|---|---|---|---|---|")
    for name, (module, pool) in cases.items():
        at_once = samples_at_once(snapshot_of(module, pool, 0), POOL)  # as the check before the first step does
        methods = {
            "plain": lambda: plain(module, pool),  # noqa: B023 (called in this turn of the loop)
            **{engine: lambda e=engine: point(module, pool, e, at_once) for engine in ENGINES},  # noqa: B023
        }
        times: dict[str, list[float]] = {method: [] for method in methods}
        for _ in range(REPEATS):
            for method, run in methods.items():
                start = time.perf_counter()
                run()
                times[method].append(time.perf_counter() - start)
        median = {method: statistics.median(values) for method, values in times.items()}
        ratios = " | ".join(f"{median[engine] / median['plain']:.1f}" for engine in ENGINES)
        print(f"| {name} | {1e3 * median['plain']:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
