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

z is the second hidden layer. Measured at the end: tr F of the weights (``FisherTraceCallback``), the effective
information I(X;Z) at a fixed beta (the Gaussian channel of proposition 3.2, corrected), and on test images the mean
norm of dz/dx and the response of z to a shift by a pixel and to a rotation, in units of the spread of z over images.
"""

from __future__ import annotations

import argparse
import logging
import math
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_info import FisherTraceCallback
from lightning_info.functional import diagonal_activation_covariance, gaussian_channel_information, layer_fisher

LR, LOSS, EVERY, MOST_STEPS = 0.4, 0.02, 20, 20_000
BETA, DEGREES = 0.1, 15.0


class Net(pl.LightningModule):
    """``features`` gives z."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
        self.head = nn.Linear(16, 10)

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
    """Ends the training at a loss over all training samples, looked at now and then."""

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
        batch: Samples in a batch.
        seed: Of weights and batches.
        steps: Until the loss was reached.
        loss: Reached.
        accuracy: On test images.
        trace: tr F, nats per squared weight change.
        information: I(X;Z) at ``BETA``, nats.
        slope: Mean norm of dz/dx, spreads of z per unit of x.
        shift: Response to shifts by one pixel, spreads of z.
        rotation: Response to rotations by ±15 degrees, spreads of z.
    """

    batch: int
    seed: int
    steps: int
    loss: float
    accuracy: float
    trace: float
    information: float
    slope: float
    shift: float
    rotation: float


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
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler = RandomSampler(train, num_samples=MOST_STEPS * batch, generator=torch.Generator().manual_seed(seed))
    trainer.fit(net, DataLoader(train, batch_size=None, sampler=BatchSampler(sampler, batch, drop_last=True)))
    if until.loss > loss:
        raise SystemExit(f"batches of {batch}, seed {seed}: training loss {until.loss:.3g} after {MOST_STEPS} steps")
    net = net.requires_grad_(False).double()
    x, y = test.tensors[0].double(), test.tensors[1]
    found = Point(
        batch,
        seed,
        trainer.global_step,
        until.loss,
        (net(x).argmax(1) == y).double().mean().item(),
        fisher.history["fisher/trace"][-1][1],
        information(net, train.tensors[0].double()),
        *responses(net.features, x),
    )
    logger.log_metrics({f"invariance/{name}": getattr(found, name) for name in Point._fields[3:]}, trainer.global_step)
    logger.save()
    return found


def fisher_diagonal(net: Net, x: Tensor) -> dict[str, Tensor]:
    """Diagonal of F at the samples ``x``, by parameter: of squared scores the mean over x and the model's labels."""
    params = dict(net.named_parameters())
    log_p = lambda params, x: functional_call(net, params, (x,)).log_softmax(-1)  # noqa: E731
    scores, p = vmap(jacrev(log_p), (None, 0))(params, x), net(x).softmax(1)
    return {name: torch.einsum("nc,nc...->...", p, score.square()) / len(x) for name, score in scores.items()}


def information(net: Net, x: Tensor) -> float:
    """I(X;Z) in nats of the training samples ``x``, under noise of the level ``BETA`` on the weights below z.

    Expectations are over some of the samples: the Fisher information over 256, the channel over 64.
    """
    features = {name: weight.detach() for name, weight in net.features.named_parameters()}
    diagonal = fisher_diagonal(net, x[:256])
    h = len(x) * torch.cat([diagonal[f"features.{name}"].flatten() for name in features])
    prior = torch.cat([weight.flatten() for weight in features.values()]).abs()
    fisher = layer_fisher(
        lambda params, x: functional_call(net.features, params, (x,)),
        features,
        x[:64],
        lambda jacobian: diagonal_activation_covariance(jacobian, h, BETA, prior),
    )
    return gaussian_channel_information(fisher, x.T.cov())


def responses(features: nn.Module, x: Tensor) -> tuple[float, float, float]:
    """Mean norm of dz/dx, and mean change of z under shifts and rotations, all in units of the spread of z."""
    z = features(x)
    spread = z.var(0).sum().sqrt()
    slope = vmap(jacrev(features))(x).flatten(1).norm(dim=1).mean()
    changes = [
        torch.stack([(features(moved.flatten(1)) - z).norm(dim=1).mean() for moved in ways]).mean()
        for ways in (shifted(x.view(-1, 8, 8)), [rotated(x.view(-1, 8, 8), a) for a in (-DEGREES, DEGREES)])
    ]
    return tuple((value / spread).item() for value in (slope, *changes))


