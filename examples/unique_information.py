"""Which training samples do the weights hold most information about, and are they those with corrupted labels?

    python examples/unique_information.py
    python examples/unique_information.py --full  # more samples, twins and seeds: half an hour

A net 64-16-10 (tanh) learns scikit-learn's digits, with one label in five replaced by a wrong one. One
``StabilityCallback`` trains 60 twins beside it, each without one training sample drawn at random, and measures the
unique information of that sample: ``N δᵀFδ / (2 beta)`` nats at beta = 1. In all twins it is replaced by a second copy
of the sample with the lowest loss after a training without twins, which adds almost nothing.

Among the drawn samples k are corrupted; precision@k is their share among the k at the top of a ranking. The ranking by
unique information is compared with two others: by the plain loss, which costs one training, not 61, and by the loss gap
(the loss of the twin that never saw the sample minus that of the run). All criteria were set before anything was
measured.
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
import torch
import torch.nn.functional as F
from achille2020.feature_learning import Row, table
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import StabilityCallback

CORRUPTED = 0.2
INFORMATION, LOSS, GAP = "unique information", "plain loss", "loss gap"
TIMES, BETTER, AGREE = 2.0, 0.05, (0.8, 1.25)
SHOWN = 12


class Data(NamedTuple):
    """Training samples, some with a wrong label.

    Attributes:
        x: ``(N, 64)``, standardised.
        y: Labels, ``(N,)``.
        corrupted: Mask of the wrong labels, ``(N,)``.
    """

    x: Tensor
    y: Tensor
    corrupted: Tensor


class Found(NamedTuple):
    """Results for the drawn samples, ``(M,)`` each.

    Attributes:
        index: Their numbers in the training set.
        twin: Numbers of the twins that lack them.
        corrupted: Whether the label is wrong.
        scores: Scores for ranking them, the highest first.
        ratio: Measured output KL divided by ½ δᵀFδ.
    """

    index: Tensor
    twin: Tensor
    corrupted: Tensor
    scores: dict[str, Tensor]
    ratio: Tensor


def precision(scores: Tensor, corrupted: Tensor) -> float:
    """Return the share of corrupted samples among the k highest scores, for k corrupted samples; NaN if k is 0."""
    k = int(corrupted.sum())
    return corrupted[scores.argsort(descending=True)[:k]].double().mean().item() if k else math.nan


def verdicts(runs: Sequence[Found]) -> list[Row]:
    """Judge whether unique information finds corrupted labels, and better than the plain loss; one value per run."""

    def row(claim: str, criterion: str, values: list[float], least: float, most: float = math.inf) -> Row:
        return Row(claim, criterion, values, sum(least <= value <= most for value in values))

    by = {name: [precision(run.scores[name], run.corrupted) for run in runs] for name in (INFORMATION, LOSS)}
    informed = [(run.scores[INFORMATION], run.corrupted) for run in runs]
    medians = [(score[wrong].median() / score[~wrong].median()).item() for score, wrong in informed]
    chances = [run.corrupted.double().mean().item() for run in runs]
    return [
        row("(a) more is known of a corrupted sample", f"median, corrupted / clean ≥ {TIMES:g}", medians, TIMES),
        row(
            "(b) unique information finds them",
            f"precision@k / chance ≥ {TIMES:g}",
            [value / chance if chance else math.nan for value, chance in zip(by[INFORMATION], chances, strict=True)],
            TIMES,
        ),
        row(
            "(c) ... and better than the plain loss",
            f"precision@k - precision@k of the loss ≥ {BETTER:g}",
            [one - other for one, other in zip(by[INFORMATION], by[LOSS], strict=True)],
            BETTER,
        ),
        row(
            "(d) ½ δᵀFδ tells what the outputs do",
            f"median output KL / ½ δᵀFδ in {AGREE[0]:g} to {AGREE[1]:g}",
            [run.ratio.nanmedian().item() for run in runs],
            *AGREE,
        ),
    ]


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def digits(seed: int, samples: int) -> Data:
    """Draw samples by the seed; the first fifth of them gets another label, drawn too."""
    bunch, generator = load_digits(), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(bunch.target), generator=generator)[:samples]
    x, y = torch.tensor(bunch.data).float()[chosen], torch.tensor(bunch.target)[chosen]
    corrupted = torch.arange(samples) < round(CORRUPTED * samples)
    wrong = (y + torch.randint(1, 10, y.shape, generator=generator)) % 10
    return Data((x - x.mean()) / x.std(), torch.where(corrupted, wrong, y), corrupted)


def train(data: Data, seed: int, epochs: int, logger: Logger | bool, *callbacks: pl.Callback) -> Tensor:
    """Train once, identically for the same seed; return the loss of each sample at the end, ``(N,)``."""
    pl.seed_everything(seed, verbose=False)
    module = Net()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(data.x, data.y), batch_size=50, shuffle=True))
    with torch.no_grad():
        return F.cross_entropy(module(data.x), data.y, reduction="none").double()


def measure(data: Data, seed: int, epochs: int, twins: int, logger: Logger) -> Found:
    """Train once for the losses, and once more with the twins."""
    loss = train(data, seed, epochs, False)
    stability = StabilityCallback(
        replacement=int(loss.argmin()),
        num_twins=twins,
        every_n_epochs=max(1, epochs // 2),
        reference=(data.x, data.y),
        num_samples=len(data.x),
        seed=seed,
        summary=False,
    )
    train(data, seed, epochs, logger, stability)
    index, twin = torch.tensor([twin.index for twin in stability.twins]), torch.arange(1, twins + 1)

    def last(name: str) -> Tensor:
        return torch.tensor([stability.history[f"stability_twin{k}/{name}"][-1][1] for k in twin.tolist()])

    scores = {INFORMATION: last("unique_information"), LOSS: loss[index], GAP: last("loss_gap")}
    return Found(index, twin, data.corrupted[index], scores, last("output_kl") / last("fisher_distance"))


def draw(runs: Sequence[Found], data: Data) -> Figure:
    """Draw information against loss, the samples with most information, and how well corrupted ones are found."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3, 1.2))
    plane, bars = above.subplots(1, 2)
    first = runs[0]
    for wrong, colour, label in ((False, "tab:blue", "clean"), (True, "tab:red", "corrupted label")):
        here = first.corrupted == wrong
        loss, information = (first.scores[name][here].numpy() for name in (LOSS, INFORMATION))
        plane.scatter(loss, information, s=18, c=colour, label=label)
    plane.set(title="Seed 0", xlabel="loss after training [nats]", ylabel="unique information [nats]")
    plane.set(xscale="log", yscale="log")
    plane.legend(frameon=False)
    for at, name in enumerate((INFORMATION, LOSS, GAP)):
        values = [precision(run.scores[name], run.corrupted) for run in runs]
        bars.bar(at, sum(values) / len(values), width=0.6, color="tab:purple", alpha=0.4)
        bars.plot([at] * len(runs), values, "o", color="black", markersize=5)
    chance = sum(run.corrupted.double().mean().item() for run in runs) / len(runs)
    bars.axhline(chance, color="black", linestyle=":")
    bars.text(0.5, chance, "chance", ha="center", va="bottom", fontsize=9)
    bars.set(title="Finding corrupted labels: each seed, and the mean", ylabel="precision@k", ylim=(0, 1.05))
    bars.set_xticks(range(3), [INFORMATION, LOSS, GAP])
    top = first.scores[INFORMATION].argsort(descending=True)[:SHOWN]
    below.suptitle("Seed 0: the samples of most unique information, and their labels (red: corrupted)", fontsize=10)
    for axes, at in zip(below.subplots(1, SHOWN).flat, top, strict=False):
        axes.imshow(data.x[first.index[at]].reshape(8, 8).numpy(), cmap="gray_r")
        axes.set_title(f'"{data.y[first.index[at]]}"', color="tab:red" if first.corrupted[at] else "black", fontsize=11)
        axes.set_xlabel(f"{first.scores[INFORMATION][at]:.2g} nats", fontsize=8)
        axes.set(xticks=[], yticks=[])
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more of everything")
    parser.add_argument("--samples", type=int, help="training samples (default 200, with --full 1000)")
    parser.add_argument("--twins", type=int, help="of each run (default 60, with --full 200)")
    parser.add_argument("--seeds", type=int, help="how many runs (default 3, with --full 5)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/unique_information"), help="of figure and event files")
    arguments = parser.parse_args(argv)
    samples = arguments.samples or (1000 if arguments.full else 200)
    twins = arguments.twins or (200 if arguments.full else 60)
    seeds = arguments.seeds or (5 if arguments.full else 3)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    loggers = [TensorBoardLogger(arguments.out, name="", version=f"seed{seed}") for seed in range(seeds)]
    runs = []
    for seed, logger in enumerate(loggers):
        found = measure(digits(seed, samples), seed, arguments.epochs, twins, logger)
        runs.append(found)
        each = ", ".join(f"{precision(s, found.corrupted):.2f} by {name}" for name, s in found.scores.items())
        k, drawn, top = int(found.corrupted.sum()), len(found.index), found.scores[INFORMATION].argmax()
        print(f"seed {seed}: {drawn} samples drawn, {k} corrupted; precision@{k} {each}, {k / drawn:.2f} by chance")
        most = found.scores[INFORMATION][top]
        print(f"        most is known of sample {found.index[top]}: {most:.2g} nats, stability_twin{found.twin[top]}")
    figure = draw(runs, digits(0, samples))
    figure.savefig(arguments.out / "unique_information.png", dpi=110)
    loggers[0].experiment.add_figure("unique_information/ranking", figure)
    loggers[0].experiment.flush()

    rows = verdicts(runs)
    print(f"\n{table(rows)}\n")
    print(f"(a) the weights know more of corrupted samples than of clean ones: {rows[0].verdict}")
    print(f"(b) unique information finds corrupted labels: {rows[1].verdict}")
    print(f"(c) it finds them better than the plain loss: {rows[2].verdict}")
    print(f"(d) ½ δᵀFδ tells what the outputs do: {rows[3].verdict}")
    better = torch.tensor(rows[2].values)
    if len(better) > 2:
        mean, error = better.mean().item(), better.std().item() / math.sqrt(len(better))
        known = "no difference" if abs(mean) <= 2 * error else "a difference"
        print(f"(c) in the mean {mean:+.3f}, standard error over the seeds {error:.3f}: {known} to be told")
    print(f"Figure: {arguments.out / 'unique_information.png'}")
    print(f"Look at it:  tensorboard --logdir {arguments.out}")
    print("Scalars: stability_twin1/unique_information, ..., the mean in stability/unique_information")
    print("Images: unique_information/ranking")


if __name__ == "__main__":
    main()
