"""Training with a Trainer: batches, snapshots of the weights, and an InfoPlaneCallback for each network."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from networks import Networks
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_info import InfoPlaneCallback

TENSORBOARD: Path | None = None
"""Folder of what the callbacks log; None logs nothing."""


class Samples(Dataset):
    """``x (S, D, P)`` and ``y (S, ..., P)``; samples' numbers give the batch ``(N, S, D)`` and ``(N, S, ...)``.

    Samples come first, as everywhere; in memory they are last, as the networks take them.
    """

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __getitem__(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[..., numbers].movedim(-1, 0), self.y[..., numbers].movedim(-1, 0)

    def __len__(self) -> int:
        return self.x.shape[-1]


class Batches:
    """Numbers of the samples of the batches of some passes through the data, each shuffled anew."""

    def __init__(self, samples: int, size: int, passes: int, seed: int):
        self.samples, self.size, self.passes = samples, size, passes
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.passes):
            yield from torch.randperm(self.samples, generator=self.generator).split(self.size)

    def __len__(self) -> int:
        return self.passes * -(-self.samples // self.size)


class Snapshots(pl.Callback):
    """Keeps the weights after steps 0, 1, 2, 4, 8, ... and each fiftieth of the run."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(0, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        total = trainer.max_epochs * trainer.num_training_batches
        if step & (step - 1) == 0 or step % max(1, total // 50) == 0 or step == total:
            self._keep(step, pl_module)

    def _keep(self, step: int, pl_module: pl.LightningModule) -> None:
        self.weights[step] = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}


class Run:
    """What is left of a training.

    Attributes:
        networks: With the final weights.
        planes: An InfoPlaneCallback for each network.
        snapshots: Of the weights, by step.
        per_epoch: Steps of a pass through the data.
    """

    def __init__(self, networks: Networks, planes: list[InfoPlaneCallback], snapshots: Snapshots, per_epoch: int):
        self.networks, self.planes, self.snapshots = networks, planes, snapshots.weights
        self.per_epoch = per_epoch

    def epochs(self, steps: Iterable[int]) -> dict[int, float]:
        """Passes through the data, by step."""
        return {step: step / self.per_epoch for step in steps}

    def at(self, step: int) -> Networks:
        """The networks with the weights of a step."""
        self.networks.load_state_dict(self.snapshots[step])
        return self.networks

    def falls(self, layer: str, bin_range: str) -> list[float]:
        """Bits from the peak of I(X;T) to its end, for each network, as the callback judged it."""
        return [plane.verdicts[layer].falls[bin_range] for plane in self.planes]


def train(
    name: str,
    networks: Networks,
    x: Tensor,
    y: Tensor,
    epochs: int,
    reference: Sequence[Tensor],
    batch_size: int | None = None,
    points: int = 50,
    **plane: Any,
) -> Run:
    """Train and measure.

    Args:
        name: In TensorBoard.
        networks: S of them.
        x: Inputs ``(S, D, P)``.
        y: Targets.
        epochs: Passes through the data; a multiple of ``points``.
        reference: Samples that are measured, ``(x (N, D), classes (N,))`` or ``(x,)``.
        batch_size: None for all samples.
        points: Measurements at the end of equal parts of training, besides those after 0, 1, 2, 4, 8, ... steps. Such a
            part is an epoch of the Trainer.
        plane: Further arguments of InfoPlaneCallback.
    """
    if epochs % points:
        raise ValueError(f"epochs={epochs}: expected a multiple of points={points}")
    batches = Batches(len(x[0, 0]), batch_size or len(x[0, 0]), epochs // points, networks.seeds[0])
    loader = DataLoader(Samples(x, y), sampler=batches, batch_size=None)
    planes = [
        InfoPlaneCallback(
            layers=networks.layers,
            reference=reference,
            num_samples=len(reference[0]),
            adapter=partial(one_network, number),
            prefix=f"seed{seed}",
            max_overhead=1.0,  # no point is left out
            summary=False,
            on_error="raise",
            **plane,
        )
        for number, seed in enumerate(networks.seeds)
    ]
    snapshots = Snapshots()
    with quiet():
        trainer = pl.Trainer(
            max_epochs=points,
            accelerator="cpu",
            logger=TensorBoardLogger(TENSORBOARD, name=name) if TENSORBOARD else False,
            callbacks=[snapshots, *planes],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(networks, loader)
    return Run(networks, planes, snapshots, len(batches) * points // epochs)


def one_network(number: int, networks: Networks, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, str]:
    """What InfoPlaneCallback is told: this network's outputs, the classes if there are any, and what outputs are."""
    x, *classes = batch
    return networks(x, number), classes[0] if classes else None, "categorical" if classes else "gaussian"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the advice of the Trainer, and without the warnings of all seeds; verdicts stay in the callback."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