def shifted(images: Tensor) -> list[Tensor]:
    """Images ``(N, H, W)`` shifted by one pixel to each side; what comes in is 0."""
    padded, (height, width) = F.pad(images, (1, 1, 1, 1)), images.shape[1:]
    return [padded[:, i : i + height, j : j + width] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images ``(N, H, W)`` turned anticlockwise about their middle; what comes in is 0."""
    a = math.radians(degrees)
    turn = torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0]], dtype=images.dtype)
    grid = F.affine_grid(turn.expand(len(images), 2, 3), [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


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
        row("(c) where it is less, z is flatter in x", "trace", "slope"),
        row("(c) ... z responds less to a shift", "trace", "shift"),
        row("(c) ... z responds less to a rotation", "trace", "rotation"),
        row("(d) where I(X;Z) is less, z is flatter in x", "information", "slope"),
        row("(d) ... z responds less to a shift", "information", "shift"),
        row("(d) ... z responds less to a rotation", "information", "rotation"),
    ]


def draw(points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    batches = sorted({point.batch for point in points})
    trace, z = "tr F [nats per squared weight change]", "spreads of z"
    panels = [
        ("batch", "trace", "batch size", trace, "(a) Fisher information of the weights"),
        ("trace", "information", trace, "I(X;Z) [nats]", f"(b) Effective information, beta = {BETA:g}"),
        ("trace", "slope", trace, f"‖dz/dx‖ [{z} per unit of x]", "(c) Slope"),
        ("trace", "shift", trace, f"‖z(x') - z(x)‖ [{z}]", "(c) Shift by a pixel"),
        ("trace", "rotation", trace, f"‖z(x') - z(x)‖ [{z}]", f"(c) Rotation by {DEGREES:g} degrees"),
        ("information", "shift", "I(X;Z) [nats]", f"‖z(x') - z(x)‖ [{z}]", "(d) Shift by a pixel"),
    ]
    for place, (a, b, xlabel, ylabel, title) in enumerate(panels, 1):
        axes = figure.add_subplot(2, 3, place, xlabel=xlabel, ylabel=ylabel, title=title)
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
    batches = (8, 16, 32, 64, 128, 256, 512) if arguments.full else (8, 32, 128, 512)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    points = []
    for seed in range(arguments.seeds or (8 if arguments.full else 3)):
        for batch in batches:
            logger = TensorBoardLogger(arguments.out, name="invariance", version=f"batch{batch}_seed{seed}")
            points.append(measure(batch, seed, arguments.loss, logger))
            p = points[-1]
            print(
                f"seed {seed}, batches of {batch}: loss {p.loss:.4f} after {p.steps} steps, test accuracy "
                f"{p.accuracy:.3f}, tr F {p.trace:.3g}, I(X;Z) {p.information:.2f} nats, dz/dx {p.slope:.3f}, shift "
                f"{p.shift:.3f}, rotation {p.rotation:.3f}"
            )
    out = arguments.out / "invariance"
    figure = draw(points)
    figure.savefig(arguments.out / "invariance.png", dpi=120)
    with SummaryWriter(str(out / "figure")) as writer:
        writer.add_figure("achille2020/invariance", figure)
    rows = judge(points)
    print(f"\n{table(rows)}\n")
    for letter, claim in (
        ("a", "noise of SGD decides how much Fisher information the weights hold"),
        ("b", "less of it is less effective information in the activations"),
        ("c", "less of it is more invariance"),
        ("d", "less effective information is more invariance"),
    ):
        print(f"({letter}) {claim}: {summary(rows, letter)}")
    print(f"Figure: {arguments.out / 'invariance.png'}")
    print(f"Look at all runs:  tensorboard --logdir {out}")
    print("Scalars: fisher/trace, invariance/information, invariance/shift, ...; image of the run 'figure'")


if __name__ == "__main__":
    main()
