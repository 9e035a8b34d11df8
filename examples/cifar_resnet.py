"""Train a ResNet-18 on CIFAR-10 with five callbacks on.

    python examples/cifar_resnet.py                       # anywhere, in a few minutes: generated images, narrow net
    python examples/cifar_resnet.py --full --data-root D  # CIFAR-10 by torchvision (downloaded to D), width 64
    python examples/cifar_resnet.py --full --npz FILE     # arrays x_train (N, 32, 32, 3) uint8, y_train, x_test, y_test

The ResNet has the form for CIFAR (3x3 stem, no max-pooling). Optimiser as for figure 4 of Achille, Paolini & Soatto:
SGD with momentum 0.9 and weight decay 0.0005, the learning rate times 0.97 after each epoch, 30 epochs with ``--full``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)

CLASSES = 10


def callbacks() -> list[pl.Callback]:
    """Return the callbacks; each works alone too. The twin of StabilityCallback doubles the training."""
    return [
        FisherTraceCallback(every_n_epochs=1),
        InfoPlaneCallback(every_n_epochs=1),
        WeightInfoCallback(num_samples=64, max_overhead=1.0),
        EffectiveInfoCallback(num_samples=64, distortion=0.05, draws=8, max_overhead=1.0),
        StabilityCallback(every_n_epochs=1),
    ]


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(pl.LightningModule):
    """Takes images ``(N, 3, 32, 32)`` of uint8."""

    def __init__(self, width: int, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            *[
                nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))
                for inputs, outputs, stride in zip(widths[:-1], widths[1:], (1, 2, 2, 2), strict=True)
            ]
        )
        self.head = nn.Linear(8 * width, CLASSES)

    def forward(self, x):
        return self.head(self.stages(self.stem((x - self.mean) / self.std)).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)]


def gratings(number: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Generate striped images: the class is the direction; colours, phase, period and noise are random."""
    draw = lambda *shape: torch.rand(number, *shape, generator=generator)  # noqa: E731
    y = torch.randint(CLASSES, (number,), generator=generator)
    angle = (math.pi * (y + 0.6 * (draw() - 0.5)) / CLASSES)[:, None, None]
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    along = columns * angle.cos() + rows * angle.sin()
    wave = torch.sin(2 * math.pi * (along / (4 + 6 * draw(1, 1)) + draw(1, 1)))[..., None]
    colours = draw(2, 1, 1, 3)
    images = colours[:, 0] + (colours[:, 1] - colours[:, 0]) * (wave + 1) / 2 + 0.2 * (draw(32, 32, 3) - 0.5)
    return (255 * images.clamp(0, 1)).byte().numpy(), y.numpy()


def load(data_root: Path | None, npz: Path | None, train_size: int | None) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images, ``(N, 3, 32, 32)`` uint8, with labels."""
    if npz is not None:
        with np.load(npz) as arrays:
            parts = [(arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")]
    elif data_root is not None:
        try:
            from torchvision.datasets import CIFAR10
        except ImportError as error:
            raise SystemExit("--data-root needs torchvision: pip install torchvision, or give --npz FILE") from error
        sets = [CIFAR10(data_root, train=train, download=True) for train in (True, False)]
        parts = [(one.data, np.array(one.targets)) for one in sets]
    else:
        generator = torch.Generator().manual_seed(0)
        parts = [gratings(number, generator) for number in (train_size or 1024, 256)]
    parts[0] = tuple(part[:train_size] for part in parts[0])
    return tuple(TensorDataset(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y).long()) for x, y in parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data-root", type=Path, help="folder of torchvision's CIFAR-10")
    source.add_argument("--npz", type=Path, help="file with x_train, y_train, x_test, y_test")
    parser.add_argument("--full", action="store_true", help="width 64, all images, 30 epochs")
    parser.add_argument("--width", type=int, help="channels of the first stage (default 8)")
    parser.add_argument("--train-size", type=int, help="training images (default 1024)")
    parser.add_argument("--epochs", type=int, help="default 3")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--logdir", type=Path, default=Path("runs"))
    arguments = parser.parse_args(argv)
    width = arguments.width or (64 if arguments.full else 8)
    size = arguments.train_size or (None if arguments.full else 1024)

    pl.seed_everything(0, verbose=False)
    train, test = load(arguments.data_root, arguments.npz, size)
    pixels = train.tensors[0].float()
    mean, std = (of(pixels, (0, 2, 3)).reshape(3, 1, 1) for of in (torch.mean, torch.std))
    measured = callbacks()
    trainer = pl.Trainer(
        max_epochs=arguments.epochs or (30 if arguments.full else 3),
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(arguments.logdir, name="cifar_resnet"),
        callbacks=measured,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(
        ResNet18(width, mean, std), DataLoader(train, arguments.batch_size, shuffle=True), DataLoader(test, 256)
    )

    print(f"\nTest accuracy {trainer.callback_metrics['val_accuracy'].item():.3f} after {trainer.global_step} steps.")
    print(f"Look at it:  tensorboard --logdir {arguments.logdir}")
    print("Scalars: fisher/trace, info_plane/I_XT/..., weight_info/kl, effective_info/I_XZ/..., stability/output_kl")
    print("Images: fisher/layers, info_plane/plane, weight_info/rate_distortion, effective_info/plane, stability/paths")


if __name__ == "__main__":
    main()
