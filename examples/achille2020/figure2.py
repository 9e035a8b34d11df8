"""Figure 2 of Achille, Paolini & Soatto: does one training sample move the weights, and where to?

    python examples/achille2020/figure2.py                       # scikit-learn's digits, a narrow net
    python examples/achille2020/figure2.py --data-root D         # 4000 MNIST digits by torchvision (downloaded to D)
    python examples/achille2020/figure2.py --data-root D --full  # all of MNIST at full width: best on a GPU

An All-CNN (Springenberg et al., 2014) is pre-trained on the digits 2 to 9 for 10 epochs, then trained to tell 0 from 1
by SGD with learning rate 0.01, momentum 0.9, weight decay 0.0005, as in the paper. ``StabilityCallback`` trains its
twin, in which one sample, drawn at random, is replaced by another; ``FisherTraceCallback`` measures how large F is.

What the paper leaves open, set before anything was measured: batches of 32, SGD of the same settings in pre-training,
10 epochs of the second task, ten outputs throughout, initial weights after He. The net has neither BatchNorm nor
dropout, and all its 3x3 convolutions are padded, as digits of 8x8 pixels do not survive without. F is the whole Fisher
information, while the paper uses its diagonal. Claims (a) to (c) are the paper's, in words and without numbers; all
numbers are ours, and so are the questions (d) and (e), and the condition in (c) that the net has learned its task.
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
from feature_learning import Row, summary, table
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, StabilityCallback

EPOCHS, BATCH, REFERENCE = 10, 32, 512
NEAR = 0.1  # of the way; of the ellipse's radius; nats of loss; of tr F
INSIDE = 0.5  # nats of unique information, on the ellipse of β(N F)^-1
LEARNED = 0.99
AGREE = (0.8, 1.25)


class Run(NamedTuple):
    """One training with its twin, at the measured steps, ``(T,)`` each.

    Attributes:
        steps: Optimiser steps taken.
        distance: ``‖δ‖``.
        relative: ``‖δ‖ / ‖w - w_0‖``.
        fisher: ``½ δᵀFδ``, nats a sample.
        output_kl: Output KL, which ``fisher`` equals to second order, nats a sample.
        unique: Unique information, nats.
        loss_gap: The twin's loss on the replaced sample minus the run's, nats.
        trace: tr F.
        weights: k.
        accuracy: Accuracy of the run on its training samples, at the end.
    """

    steps: np.ndarray
    distance: np.ndarray
    relative: np.ndarray
    fisher: np.ndarray
    output_kl: np.ndarray
    unique: np.ndarray
    loss_gap: np.ndarray
    trace: np.ndarray
    weights: int
    accuracy: float

    @property
    def radius(self) -> np.ndarray:
        """Radius ``√(δᵀFδ)`` at which δ ends, where the boundary of the ellipse of F^-1 is at 1."""
        return np.sqrt(2 * self.fisher)

    @property
    def curvature(self) -> np.ndarray:
        """F along δ, ``δᵀFδ / ‖δ‖²``; NaN while there is no δ."""
        return np.divide(
            2 * self.fisher, self.distance**2, out=np.full(len(self.steps), np.nan), where=self.distance > 0
        )


def verdicts(runs: Sequence[Run]) -> list[Row]:
    """Judge the paper's claims (a) to (c), and two questions of ours, by criterion; one value for each run."""

    def row(claim: str, criterion: str, values: list[float], most: float, least: float = -math.inf) -> Row:
        return Row(claim, criterion, values, sum(least <= value <= most for value in values))

    ends = {name: [getattr(run, name)[-1] for run in runs] for name in ("relative", "radius", "unique", "loss_gap")}
    shares = [run.curvature[-1] / run.trace[-1] for run in runs]
    by_mean = [share * run.weights for share, run in zip(shares, runs, strict=True)]
    ratios = [run.output_kl[-1] / run.fisher[-1] if run.fisher[-1] > 0 else math.nan for run in runs]
    return [
        row("(a) the twin's path is near the run's", f"‖δ‖ / ‖w - w_0‖ ≤ {NEAR:g}", ends["relative"], NEAR),
        row("(b) δ is small by the curvature", f"√(δᵀFδ) ≤ {NEAR:g}", ends["radius"], NEAR),
        row("(b) ... also by that of the summed loss", f"N δᵀFδ / 2 ≤ {INSIDE:g} nats", ends["unique"], INSIDE),
        row("(c) the sample is not memorised", f"its loss, twin - run ≤ {NEAR:g} nats", ends["loss_gap"], NEAR),
        row("(c) ... though 0 and 1 are learned", f"accuracy ≥ {LEARNED:g}", [r.accuracy for r in runs], 1, LEARNED),
        row("(d) δ lies in sloppy directions: not stiff", f"δᵀFδ / ‖δ‖² / tr F ≤ {NEAR:g}", shares, NEAR),
        row("(d) ... and sloppier than a random one", "δᵀFδ / ‖δ‖² / (tr F / k) ≤ 1", by_mean, 1),
        row(
            "(e) ½ δᵀFδ tells what the outputs do",
            f"output KL / ½ δᵀFδ in {AGREE[0]:g} to {AGREE[1]:g}",
            ratios,
            AGREE[1],
            AGREE[0],
        ),
    ]


