"""Which layers of a small CNN become invariant to rotations and shifts, and does it go with the Fisher information?

    python examples/nuisances.py                        # digits: 3 seeds of each, six minutes of one core
    python examples/nuisances.py --augment no --seeds 1 # one plain training
    python examples/nuisances.py --data-root D          # CIFAR-10 by torchvision (downloaded to D)
    python examples/nuisances.py --npz FILE             # arrays x_train (N, 32, 32, 3) uint8, y_train, x_test, y_test
    python examples/nuisances.py --page                 # and write docs/reproductions/nuisances.md from all in --out

Two nuisances, each of two bits: a rotation by 0 to 3 quarter turns, and a cyclic shift by 0 to 3 quarters of the width.
The CNN has three convolutions and one layer more, and it learns scikit-learn's digits by SGD, once from the images as
they are and once from images that are turned and shifted at random. ``InfoPlaneCallback(nuisances=...)`` measures
I(T;N), what cross-fitted linear decoders tell of the nuisance from a layer, and ``FisherTraceCallback`` tr F; both use
the same images, not augmented in either training.

These criteria were written before anything was measured:

- (a) deeper layers hold less of the nuisance: at the end, the last hidden layer by 0.1 bits less than the first;
- (b) in the last hidden layer I(T;N) falls over training by 0.1 bits, while I(T;Y) does not fall;
- (c) more so with augmentation: at the end, the last hidden layer holds 0.1 bits less than without, of the same seed;
- (d) it goes with tr F: over the points of a training, the rank correlation of I(T;N) with log tr F is at least 0.5.

What a linear decoder tells is a lower bound of I(T;N). It may find more in a deep layer than in an earlier one, which
holds as much but not in a form that it can use.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from cifar_resnet import load as load_cifar
from lightning.pytorch.loggers import TensorBoardLogger
from nuisance_curves import LAYERS, Run, draw, judge, table
from PIL import Image
from results_page import REPRODUCTIONS, write
from saxe2018.claims import Claim, markdown, report
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_info import FisherTraceCallback, InfoPlaneCallback

CLASSES, BATCH, LR = 10, 64, 0.05
INTRODUCTION = """# Which layers become invariant, and does it go with tr F?

