"""Proposition 3.2 of Achille, Paolini & Soatto: do weights that hold less make activations that are more invariant?

    python examples/achille2020/invariance.py

The paper: "decreasing the Fisher Information that the weights contain about the training set (which can be done by
controlling the noise of the stochastic optimization scheme) decreases the apparently unrelated effective information
between inputs and activations at test time", so that "a network with minimal information in the weights is forced to
learn a representation that is effectively invariant to nuisances". It shows no experiment on this.

Here a net 64-32-16-10 (tanh) learns scikit-learn's digits by plain SGD with batches of several sizes at one learning
rate; a small batch is a noisy gradient. All are trained **to the same training loss**. After the same number of steps
or epochs some would be further than others, and as the Fisher information of a classifier falls while it becomes
confident, that would be read as an effect of the batch. At the same loss the weights are equally sufficient, and differ
in what they hold for it. Learning rate and loss were chosen by how fast the task is learned, nothing else.

z is the second hidden layer before its tanh, where saturated units keep their noise. Measured at the end: tr F of the
weights (``FisherTraceCallback``), the effective information I(X;Z) at a fixed beta (the Gaussian channel of proposition
3.2, corrected), and on test images how z responds to a shift by a pixel and to a rotation. "Effectively invariant" is a
statement about z under weight noise, so the response is taken in units of that noise. For a trained net, z itself
should stay the same: so the response is also measured in units of the spread of z over images, with the norm of dz/dx,
and all of this for tanh(z) too.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from feature_learning import CORRELATION, Row, spearman, summary, table
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import colormaps
from matplotlib.figure import Figure
from representation import DEGREES, information, noise_covariance, noisy_responses, responses
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_info import FisherTraceCallback

LR, LOSS, EVERY, MOST_STEPS = 0.4, 0.02, 20, 20_000
BETA = 0.1
BATCHES, ALL_BATCHES = (8, 32, 128, 512), (8, 16, 32, 64, 128, 256, 512)


class Net(pl.LightningModule):
    """Net whose ``features`` output z."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16))
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(16, 10))

    def forward(self, x):
        return self.head(self.features(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), LR)


class Until(pl.Callback):
    """Ends the training at a loss over all training samples, checked now and then."""

    def __init__(self, data: TensorDataset, loss: float):
        self.data, self.target, self.loss = data, loss, math.inf

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step % EVERY == 0:
            x, y = self.data.tensors
            self.loss = F.cross_entropy(pl_module(x), y).item()
            trainer.should_stop = self.loss <= self.target


class Point(NamedTuple):
    """One trained net.

    Attributes:
        batch: Number of samples in a batch.
        seed: Seed of weights and batches.
        steps: Steps until the loss was reached.
        loss: The loss reached.
        accuracy: Accuracy on test images.
        trace: tr F, nats per squared weight change.
        information: I(X;Z) at ``BETA``, nats.
        noisy_shift: Response to shifts by one pixel, standard deviations of the weight noise at ``BETA``.
        noisy_rotation: The same to rotations by ±15 degrees.
        slope: Mean norm of dz/dx, spreads of z (over images) per unit of x.
        shift: Mean norm of the response to shifts, spreads of z.
        rotation: The same to rotations.
        tanh_slope: The ``slope`` of tanh(z).
        tanh_shift: The ``shift`` of tanh(z).
        tanh_rotation: The ``rotation`` of tanh(z).
    """

    batch: int
    seed: int
    steps: int
    loss: float
    accuracy: float
    trace: float
    information: float
    noisy_shift: float
    noisy_rotation: float
    slope: float
    shift: float
    rotation: float
    tanh_slope: float
    tanh_shift: float
    tanh_rotation: float


def load() -> tuple[TensorDataset, TensorDataset]:
    """Training and test images ``(N, 64)`` from 0 to 1, and their classes."""
    digits = load_digits()
    x, y = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
    parts = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])


def measure(batch: int, seed: int, loss: float, logger: TensorBoardLogger) -> Point:
    """Train one net to the loss, and measure it."""
    train, test = load()
    pl.seed_everything(seed, verbose=False)
    net, until = Net(), Until(train, loss)
    fisher = FisherTraceCallback(
        estimator="exact", every_n_train_steps=MOST_STEPS, reference=train.tensors, num_samples=256, summary=False
    )
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[fisher, until],
        log_every_n_steps=EVERY,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    sampler = RandomSampler(train, num_samples=MOST_STEPS * batch, generator=torch.Generator().manual_seed(seed))
    trainer.fit(net, DataLoader(train, batch_size=None, sampler=BatchSampler(sampler, batch, drop_last=True)))
    if until.loss > loss:
        raise SystemExit(f"batches of {batch}, seed {seed}: training loss {until.loss:.3g} after {MOST_STEPS} steps")
    net = net.requires_grad_(False).double()
    (x, y), of_training = test.tensors, train.tensors[0].double()
    x, covariance = x.double(), noise_covariance(net, of_training, BETA)
    found = Point(
        batch,
        seed,
        trainer.global_step,
        until.loss,
        (net(x).argmax(1) == y).double().mean().item(),
        fisher.history["fisher/trace"][-1][1],
        information(net.features, of_training, covariance),
        *noisy_responses(net.features, x, covariance),
        *responses(net.features, x),
        *responses(nn.Sequential(net.features, nn.Tanh()), x),
    )
    logger.log_metrics({f"invariance/{name}": getattr(found, name) for name in Point._fields[3:]}, trainer.global_step)
    logger.save()
    return found


