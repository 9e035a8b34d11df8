"""Cost of the gradient noise, as a ratio to plain forward + backward passes of the same samples.

    python tests/benchmarks/gradient_noise.py

256 reference samples in the batches of training; `norms` are per-sample norms alone, `noise` is the measurement,
`point` has the replica too. CPU time on one thread, methods interleaved, medians.
"""

from __future__ import annotations

import statistics
import time

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.gradients import Plan
from lightning_info.gradients.batches import take
from lightning_info.quantities.gradient_noise.loss_gradient import LossForm
from lightning_info.quantities.gradient_noise.pooled import LikelihoodGradients, pooled_noise
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

POOL, REPEATS = 256, 15


class Trained(pl.LightningModule):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Encoder(nn.Module):
    """A transformer on 16 tokens of width 64."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


def convolutions() -> nn.Module:
    parts: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        parts += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(1024, 10))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def snapshot_of(module: pl.LightningModule, pool: tuple[torch.Tensor, ...], batch: int) -> ModelSnapshot:
    return ModelSnapshot(replicate(module), Predictor(StandInTrainer(None)), [pool], batch, torch.device("cpu"))


def plain(module: pl.LightningModule, pool: tuple[torch.Tensor, ...], batch: int) -> None:
    for start in range(0, POOL, batch):
        module.zero_grad()
        module.training_step(take(pool, slice(start, start + batch)), 0).backward()


def norms(snapshot: ModelSnapshot, engine: str) -> None:
    for part in snapshot.parts():
        seen: list[Prediction] = []

        def outputs(module: nn.Module, batch: object, seen: list[Prediction] = seen) -> torch.Tensor:
            seen.append(snapshot.predictor(module, batch))
            return seen[-1].outputs

        if engine != "backpack":
            outputs(snapshot.module, part)
        cotangents = (one.loss_gradient() for one in seen[:1])
        Plan(engine, 2).squared_norms(snapshot.module, outputs, part, cotangents)


def noise(snapshot: ModelSnapshot, engine: str) -> None:
    gradients = LikelihoodGradients(snapshot, Plan(engine, 2), LossForm())
    pooled_noise(snapshot, gradients, {}, torch.Generator())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (POOL,))
    cases = {
        "MLP 784-256-256-10": (mlp(256), (784,), 64, "backpack"),
        "MLP 784-1024-1024-10": (mlp(1024), (784,), 64, "backpack"),
        "three convolutions, 32 x 32": (convolutions(), (3, 32, 32), 64, "backpack"),
        "transformer, 16 tokens": (Encoder(), (16, 64), 64, "backpack_vmap"),
    }
    print("| module, batch | engine | plain, ms | norms | noise | point |\n|---|---|---|---|---|---|")
    for name, (net, shape, batch, engine) in cases.items():
        module, pool = Trained(net), (torch.randn(POOL, *shape), labels)
        snapshot = snapshot_of(module.eval(), pool, batch)
        methods = {
            "plain": lambda: plain(module, pool, batch),  # noqa: B023 (called in this turn of the loop)
            "norms": lambda: norms(snapshot, engine),  # noqa: B023
            "noise": lambda: noise(snapshot, engine),  # noqa: B023
            "point": lambda: noise(snapshot_of(module, pool, batch), engine),  # noqa: B023
        }
        times: dict[str, list[float]] = {method: [] for method in methods}
        for _ in range(REPEATS):
            for method, run in methods.items():
                start = time.process_time()
                run()
                times[method].append(time.process_time() - start)
        median = {method: statistics.median(values) for method, values in times.items()}
        ratios = " | ".join(f"{median[method] / median['plain']:.2f}" for method in ("norms", "noise", "point"))
        print(f"| {name}, {batch} | `{engine}` | {1e3 * median['plain']:.1f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
