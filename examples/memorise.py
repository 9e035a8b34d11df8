"""Did my network learn, or memorise? The same net on true labels and on labels that are shuffled.

    python examples/memorise.py
    python examples/memorise.py --seeds 3 --out memorise   # a few minutes; writes memorise/memorise.png

The quickstart's net trains on 512 of scikit-learn's digits until it fits all of them, once with their labels and once
with these labels shuffled. The training loss ends near 0 in both. What tells them apart *without validation data*: the
Fisher trace, what layers know of the labels, and the information in the weights. Criteria were set after a look at
seed 0; the seeds of a run begin with 1.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from achille2020.feature_learning import Row, table
from matplotlib.figure import Figure
from quickstart import DigitsNet
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.figures.notebook_figure import NotebookFigure

SAMPLES, HELD, BATCH, LABELS = 512, 64, 64, ("true", "shuffled")
COLOURS = {"true": "#0072b2", "shuffled": "#d55e00"}
Curve = list[tuple[int, float]]


class Net(DigitsNet):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


class Run(NamedTuple):
    """What one training showed.

    Attributes:
        accuracy: On digits that it was not trained on, with their true labels.
        loss: The training loss of the last batch.
        trace: ``fisher/trace``.
        precision: ``weight_info/kl_precision``.
        known: Information about the labels that decoders find at the end, bits, by layer in the order of depth.
    """

    accuracy: float
    loss: float
    trace: Curve
    precision: Curve
    known: list[float]


def train(labels: str, seed: int, epochs: int, bar: bool = True) -> Run:
    """Train on true or shuffled labels; the Fisher trace is measured ten times, the dearer quantities four times."""
    digits, generator = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    x = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
    y = torch.tensor(digits.target)[order]
    learnt = y[:SAMPLES] if labels == "true" else y[:SAMPLES][torch.randperm(SAMPLES, generator=generator)]
    pl.seed_everything(seed, verbose=False)
    often, seldom = ({"every_n_epochs": max(1, epochs // points), "summary": False} for points in (10, 4))
    callbacks = fisher, plane, weights = (
        FisherTraceCallback(**often),
        InfoPlaneCallback(num_samples=SAMPLES, **seldom),
        WeightInfoCallback(num_samples=HELD, **seldom),
    )
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=bar, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(
        Net(),
        DataLoader(TensorDataset(x[:SAMPLES], learnt), BATCH, shuffle=True),
        DataLoader(TensorDataset(x[SAMPLES:], y[SAMPLES:]), 2048),
    )
    return Run(
        trainer.callback_metrics["val_accuracy"].item(),
        trainer.callback_metrics["train_loss"].item(),
        fisher.history["fisher/trace"],
        weights.history["weight_info/kl_precision"],
        [curve[-1][1] for tag, curve in plane.history.items() if tag.startswith("info_plane_decoder/")],
    )


def verdicts(runs: dict[str, list[Run]]) -> list[Row]:
    """Judge what tells memorised labels from learnt ones, one value a seed."""

    def row(claim: str, criterion: str, values: list[float], holds: list[bool]) -> Row:
        return Row(claim, criterion, values, sum(holds))

    def peak(curve: Curve) -> float:
        return max(value for _, value in curve) / curve[0][1]

    true, shuffled = runs["true"], runs["shuffled"]
    both = list(zip(true, shuffled, strict=True))
    rises, falls = [peak(run.trace) for run in shuffled], [peak(run.trace) for run in true]
    traces = [other.trace[-1][1] / run.trace[-1][1] for run, other in both]
    first = [run.known[0] for run in shuffled]
    last = [min(run.known[-1], other.known[-1]) for run, other in both]
    nats = [other.precision[-1][1] / run.precision[-1][1] for run, other in both]
    return [
        row(
            "both fit: decoders read the labels in the last layer", "the smaller ≥ 3 bits", last, [v >= 3 for v in last]
        ),
        row("shuffled: the Fisher trace rises first", "peak / start ≥ 2", rises, [v >= 2 for v in rises]),
        row("true: it does not", "peak / start ≤ 1.5", falls, [v <= 1.5 for v in falls]),
        row("at the end it is larger where labels are shuffled", "ratio ≥ 5", traces, [v >= 5 for v in traces]),
        row("the first layer knows nothing of shuffled labels", "≤ 0.1 bits", first, [v <= 0.1 for v in first]),
        row("weights must be more precise to hold them", "ratio of nats ≥ 5", nats, [v >= 5 for v in nats]),
    ]


def picture(runs: dict[str, list[Run]]) -> Figure:
    """Fisher trace and nats of precision over training, and the information about the labels by depth at the end."""
    figure = NotebookFigure((10.5, 3.2), layout="constrained")
    trace, known, precision = figure.subplots(1, 3)
    for labels, found in runs.items():
        for i, run in enumerate(found):
            style = {"color": COLOURS[labels], "label": f"{labels} labels" if i == 0 else None, "marker": "."}
            trace.plot(*zip(*run.trace, strict=True), **style)
            precision.plot(*zip(*run.precision, strict=True), **style)
            known.plot(range(1, 1 + len(run.known)), run.known, **style)
    for axes, title, across, up in (
        (trace, "Fisher trace", "optimiser steps", "nats/weight²"),
        (known, "Known of the labels at the end", "layer", "bits, by decoders"),
        (precision, "Precision that the weights need", "optimiser steps", "nats"),
    ):
        axes.set(title=title, xlabel=across, ylabel=up)
    known.set_xticks(range(1, 1 + len(runs["true"][0].known)))
    trace.set_yscale("log")
    precision.set_yscale("log")
    trace.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Run]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="trainings with each kind of labels")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("logs/memorise"), help="folder for the figure")
    given = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seeds = range(1, 1 + given.seeds)
    runs = {labels: [train(labels, seed, given.epochs) for seed in seeds] for labels in LABELS}
    for labels, found in runs.items():
        for seed, run in zip(seeds, found, strict=True):
            print(f"{labels:>8}, seed {seed}: training loss {run.loss:.4f}, accuracy on others {run.accuracy:.3f}")
    print(table(verdicts(runs)))
    given.out.mkdir(parents=True, exist_ok=True)
    picture(runs).savefig(given.out / "memorise.png", dpi=150)
    print(f"The figure is {given.out / 'memorise.png'}.")
    return runs


if __name__ == "__main__":
    main()
