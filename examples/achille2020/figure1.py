"""Figure 1 of Achille, Paolini & Soatto: log det of the Fisher information while a small network learns a boundary.

    python examples/achille2020/figure1.py

A fully connected network 2-16-16-1 (tanh, 337 weights) learns two spirals by SGD. Its exact Fisher information matrix
F, from all training points, is measured by ``WeightInfoCallback`` as log det(N F + cI) in nats, with N = 500 points and
the damping c = beta / lambda_² = 1, so a direction that does not matter counts 0. The paper says no more than
"3-layers fully connected" and "2D points": all else was chosen by how fast the task is learned, before F was looked at.
The paper's claims are judged by criteria on the curves (``feature_learning.py``).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from feature_learning import Curves, bumps, summary, table, verdicts
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import WeightInfoCallback

POINTS, SIDE, GRID = 500, 8.0, 81
SNAPSHOTS = 6


def spirals(seed: int, turns: float = 1.5, noise: float = 0.05, size: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return points ``(N, 2)`` on two spirals, and the spiral of each, ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(POINTS) % 2
    t = torch.rand(POINTS, generator=generator).sqrt()
    angle = 2 * math.pi * turns * t + math.pi * y
    x = size * t[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return x + noise * torch.randn(POINTS, 2, generator=generator), y.float()


def plane() -> Tensor:
    """Return a grid over the square around the data, ``(G * G, 2)``, row by row."""
    ends = torch.linspace(-SIDE / 2, SIDE / 2, GRID)
    return torch.cartesian_prod(ends, ends).flip(1)


class Net(pl.LightningModule):
    """Three layers."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, x):
        return self.net(x)[:, 0]

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class Boundary(pl.Callback):
    """Keeps the logits over the plane and the training accuracy of every n-th step and of the end."""

    def __init__(self, x: Tensor, y: Tensor, every: int):
        self.x, self.y, self.every = x, y, every
        self.logits: dict[int, np.ndarray] = {}
        self.accuracy: dict[int, float] = {}

    @torch.no_grad()
    def keep(self, module: Net, step: int) -> None:
        self.logits[step] = module(plane()).reshape(GRID, GRID).double().numpy()
        self.accuracy[step] = ((module(self.x) > 0) == (self.y > 0)).double().mean().item()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            self.keep(pl_module, trainer.global_step)

    def on_train_end(self, trainer, pl_module):
        self.keep(pl_module, trainer.global_step)


def train(seed: int, steps: int, every: int, logger: TensorBoardLogger) -> Curves:
    """Train once, with the data, initial weights and batches of a seed."""
    pl.seed_everything(seed, verbose=False)
    x, y = spirals(seed)
    boundary = Boundary(x, y, every)
    info = WeightInfoCallback(
        beta=1.0,
        lambda_=1.0,
        curvature="matrix",
        adapter=lambda net, batch: (net(batch[0]), None, "bernoulli"),  # no labels: losses and bounds are not used here
        every_n_train_steps=every,
        reference=(x, y),
        num_samples=POINTS,
        summary=False,
    )
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=logger,
        callbacks=[info, boundary],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True))
    log_det = dict(info.history["weight_info/log_det"])
    at = sorted(log_det)
    return Curves(
        at,
        np.array([log_det[step] for step in at]),
        np.stack([boundary.logits[step] for step in at]),
        np.array([boundary.accuracy[step] for step in at]),
        SIDE,
    )


def draw(run: Curves, x: Tensor, y: Tensor) -> Figure:
    """Draw log det over training, its bumps, and snapshots of the boundary below."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, SNAPSHOTS, height_ratios=(2, 1.3))
    top = figure.add_subplot(grid[0, :], xlabel="optimiser step", ylabel="log det (N F + I) [nats]")
    right = top.twinx()
    right.plot(run.steps, run.length, color="tab:orange", linewidth=1, alpha=0.8)
    right.set_ylabel("length of the boundary", color="tab:orange")
    right.set_ylim(0)
    top.plot(run.steps, run.log_det, color="tab:blue", linewidth=1.5, label="log det (N F + I)")
    found = [bump.top for bump in bumps(run.log_det)]
    top.plot([run.steps[i] for i in found], run.log_det[found], "v", color="tab:red", markersize=5, label="bump")
    top.set_zorder(right.get_zorder() + 1)
    top.patch.set_visible(False)
    top.margins(x=0.02)
    top.legend(frameon=False, loc="lower right")
    ends = np.linspace(-SIDE / 2, SIDE / 2, GRID)
    for column, i in enumerate(snapshots(run)):
        top.axvline(run.steps[i], color="0.6", linewidth=0.8, linestyle=":")
        axes = figure.add_subplot(grid[1, column], aspect="equal", xticks=[], yticks=[])
        axes.contourf(ends, ends, run.logits[i] > 0, levels=[-0.5, 0.5, 1.5], colors=["#c6dbef", "#fdd0a2"])
        axes.scatter(*x.T.numpy(), c=y.numpy(), cmap="coolwarm", s=1)
        axes.set(xlim=(-3.4, 3.4), ylim=(-3.4, 3.4))
        axes.set_title(f"step {run.steps[i]}\naccuracy {run.accuracy[i]:.2f}", fontsize=9)
    return figure


def snapshots(run: Curves) -> list[int]:
    """Choose measured steps that are evenly spread over the boundary's movement, so each shows something new."""
    way = np.r_[0, run.movement.cumsum()]
    return [int(np.searchsorted(way, way[-1] * share)) for share in np.linspace(0, 1, SNAPSHOTS)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="how many runs (default 3, with --full 8)")
    parser.add_argument("--steps", type=int, help="optimiser steps of each (default 2000, with --full 6000)")
    parser.add_argument("--every", type=int, default=25, help="steps between measurements")
    parser.add_argument("--full", action="store_true", help="more seeds and steps: minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/achille2020"), help="folder of figure and event files")
    arguments = parser.parse_args(argv)
    seeds = arguments.seeds or (8 if arguments.full else 3)
    steps = arguments.steps or (6000 if arguments.full else 2000)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    runs = []
    for seed in range(seeds):
        logger = TensorBoardLogger(arguments.out, name="figure1", version=f"seed{seed}")
        runs.append(train(seed, steps, arguments.every, logger))
        figure = draw(runs[-1], *spirals(seed))
        logger.experiment.add_figure("achille2020/figure1", figure, steps)
        logger.experiment.flush()
        if seed == 0:
            figure.savefig(arguments.out / "figure1.png", dpi=120)
        print(
            f"seed {seed}: log det {runs[-1].log_det[0]:.1f} -> {runs[-1].log_det[-1]:.1f} nats, boundary "
            f"{runs[-1].length[0]:.1f} -> {runs[-1].length[-1]:.1f}, accuracy {runs[-1].accuracy[-1]:.3f}"
        )

    rows = verdicts(runs)
    print(f"\n{table(rows)}\n")
    print(f"(a) the Fisher increases with the boundary's complexity: {summary(rows, 'a')}")
    print(f"(b) its curve has small bumps: {summary(rows, 'b')}")
    print(f"(c) these correspond to learning a feature: {summary(rows, 'c')}")
    print(f"Figure (seed 0): {arguments.out / 'figure1.png'}")
    print(f"Look at all seeds:  tensorboard --logdir {arguments.out}")


if __name__ == "__main__":
    main()