def judge(points: Sequence[Point]) -> list[Row]:
    """Rank correlations over the batch sizes, one for each seed."""

    def row(claim: str, a: str, b: str) -> Row:
        values = []
        for seed in sorted({point.seed for point in points}):
            its = [point for point in points if point.seed == seed]
            values.append(spearman(*(np.array([getattr(point, name) for point in its]) for name in (a, b))))
        criterion = f"rank correlation ≥ {CORRELATION:g}"
        return Row(claim, criterion, values, sum(value >= CORRELATION for value in values))

    return [
        row("(a) larger batches leave more Fisher information", "batch", "trace"),
        row("(b) where it is less, so is I(X;Z)", "trace", "information"),
        row("(c) where it is less, z under noise responds less to a shift", "trace", "noisy_shift"),
        row("(c) ... to a rotation", "trace", "noisy_rotation"),
        row("(d) where it is less, z itself is flatter in x", "trace", "slope"),
        row("(d) ... responds less to a shift", "trace", "shift"),
        row("(d) ... responds less to a rotation", "trace", "rotation"),
        row("(e) where it is less, tanh(z) is flatter in x", "trace", "tanh_slope"),
        row("(e) ... responds less to a shift", "trace", "tanh_shift"),
        row("(e) ... responds less to a rotation", "trace", "tanh_rotation"),
    ]


def draw(points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(14, 6.4), layout="constrained")
    batches = sorted({point.batch for point in points})
    trace, noise, spread = (
        "tr F [nats per squared weight change]",
        "response [sd of the noise]",
        "response [spreads of z]",
    )
    panels = [
        ("batch", "trace", "batch size", trace, "(a) Fisher information"),
        ("trace", "information", trace, "I(X;Z) [nats]", f"(b) effective information, beta = {BETA:g}"),
        ("trace", "noisy_shift", trace, noise, "(c) z under noise: shift by a pixel"),
        ("trace", "noisy_rotation", trace, noise, f"(c) z under noise: rotation by {DEGREES:g}°"),
        ("trace", "shift", trace, spread, "(d) z itself: shift by a pixel"),
        ("trace", "rotation", trace, spread, f"(d) z itself: rotation by {DEGREES:g}°"),
        ("trace", "tanh_shift", trace, spread, "(e) tanh(z): shift by a pixel"),
        ("trace", "tanh_rotation", trace, spread, f"(e) tanh(z): rotation by {DEGREES:g}°"),
    ]
    for place, (a, b, xlabel, ylabel, title) in enumerate(panels, 1):
        axes = figure.add_subplot(2, 4, place, xlabel=xlabel, ylabel=ylabel, title=title)
        for number, batch in enumerate(batches):
            its = [point for point in points if point.batch == batch]
            x, y = ([getattr(point, name) for point in its] for name in (a, b))
            colour = colormaps["viridis"](0.9 * number / max(1, len(batches) - 1))
            axes.scatter(x, y, s=22, color=colour, label=f"batches of {batch}")
        if a == "batch":
            axes.set_xscale("log", base=2)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(batches), frameon=False)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="trainings with each batch size (default 3, with --full 8)")
    parser.add_argument("--loss", type=float, default=LOSS, help="training loss at which to stop")
    parser.add_argument("--full", action="store_true", help="more seeds and batch sizes: minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/achille2020"), help="folder of figure and event files")
    arguments = parser.parse_args(argv)
    batches = ALL_BATCHES if arguments.full else BATCHES
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    points = []
    for seed in range(arguments.seeds or (8 if arguments.full else 3)):
        for batch in batches:
            logger = TensorBoardLogger(arguments.out, name="invariance", version=f"batch{batch}_seed{seed}")
            points.append(measure(batch, seed, arguments.loss, logger))
            p = points[-1]
            print(
                f"seed {seed}, batches of {batch}: loss {p.loss:.4f} after {p.steps} steps, test accuracy "
                f"{p.accuracy:.3f}, tr F {p.trace:.3g}, I(X;Z) {p.information:.2f} nats; to a shift "
                f"{p.noisy_shift:.2f} sd of the noise, {p.shift:.3f} spreads; to a rotation {p.noisy_rotation:.2f}, "
                f"{p.rotation:.3f}",
                flush=True,
            )
    out = arguments.out / "invariance"
    figure = draw(points)
    figure.savefig(arguments.out / "invariance.png", dpi=120)
    with SummaryWriter(str(out / "figure")) as writer:
        writer.add_figure("achille2020/invariance", figure)
    rows = judge(points)
    print(f"\n{table(rows)}\n")
    for letter, claim in (
        ("a", "the noise of SGD decides how much Fisher information the weights hold"),
        ("b", "less of it is less effective information in the activations"),
        ("c", "less of it is more invariance under weight noise"),
        ("d", "less of it is more invariance of z itself"),
        ("e", "less of it is more invariance of tanh(z) itself"),
    ):
        print(f"({letter}) {claim}: {summary(rows, letter)}")
    print(f"Figure: {arguments.out / 'invariance.png'}")
    print(f"Look at all runs:  tensorboard --logdir {out}")
    print("Scalars: fisher/trace, invariance/information, invariance/shift, ...; image of the run 'figure'")


if __name__ == "__main__":
    main()