class AllCNN(pl.LightningModule):
    """Nine convolutions, two of them with stride 2, and the mean over the remaining image."""

    def __init__(self, width: int):
        super().__init__()
        layers, inputs = [], 1
        for outputs, size, stride in (
            *((width, 3, 1), (width, 3, 1), (width, 3, 2)),
            *((2 * width, 3, 1), (2 * width, 3, 1), (2 * width, 3, 2)),
            *((2 * width, 3, 1), (2 * width, 1, 1), (10, 1, 1)),
        ):
            conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
            inputs = outputs
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x):
        return self.net(x).mean((2, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def load(data_root: Path | None, size: int | None) -> tuple[Tensor, Tensor]:
    """Return standardised images ``(N, 1, H, W)`` of float32 and labels ``(N,)``: scikit-learn's digits, or MNIST."""
    if data_root is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = torch.tensor(digits.images), torch.tensor(digits.target)
    else:
        try:
            from torchvision.datasets import MNIST
        except ImportError as error:
            raise SystemExit("--data-root needs torchvision: pip install torchvision") from error
        mnist = MNIST(data_root, train=True, download=True)
        x, y = mnist.data, mnist.targets
    x, y = x[:size].float().unsqueeze(1), y[:size].long()
    return (x - x.mean()) / x.std(), y


def fit(module: AllCNN, x: Tensor, y: Tensor, epochs: int, logger: Logger | bool, *callbacks: pl.Callback) -> float:
    """Train, and return the accuracy on the training samples."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        deterministic=True,
        logger=logger,
        callbacks=list(callbacks),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), BATCH, shuffle=True))
    with torch.no_grad():
        return torch.cat([module(part).argmax(1) for part in x.split(1000)]).eq(y).double().mean().item()


def train(seed: int, x: Tensor, y: Tensor, width: int, epochs: int, every: int, logger: Logger) -> Run:
    """Pre-train on 2 to 9, then train on 0 and 1 with a twin: initial weights, batches and samples of a seed."""
    pl.seed_everything(seed, verbose=False)
    module, new = AllCNN(width), y < 2
    before = fit(module, x[~new], y[~new], epochs, False)
    x, y = x[new], y[new]
    common = {"every_n_train_steps": every, "num_samples": REFERENCE, "reference": (x, y), "summary": False}
    stability = StabilityCallback(seed=seed, **common)
    fisher = FisherTraceCallback(draws=None, **common)
    after = fit(module, x, y, epochs, logger, stability, fisher)
    twin, weights = stability.twins[0], sum(p.numel() for p in module.parameters())
    print(
        f"seed {seed}: {weights} weights; digits 2-9 learned to {before:.3f}, then 0 and 1 ({len(x)} samples) to "
        f"{after:.3f}; sample {twin.index} (a {y[twin.index]}) replaced by {twin.replacement} (a {y[twin.replacement]})"
    )
    histories = {**stability.history, **fisher.history}
    names = ("param_distance", "relative_distance", "fisher_distance", "output_kl", "unique_information", "loss_gap")
    tags = [*(f"stability/{name}" for name in names), "fisher/trace"]
    steps = [step for step, _ in histories[tags[0]]]
    curves = [np.array([dict(histories[tag])[step] for step in steps]) for tag in tags]
    return Run(np.array(steps), *curves, weights, after)


def draw(runs: Sequence[Run]) -> Figure:
    """Draw the distance between run and twin over training, and F along δ and in other directions."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    apart, curved = figure.subplots(1, 2)
    for run in runs:
        once = run is runs[0]
        for axes, curve, colour, label in (
            (apart, run.relative, "tab:green", "‖δ‖ / ‖w - w$_0$‖, in the weights"),
            (apart, run.radius, "tab:blue", "√(δ$^T$Fδ), by F: on the ellipse of F$^{-1}$ at 1"),
            (curved, run.trace, "0.6", "tr F, which no direction exceeds"),
            (curved, run.curvature, "tab:red", "along δ, where run and twin part"),
            (curved, run.trace / run.weights, "black", "mean over all directions, tr F / k"),
        ):
            shown = np.where(curve > 0, curve, np.nan)
            axes.plot(run.steps, shown, color=colour, linewidth=1.3, alpha=0.8, label=label if once else None)
    apart.axhline(NEAR, color="0.4", linewidth=0.8, linestyle=":")
    at_the_edge = apart.get_yaxis_transform()
    apart.text(0.01, NEAR, f"criterion {NEAR:g}", transform=at_the_edge, va="bottom", fontsize=8, color="0.4")
    apart.set(title="Distance of run and twin, a curve for each seed", xlabel="optimiser step", ylabel="distance")
    curved.set(title="F along δ, and in other directions", xlabel="optimiser step", ylabel="nats per squared length")
    for axes in (apart, curved):
        axes.set_yscale("log")
        axes.margins(y=0.08)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of torchvision's MNIST")
    parser.add_argument("--full", action="store_true", help="all of MNIST, width 96; needs --data-root")
    parser.add_argument("--seeds", type=int, default=3, help="how many runs")
    parser.add_argument("--width", type=int, help="channels of the first convolutions (default 16)")
    parser.add_argument("--train-size", type=int, help="images of all digits together (default 4000)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each of the two trainings")
    parser.add_argument("--every", type=int, help="steps between measurements (default 10, with --full 100)")
    parser.add_argument("--out", type=Path, default=Path("runs/achille2020"), help="folder of figure and event files")
    arguments = parser.parse_args(argv)
    if arguments.full and arguments.data_root is None:
        parser.error("--full is MNIST at full size: add --data-root FOLDER")
    width = arguments.width or (96 if arguments.full else 16)
    every = arguments.every or (100 if arguments.full else 10)
    size = arguments.train_size or (None if arguments.full else 4000)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    x, y = load(arguments.data_root, size)
    runs = []
    for seed in range(arguments.seeds):
        logger = TensorBoardLogger(arguments.out, name="figure2", version=f"seed{seed}")
        runs.append(train(seed, x, y, width, arguments.epochs, every, logger))
    figure = draw(runs)
    figure.savefig(arguments.out / "figure2.png", dpi=120)
    logger.experiment.add_figure("achille2020/figure2", figure, runs[-1].steps[-1])
    logger.experiment.flush()

    rows = verdicts(runs)
    print(f"\n{table(rows)}\n")
    print(f"(a) the training path is only slightly perturbed: {summary(rows, 'a')}")
    print(f"(b) the end points are near relative to the curvature: {summary(rows, 'b')}")
    print(f"(c) the sample is not memorised: {summary(rows, 'c')}")
    print(f"(d) [not of the paper] the paths part in sloppy directions: {summary(rows, 'd')}")
    print(f"(e) [not of the paper] F tells what the outputs do: {summary(rows, 'e')}")
    print(f"Figure: {arguments.out / 'figure2.png'}")
    print(f"Look at all seeds:  tensorboard --logdir {arguments.out}")
    print("Scalars: stability/param_distance, stability/fisher_distance, stability/output_kl, fisher/trace, ...")
    print("Images: stability/paths (the two paths, as the paper draws them), achille2020/figure2")


if __name__ == "__main__":
    main()
