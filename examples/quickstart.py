"""Train a small convolutional net on scikit-learn's digits and watch what it learns in TensorBoard.

    python examples/quickstart.py

Less than a minute on two cores. Apart from the callbacks in the Trainer, everything is plain Lightning.
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback


class DigitsNet(pl.LightningModule):
    """Three convolutions with BatchNorm, global pooling, one linear layer."""

    def __init__(self, width: int = 32):
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        self.features = nn.Sequential(block(1, width, 1), block(width, 2 * width, 2), block(2 * width, 2 * width, 2))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_accuracy", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loaders(batch_size: int) -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    parts = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    train, validation = TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(validation, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--logdir", default="runs")
    arguments = parser.parse_args()

    pl.seed_everything(0, verbose=False)
    fisher = FisherTraceCallback(every_n_train_steps=10)
    plane = InfoPlaneCallback(every_n_epochs=3)
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(arguments.logdir, name="quickstart"),
        callbacks=[fisher, plane],
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(DigitsNet(), *loaders(arguments.batch_size))

    accuracy = trainer.callback_metrics["val_accuracy"].item()
    points = fisher.history["fisher/trace"]
    (step, trace), (_, error) = points[-1], fisher.history["fisher/trace_stderr"][-1]
    print(
        f"\nValidation accuracy {accuracy:.3f}. Fisher trace measured at {len(points)} of {step} steps (engine "
        f"{fisher.plan.engine!r}); at the end tr F = {trace:.3g} ± {error:.2g} nats per squared weight change."
    )
    print(f"Look at it:  tensorboard --logdir {arguments.logdir}")


if __name__ == "__main__":
    main()
