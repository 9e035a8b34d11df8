"""Binned and effective information of the same layers, for tanh and for ReLU, and of two nets with one function.

    python examples/effective_information.py              # one seed, at most two minutes on two cores
    python examples/effective_information.py --seeds 5    # the study in docs/effective_info.md

A net 64-32-16-10 learns scikit-learn's digits (MNIST with ``--data-root``) by SGD, once with tanh and once with ReLU.
``InfoPlaneCallback`` bins the outputs of its layers, ``EffectiveInfoCallback`` measures their information under weight
noise that raises the loss by 0.05 and by 0.5 nats a sample; both use the same reference samples and steps. The former
measures behind the activation functions, where bins are usual; the latter before them, which is the same information if
they are invertible, and its bounds behind a ReLU are loose.

Then the remark of Saxe et al. (2018), section 2, on networks that "compute exactly the same input-output map": the ReLU
net, and a twin in which every hidden unit is multiplied by its own factor, and its outgoing weights divided by it.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from effective_curves import Pair, Run, draw, judge, table
from lightning.pytorch.loggers import TensorBoardLogger
from saxe2018.claims import markdown, report
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_info import EffectiveInfoCallback, InfoPlaneCallback

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
BINNED = {"binned": "info_plane_final", "fixed": "info_plane_binning_fixed"}
EFFECTIVE = {"0.05": "effective_info", "0.5": "effective_info_0.5"}
BATCH, LR = 64, 0.1


class Net(pl.LightningModule):
    """Two hidden layers."""

    def __init__(self, inputs: int, activation: str):
        super().__init__()
        act = ACTIVATIONS[activation]
        self.net = nn.Sequential(nn.Linear(inputs, 32), act(), nn.Linear(32, 16), act(), nn.Linear(16, 10))
        self.lr = LR

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def load(data_root: Path | None) -> TensorDataset:
    """Return images ``(N, pixels)`` from 0 to 1, shuffled, and their classes."""
    if data_root is None:
        digits = load_digits()
        x, y = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
    else:
        try:
            from torchvision.datasets import MNIST
        except ImportError as error:
            raise SystemExit("--data-root needs torchvision: pip install torchvision") from error
        mnist = MNIST(data_root, train=True, download=True)
        x, y = mnist.data.flatten(1).float() / 255, mnist.targets
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return TensorDataset(x[order], y[order])


def fit(net: Net, data: TensorDataset, steps: int, samples: int, seed: int, logger: TensorBoardLogger | bool) -> Run:
    """Train, measured after 0, 1, 2, 4, ... steps and at the end."""
    common = {"reference": data.tensors, "num_samples": samples, "on_error": "raise", "summary": False}
    common["max_overhead"] = 1.0  # no point is left out
    layers, ranges = ["net.1", "net.3", "net.4"], ["global", "fixed"]
    binned = InfoPlaneCallback(layers=layers, bin_range=ranges, label_information="binned", **common)
    effective = EffectiveInfoCallback(layers="Linear", distortion=[float(level) for level in EFFECTIVE], **common)
    # one pass through as many batches, so the ends of epochs are not points
    sampler = RandomSampler(data, num_samples=steps * BATCH, generator=torch.Generator().manual_seed(seed))
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[binned, effective],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the figure shows where a distortion is not reached
        trainer.fit(net, DataLoader(data, batch_size=None, sampler=BatchSampler(sampler, BATCH, drop_last=False)))

    def curve(history: dict, tag: str, unit: float) -> np.ndarray:
        layers = [[value for _, value in values] for name, values in history.items() if name.startswith(f"{tag}/")]
        return unit * np.array(layers).T

    curves = {}
    for kind, of_bins, of_noise in (("input", "I_XT", "I_XZ"), ("label", "I_TY", "I_ZY")):
        for level, family in BINNED.items():
            curves[level, kind] = curve(binned.history, f"{family}/{of_bins}", math.log(2))
        for level, family in EFFECTIVE.items():
            curves[level, kind] = curve(effective.history, f"{family}/{of_noise}", 1)
    crossing = {}
    for level, family in EFFECTIVE.items():
        values = [value for _, value in effective.history[f"{family}/crossing"] if not math.isnan(value)]
        crossing[level] = max(values, default=math.nan)
    return Run([step for step, _ in effective.history["effective_info/loss"]], curves, crossing)


def rescaled(net: Net, seed: int) -> Net:
    """Return a ReLU net with the same function: each hidden unit times a factor between 1/16 and 16."""
    twin, generator = deepcopy(net), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for before, after in pairwise(layer for layer in twin.net if isinstance(layer, nn.Linear)):
            factor = 2 ** (8 * torch.rand(before.out_features, generator=generator) - 4)
            before.weight *= factor[:, None]
            before.bias *= factor
            after.weight /= factor
    return twin


def compare(net: Net, twin: Net, data: TensorDataset, samples: int) -> Pair:
    """Measure both nets in a Trainer that takes a step of size 0."""
    found, outputs = [], []
    for one in (deepcopy(net), deepcopy(twin)):
        one.lr = 0.0
        found.append({key: curve[-1] for key, curve in fit(one, data, 1, samples, 0, False).curves.items()})
        outputs.append(one(data.tensors[0]).detach())
    difference = ((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()).item()
    net, of_twin = (np.stack([values for (level, _), values in one.items() if level in EFFECTIVE]) for one in found)
    reached = ~(np.isnan(net) & np.isnan(of_twin))
    effective = abs(net - of_twin)[reached].max() if reached.any() else math.nan
    about_input = [{level: values for (level, kind), values in one.items() if kind == "input"} for one in found]
    return Pair(difference, *about_input, float(effective))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of torchvision's MNIST")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each net")
    parser.add_argument("--steps", type=int, default=2048, help="optimiser steps of each")
    parser.add_argument("--samples", type=int, default=128, help="that are measured; the time goes with their square")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of figure and event files")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data, out = load(arguments.data_root), arguments.out / "effective_information"
    (x, y), samples = data.tensors, arguments.samples

    runs, pairs = {act: [] for act in ACTIVATIONS}, []
    for seed in range(arguments.seeds):
        for act, its in runs.items():
            pl.seed_everything(seed, verbose=False)
            net = Net(x.shape[1], act)
            logger = TensorBoardLogger(arguments.out, name=out.name, version=f"{act}_seed{seed}")
            its.append(fit(net, data, arguments.steps, samples, seed, logger))
            loss, accuracy = F.cross_entropy(net(x), y), (net(x).argmax(1) == y).float().mean()
            print(f"seed {seed}, {act}: training loss {loss:.4f}, accuracy {accuracy:.3f}", flush=True)
        pairs.append(compare(net, rescaled(net, seed), data, samples))  # the last one was the ReLU net

    figure = draw(runs, pairs[0], math.log(samples))
    figure.savefig(out / "effective_information.png", dpi=110)
    with SummaryWriter(str(out / "figure")) as writer:
        writer.add_figure("effective_information", figure, arguments.steps)
    claims = judge(runs, pairs)
    print(f"\nAbout the input, nats\n{table(runs, 'input')}\n\nAbout the label, nats\n{table(runs, 'label')}\n")
    print(report(claims) if arguments.seeds == 1 else markdown(claims))
    print(f"\nFigure: {out / 'effective_information.png'}")
    print(f"Look at it:  tensorboard --logdir {out}")
    print("Scalars: info_plane/I_XT/..., effective_info/I_XZ/..., effective_info_0.5/I_XZ/..., .../beta")
    print("Images: info_plane/plane, effective_info/plane, effective_info_0.5/plane; the figure in the run 'figure'")


if __name__ == "__main__":
    main()
