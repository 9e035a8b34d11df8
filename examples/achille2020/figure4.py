"""Figure 4 of Achille, Paolini & Soatto: tr F after training, against the batch size and the number of classes.

    python examples/achille2020/figure4.py                       # digits, a small CNN: a minute or two of one core
    python examples/achille2020/figure4.py --full --data-root D  # CIFAR-10 by torchvision, ResNet-18: hours of a GPU
    python examples/achille2020/figure4.py --full --npz FILE     # arrays x_train (N, 32, 32, 3) uint8, y_train, ...

The paper: "A smaller batch size yields a smaller Fisher Information", and "after training on fewer classes, the network
has less Information in the Weights". A ResNet-18 learns CIFAR-10, or its first k classes, for 30 epochs by SGD with
momentum 0.9, weight decay 0.0005 and a learning rate that falls by 0.97 per epoch. So it is here with ``--full``; the
default is a CNN with three convolutions and BatchNorm on scikit-learn's digits, trained in the same way. Ours are: the
learning rate 0.05, one for all batch sizes and not tuned; batches of 64 for the classes; as many outputs as classes.

``FisherTraceCallback`` measures at the end of every third epoch on 256 training samples, which have their own BatchNorm
statistics. Two things beside the noise of SGD change tr F. Before BatchNorm the scale of the weights means nothing, but
tr F falls as they grow: so the scale-invariant trace is judged beside it. And 30 epochs are more steps for a small
batch, which fits the data better: so both are judged once more at the same loss, for each training at its first
measured epoch with a loss at most the highest that a training of the same seed ends with.

Criteria, written before the numbers: the smallest batch has less than the largest by 2 standard errors, of the
difference over the seeds; the order of all batch sizes holds for every seed; 10 classes have more than 2 for every
seed. Seeds start at 100. The first run had batches of 16 in place of 32 and measured every epoch; its verdicts were the
same, but it took three minutes.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from feature_learning import spearman
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from results import Claim, Result, finish, parser
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback

sys.path.append(str(Path(__file__).parents[1]))

from cifar_resnet import ResNet18, load

FIRST_SEED, REFERENCE, EPOCHS, EVERY, BATCH = 100, 256, 30, 3, 64
BATCHES, ALL_BATCHES = (32, 64, 256), (16, 64, 256, 1024)
CLASSES, ALL_CLASSES = (2, 5, 10), (2, 4, 6, 8, 10)
LEARNED = 0.95
TRACES = {"trace": "tr F", "scale_invariant": "scale-invariant trace"}
left, right = partial(Claim, "4 left"), partial(Claim, "4 right")


class Digits(pl.LightningModule):
    """Three convolutions with BatchNorm, for images ``(N, 1, 8, 8)``."""

    def __init__(self, classes: int):
        super().__init__()
        layers = []
        for inputs, outputs, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.stages(x).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)]


class Task(NamedTuple):
    """What is trained: images ``(N, C, H, W)``, labels ``(N,)``, and the width of the ResNet (0: the small CNN)."""

    x: Tensor
    y: Tensor
    width: int

    def first(self, classes: int) -> Task:
        some = self.y < classes
        return self._replace(x=self.x[some], y=self.y[some])

    def net(self, classes: int) -> pl.LightningModule:
        if not self.width:
            return Digits(classes)
        pixels = self.x.float()
        net = ResNet18(self.width, *(of(pixels, (0, 2, 3)).reshape(3, 1, 1) for of in (torch.mean, torch.std)))
        net.head = nn.Linear(net.head.in_features, classes)
        return net


def digits() -> Task:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images).float()[:, None]
    return Task((x - x.mean()) / x.std(), torch.tensor(bunch.target), 0)


class Point(NamedTuple):
    """One training at the end of an epoch.

    Attributes:
        epoch: Epochs so far.
        trace: tr F.
        scale_invariant: The scale-invariant trace.
        loss: Loss of the reference samples, with BatchNorm's statistics of them, as for tr F; nats.
        accuracy: Share of them that are predicted correctly.
        norm: Squared norm of the weights of convolutions.
    """

    epoch: int
    trace: float
    scale_invariant: float
    loss: float
    accuracy: float
    norm: float


class Fit(pl.Callback):
    """Keeps loss, accuracy and norm at the end of each epoch, of a copy with BatchNorm's statistics of the samples."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y
        self.found: dict[int, tuple[float, float, float]] = {}

    @torch.no_grad()
    def on_train_epoch_end(self, trainer, pl_module):
        x, y = self.x.to(pl_module.device), self.y.to(pl_module.device)
        z = deepcopy(pl_module).train()(x)
        norm = sum(m.weight.square().sum().item() for m in pl_module.modules() if isinstance(m, nn.Conv2d))
        accuracy = z.argmax(1).eq(y).double().mean().item()
        self.found[trainer.global_step] = (F.cross_entropy(z, y).item(), accuracy, norm)