Written by `python examples/nuisances.py --page`, whose docstring describes the nets, the nuisances and the criteria,
which were written before anything was measured. Information is what cross-fitted linear decoders tell from a layer, a
lower bound, in bits; each nuisance has two. A verdict is *reproduced* if all seeds meet the criterion, *in part* if
some do. Rank correlations over the points of one training are large for any two quantities that change steadily while
it lasts, so that (d) can refute that one goes with the other, and cannot prove it. In the sums, the second part of (b)
does not count. A layer of which linear decoders tell less than 0.1 bits at the start, as of both nuisances of CIFAR-10
in the last hidden layer, cannot meet (b).
"""


def rotated(image: Tensor) -> tuple[Tensor, int]:
    """Turn an image ``(C, H, W)`` by a random number of quarters, and return that number."""
    quarters = int(torch.randint(4, ()))
    return image.rot90(quarters, (1, 2)), quarters


def shifted(image: Tensor) -> tuple[Tensor, int]:
    """Shift an image cyclically by a random number of quarters of its width, and return that number."""
    quarters = int(torch.randint(4, ()))
    return image.roll(quarters * image.shape[2] // 4, 2), quarters


NUISANCES = {"rotation": rotated, "shift": shifted}


class Augmented(Dataset):
    """Images of a dataset, each turned and shifted at random; an index is that of a batch."""

    def __init__(self, data: TensorDataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        images, labels = self.data[numbers]
        return torch.stack([shifted(rotated(image)[0])[0] for image in images]), labels


class Net(pl.LightningModule):
    """Three convolutions and a layer over all positions; images of 32 pixels are halved twice first."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        stride = 1 if side <= 8 else 2
        self.conv1, self.act1 = nn.Conv2d(channels, 16, 3, stride, 1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(16, 32, 3, stride, 1), nn.ReLU()
        self.conv3, self.act3 = nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.hidden, self.act4 = nn.Linear(32 * (side // stride**2 // 4) ** 2, 64), nn.ReLU()
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        x = self.pool(self.act2(self.conv2(self.act1(self.conv1(x)))))
        x = self.pool(self.act3(self.conv3(x)))
        return self.head(self.act4(self.hidden(x.flatten(1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), LR, momentum=0.9)


def load(data_root: Path | None, npz: Path | None, train_size: int | None) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images ``(N, C, H, W)``, each channel of mean 0 and variance 1, with labels."""
    if data_root is None and npz is None:
        digits = load_digits()
        x, y = torch.tensor(digits.images).float()[:, None], torch.tensor(digits.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        parts = [(x[order[:1437]][:train_size], y[order[:1437]][:train_size]), (x[order[1437:]], y[order[1437:]])]
    else:
        parts = [
            (data.tensors[0].float(), data.tensors[1]) for data in load_cifar(data_root, npz, train_size or 10_000)
        ]
    mean, std = parts[0][0].mean((0, 2, 3), keepdim=True), parts[0][0].std((0, 2, 3), keepdim=True)
    return tuple(TensorDataset((x - mean) / std, y) for x, y in parts)


def fit(
    train: TensorDataset, test: TensorDataset, augment: bool, seed: int, steps: int, samples: int, logger: object
) -> Run:
    """Train, measured after 0, 1, 2, 4, ... steps and at the end."""
    pl.seed_everything(seed, verbose=False)
    net = Net(*train.tensors[0].shape[1:3])
    common = {"reference": train.tensors, "num_samples": samples, "on_error": "raise", "summary": False}
    common |= {"max_overhead": 1.0, "seed": seed}  # no point is left out
    plane = InfoPlaneCallback(layers=list(LAYERS), projections=1, nuisances=NUISANCES, **common)
    fisher = FisherTraceCallback(**common)
    # one pass through as many batches, so the ends of epochs are not points
    sampler = RandomSampler(train, num_samples=steps * BATCH, generator=torch.Generator().manual_seed(seed))
    batches = BatchSampler(sampler, BATCH, drop_last=False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[plane, fisher],
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the bins, which are not used here
        trainer.fit(net, DataLoader(Augmented(train) if augment else train, batch_size=None, sampler=batches))
    trace = fisher.history["fisher/trace"]
    curves = {}
    for kind in ("I_TY", *(f"I_TN_{name}" for name in NUISANCES)):
        for what, family in (("value", "info_plane_decoder"), ("error", "info_plane_decoder_stderr")):
            layers = [[value for _, value in plane.history[f"{family}/{kind}/{layer}"]] for layer in LAYERS]
            curves[kind.removeprefix("I_TN_"), what] = np.array(layers).T
    with torch.no_grad():
        accuracy = (net.eval()(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean().item()
    return Run([step for step, _ in trace], curves, np.array([value for _, value in trace]), accuracy)


def section(data: str, runs: dict[str, list[Run]], claims: list[Claim], how: str) -> str:
    """Return what the page says of some data."""
    accuracies = "; ".join(
        f"{kind}: test accuracy {' '.join(f'{run.accuracy:.3f}' for run in its)}" for kind, its in runs.items()
    )
    told = [
        f"({letter}) {sum(c.holding for c in its)} of {sum(len(c.values) for c in its)}"
        for letter in "abcd"
        if (its := [claim for claim in claims if claim.text.startswith(f"({letter}) ") and "..." not in claim.text])
    ]
    return "\n\n".join(
        [
            f"## {data}",
            f"{how}. {accuracies}. Values that meet their criterion: {', '.join(told)}.",
            f"{{{data}.png}}",
            markdown((f"{len(next(iter(runs.values())))} seeds", claim) for claim in claims),
            "Means over the seeds; the error is the standard error over the seeds.",
            table(runs),
        ]
    )


def page(out: Path) -> Path:
    """Write the page of all data whose results are in a folder."""
    found = sorted(out.glob("*.md"), reverse=True)  # digits first
    caption = "information in each layer, and in the last hidden one against tr F"
    pictures = {one.with_suffix(".png"): f"{one.stem}: {caption}" for one in found}
    text = "\n\n".join([INTRODUCTION.rstrip(), *(one.read_text() for one in found)])
    return write(REPRODUCTIONS, "nuisances", f"{text}\n", pictures)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data-root", type=Path, help="folder of torchvision's CIFAR-10")
    source.add_argument("--npz", type=Path, help="file with x_train, y_train, x_test, y_test of CIFAR-10")
    parser.add_argument(
        "--augment", choices=["both", "yes", "no"], default="both", help="train on turned, shifted images"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=4096, help="optimiser steps of each")
    parser.add_argument("--samples", type=int, default=1024, help="images that are measured")
    parser.add_argument("--train-size", type=int, help="training images (of CIFAR-10 10000 by default)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of figure, results and event files")
    parser.add_argument("--page", action="store_true", help="write docs/reproductions/nuisances.md from this folder")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out, steps = arguments.out / "nuisances", arguments.steps
    train, test = load(arguments.data_root, arguments.npz, arguments.train_size)
    data = "digits" if arguments.data_root is None and arguments.npz is None else "CIFAR-10"

    kinds = {"both": ("plain", "augmented"), "yes": ("augmented",), "no": ("plain",)}[arguments.augment]
    runs = {kind: [] for kind in kinds}
    for seed in range(arguments.seeds):
        for kind, its in runs.items():
            logger = TensorBoardLogger(arguments.out, name=out.name, version=f"{data}_{kind}_seed{seed}")
            its.append(fit(train, test, kind == "augmented", seed, steps, arguments.samples, logger))
            print(f"seed {seed}, {kind}: test accuracy {its[-1].accuracy:.3f}", flush=True)

    claims, picture = judge(runs), out / f"{data}.png"
    draw(runs).savefig(picture, dpi=90)
    with SummaryWriter(str(out / "figure")) as writer:
        writer.add_image(f"nuisances/{data}", np.asarray(Image.open(picture)), steps, dataformats="HWC")
    how = f"{len(train)} training images, {steps} steps, {arguments.samples} images measured, seeds from 0"
    picture.with_suffix(".md").write_text(section(data, runs, claims, how))
    print(f"\n{table(runs)}\n\n{report(claims)}\n\nFigure: {picture}")
    print(f"Look at it:  tensorboard --logdir {out}")
    if arguments.page:
        print(f"Page: {page(out)}")


if __name__ == "__main__":
    main()