def train(task: Task, batch: int, classes: int, seed: int, epochs: int, out: Path) -> list[Point]:
    """Train on the first classes, and return its measured points."""
    pl.seed_everything(seed, verbose=False)
    task = task.first(classes)
    order = torch.randperm(len(task.y), generator=torch.Generator().manual_seed(seed))[:REFERENCE]
    reference, data = (task.x[order], task.y[order]), TensorDataset(task.x, task.y)
    fit = Fit(*reference)
    fisher = FisherTraceCallback(
        reference=reference, num_samples=REFERENCE, every_n_epochs=EVERY, max_overhead=1.0, on_error="raise",
        summary=False,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(out, name="figure4", version=f"batch{batch}_classes{classes}_seed{seed}"),
        callbacks=[fisher, fit],
        log_every_n_steps=min(10, len(data) // batch or 1),
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    trainer.fit(task.net(classes), DataLoader(data, batch, shuffle=True, drop_last=len(data) >= batch))
    traces = [dict(fisher.history[f"fisher/{name}"]) for name in ("trace", "scale_invariant_trace")]
    return [
        Point(epoch, *(trace[step] for trace in traces), *rest)
        for epoch, (step, rest) in enumerate(fit.found.items(), 1)
        if step in traces[0]
    ]


Runs = Mapping[int, Sequence[Sequence[Point]]]
"""Trainings by batch size or number of classes, one for each seed."""


def ends(runs: Runs) -> dict[int, list[Point]]:
    return {key: [run[-1] for run in its] for key, its in runs.items()}


def matched(runs: Runs) -> dict[int, list[Point]]:
    """Return the first points whose loss is at most the highest final loss of all trainings of the seed."""
    highest = [max(run[-1].loss for run in its) for its in zip(*runs.values(), strict=True)]
    return {
        key: [next(point for point in run if point.loss <= loss) for run, loss in zip(its, highest, strict=True)]
        for key, its in runs.items()
    }


def separation(points: Mapping[int, Sequence[Point]], name: str) -> float:
    """Return how much more the largest batch has than the smallest, in standard errors of the mean over the seeds."""
    least, most = ([getattr(point, name) for point in points[key]] for key in (min(points), max(points)))
    gaps = np.array(most) - np.array(least)
    return float(gaps.mean() / (gaps.std(ddof=1) / math.sqrt(len(gaps)))) if len(gaps) > 1 else math.nan


def orders(points: Mapping[int, Sequence[Point]], name: str) -> list[float]:
    """Return the rank correlation with the batch size or number of classes, for each seed."""
    keys = np.array(list(points))
    return [spearman(keys, np.array([getattr(p, name) for p in its])) for its in zip(*points.values(), strict=True)]


def judge(batches: Runs, classes: Runs) -> list[Claim]:
    final, same, by_classes = ends(batches), matched(batches), ends(classes)
    small, large = min(batches), max(batches)
    claims = [
        left(
            "the networks learn: training accuracy of each, both panels",
            [point.accuracy for its in (*final.values(), *by_classes.values()) for point in its],
            LEARNED,
            source="here",
        )
    ]
    for name, told in TRACES.items():
        source = "paper" if name == "trace" else "here"
        claims += [
            left(
                f"{told}: less with batches of {small} than of {large}, by",
                [separation(final, name)],
                2,
                unit="standard errors",
                source=source,
            ),
            left(f"{told}: rises with the batch size; rank correlation", orders(final, name), 1 - 1e-9, source=source),
            left(
                f"{told}, at the same loss: less with batches of {small} than of {large}, by",
                [separation(same, name)],
                2,
                unit="standard errors",
                source="here",
            ),
        ]
    few, many = min(classes), max(classes)
    for name, told in TRACES.items():
        source = "paper" if name == "trace" else "here"
        pairs = zip(by_classes[many], by_classes[few], strict=True)
        claims += [
            right(
                f"{told}: more after {many} classes than after {few}; ratio",
                [getattr(a, name) / getattr(b, name) for a, b in pairs],
                1,
                source=source,
            ),
            right(
                f"{told}: rises with the number of classes; rank correlation",
                orders(by_classes, name),
                1 - 1e-9,
                source=source,
            ),
        ]
    return claims


def table(batches: Runs, classes: Runs) -> str:
    """Return means over the seeds as a table."""
    rows = [("", "epoch", "tr F", "scale-invariant", "loss", "accuracy", "‖w‖² of convolutions")]
    for points, told in (
        (ends(batches), "batches of {}"),
        (matched(batches), "... at the same loss: {}"),
        (ends(classes), "{} classes"),
    ):
        for key, its in points.items():
            mean = np.mean(its, axis=0)
            rows.append((told.format(key), f"{mean[0]:.1f}", *(f"{value:.3g}" for value in mean[1:])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def draw(batches: Runs, classes: Runs) -> Figure:
    """Draw both panels of the paper, and the left one at the same loss: means and every seed."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, points, title, xlabel in zip(
        figure.subplots(1, 3),
        (ends(batches), matched(batches), ends(classes)),
        ("Left: after all epochs", "Left, at the same loss", "Right: the first classes only"),
        ("batch size", "batch size", "number of classes"),
        strict=True,
    ):
        for name, colour, unit in (
            ("trace", "#0072b2", "nats per squared weight"),
            ("scale_invariant", "#d55e00", "nats"),
        ):
            values = np.array([[getattr(point, name) for point in its] for its in points.values()])
            axes.plot(list(points), values.mean(1), "-", color=colour, label=f"{TRACES[name]} [{unit}]")
            axes.plot(list(points), values, "o", color=colour, markersize=4, alpha=0.6)
        axes.set(title=title, xlabel=xlabel, xscale="log", yscale="log")
        axes.set_xticks(list(points), [str(key) for key in points])
        axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def run(
    seeds: int,
    full: bool,
    out: Path,
    task: Task | None = None,
    epochs: int = EPOCHS,
    batches: Sequence[int] = (),
    classes: Sequence[int] = (),
) -> Result:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    task = task or digits()
    batches, classes = batches or (ALL_BATCHES if full else BATCHES), classes or (ALL_CLASSES if full else CLASSES)
    wanted = {(batch, max(classes)) for batch in batches} | {(BATCH, k) for k in classes}
    found = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for batch, k in sorted(wanted):
            found.setdefault((batch, k), []).append(train(task, batch, k, seed, epochs, out))
            last = found[batch, k][-1][-1]
            print(f"seed {seed}, batches of {batch}, {k} classes: tr F {last.trace:.3g}, loss {last.loss:.3g}")
    by_batch, by_classes = {b: found[b, max(classes)] for b in batches}, {k: found[BATCH, k] for k in classes}
    data = f"CIFAR-10, ResNet-18 of width {task.width}" if task.width else "digits, three convolutions"
    said = f"{data}: {len(task.y)} images, {epochs} epochs, seeds {FIRST_SEED} to {FIRST_SEED + seeds - 1}"
    told = f"\n{table(by_batch, by_classes)}\n"
    return Result(judge(by_batch, by_classes), draw(by_batch, by_classes), said, told)


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, seeds=3)
    source = options.add_mutually_exclusive_group()
    source.add_argument("--data-root", type=Path, help="folder of torchvision's CIFAR-10")
    source.add_argument("--npz", type=Path, help="file with x_train, y_train, x_test, y_test of CIFAR-10")
    options.add_argument("--width", type=int, help="channels of the ResNet's first stage (default 8, with --full 64)")
    options.add_argument("--train-size", type=int, help="training images of CIFAR-10 (default 2000, with --full all)")
    options.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = options.parse_args(argv)
    full, task = arguments.full, None
    if arguments.data_root or arguments.npz:
        size = arguments.train_size or (None if full else 2000)
        images = load(arguments.data_root, arguments.npz, size)[0].tensors
        task = Task(*images, arguments.width or (64 if full else 8))
    elif full:
        options.error("--full is CIFAR-10: add --data-root FOLDER or --npz FILE")
    finish(run(arguments.seeds, full, arguments.out, task, arguments.epochs), "figure4", arguments)


if __name__ == "__main__":
    main()
