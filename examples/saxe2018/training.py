"""Training with a Trainer: snapshots of the weights, and an InfoPlaneCallback for each network.

With a folder for results, an interrupted training goes on from its last checkpoint, and a finished one is read back.
Both are found by the initial weights, the data and the settings, not by the code: delete the folder if you change that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from data import Batches, Samples
from lightning.pytorch.loggers import TensorBoardLogger
from networks import Networks
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_info import InfoPlaneCallback

OUT: Path | None = None
"""Folder of the callbacks' logs (``callbacks``) and of trainings (``trainings``); None keeps nothing."""
CHECKPOINTS, LAST, FINISHED = 5, "last.ckpt", "finished.pt"


class Snapshots(pl.Callback):
    """Keeps the weights after steps 0, 1, 2, 4, 8, ... and each fiftieth of the run."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._keep(0, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        total = trainer.max_epochs * trainer.num_training_batches
        if step & (step - 1) == 0 or step % max(1, total // 50) == 0 or step == total:
            self._keep(step, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = state_dict["weights"]

    def _keep(self, step: int, pl_module: pl.LightningModule) -> None:
        self.weights[step] = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}


class Checkpoints(pl.Callback):
    """Saves some checkpoints on the way and none at the end: a finished training has its own file."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done, every = trainer.current_epoch + 1, -(-trainer.max_epochs // CHECKPOINTS)
        if done % every == 0 and done < trainer.max_epochs:
            trainer.save_checkpoint(self.path)


class Plane(NamedTuple):
    """Results of an InfoPlaneCallback for one network.

    Attributes:
        history: ``tag -> [(step, value), ...]``.
        falls: Bits from the peak of I(X;T) to its end, by layer and by range or estimator.
        verdicts: Whether each layer compresses, in words.
        curves: ``layer -> [(step, I(X;T), I(T;Y)), ...]`` under the requested range of the bins; else empty.
    """

    history: dict[str, list[tuple[int, float]]]
    falls: dict[str, dict[str, float]]
    verdicts: dict[str, str]
    curves: dict[str, list[tuple[int, float, float]]]


class Run:
    """Results of a training.

    Attributes:
        networks: The networks, with the weights of the step that was last requested.
        planes: Results of the callback for each network.
        snapshots: Snapshots of the weights, by step.
        per_epoch: Number of steps of a pass through the data.
    """

    def __init__(
        self, networks: Networks, planes: list[Plane], snapshots: Mapping[int, dict[str, Tensor]], per_epoch: int
    ):
        self.networks, self.planes, self.snapshots, self.per_epoch = networks, planes, snapshots, per_epoch
        self.at(max(snapshots))

    def epochs(self, steps: Iterable[int]) -> dict[int, float]:
        """Passes through the data, by step."""
        return {step: step / self.per_epoch for step in steps}

    def at(self, step: int) -> Networks:
        """Return the networks with the weights of a step."""
        self.networks.load_state_dict(self.snapshots[step])
        return self.networks

    def falls(self, layer: str, bin_range: str) -> list[float]:
        """Return bits from the peak of I(X;T) to its end, for each network, as the callback judged it."""
        return [plane.falls[layer][bin_range] for plane in self.planes]


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
        name: Name in TensorBoard.
        networks: S of them.
        x: Inputs ``(S, D, P)``.
        y: Targets.
        epochs: Passes through the data; a multiple of ``points``.
        reference: Samples that are measured, ``(x (N, D), classes (N,))`` or ``(x,)``.
        batch_size: Batch size; None for all samples.
        points: Number of measurements at the end of equal parts of training, besides those after 0, 1, 2, 4, 8, ...
            steps. Such a part is an epoch of the Trainer.
        plane: Further arguments of InfoPlaneCallback.
    """
    if epochs % points:
        raise ValueError(f"epochs={epochs}: expected a multiple of points={points}")
    batches = Batches(len(x[0, 0]), batch_size or len(x[0, 0]), epochs // points, networks.seeds[0])
    per_epoch = len(batches) * points // epochs
    settings = (networks.seeds, networks.lr, epochs, batch_size, points, sorted(plane.items()))
    name = f"{name}, {fingerprint(settings, *networks.state_dict().values(), x, y, *reference)}"
    kept = OUT / "trainings" / name if OUT else None
    if kept and (kept / FINISHED).exists():
        return Run(networks, *torch.load(kept / FINISHED, weights_only=False), per_epoch)
    callbacks = [
        InfoPlaneCallback(
            layers=networks.layers,
            reference=reference,
            num_samples=len(reference[0]),
            adapter=partial(one_network, number),
            prefix=f"seed{seed}",
            max_overhead=1.0,  # no point is left out
            summary=False,
            on_error="raise",
            **{"label_information": "binned", **plane},  # as in the paper
        )
        for number, seed in enumerate(networks.seeds)
    ]
    snapshots = fit(networks, DataLoader(Samples(x, y), sampler=batches, batch_size=None), points, callbacks, kept)
    planes = [found(callback, plane.get("bin_range")) for callback in callbacks]
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        torch.save((planes, snapshots), kept / "written")
        (kept / "written").replace(kept / FINISHED)
        (kept / LAST).unlink(missing_ok=True)  # it holds all activations that were kept: up to 300 MB
    return Run(networks, planes, snapshots, per_epoch)


def fit(
    networks: Networks, loader: DataLoader, points: int, callbacks: Sequence[pl.Callback], kept: Path | None
) -> dict[int, dict[str, Tensor]]:
    """Train from the last checkpoint or from the beginning, and return the snapshots."""
    snapshots = Snapshots()
    with quiet():
        trainer = pl.Trainer(
            max_epochs=points,
            accelerator="cpu",
            logger=TensorBoardLogger(OUT, name="callbacks", version=kept.name) if kept else False,
            callbacks=[snapshots, *callbacks, *([Checkpoints(kept / LAST)] if kept else ())],
            enable_checkpointing=False,
            enable_progress_bar=sys.stdout.isatty(),
            enable_model_summary=False,
        )
        begun = kept is not None and (kept / LAST).exists()
        trainer.fit(networks, loader, ckpt_path=kept / LAST if begun else None)
    return snapshots.weights


def fingerprint(*parts: Any) -> str:
    """Return a fingerprint of what determines a training."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return digest.hexdigest()[:8]


def found(callback: InfoPlaneCallback, bin_range: Any) -> Plane:
    """Return what is kept of a callback."""
    falls = {layer: judged.falls for layer, judged in callback.verdicts.items()}
    words = {layer: judged.verdict for layer, judged in callback.verdicts.items()}
    return Plane(callback.history, falls, words, callback.curves(bin_range) if bin_range else {})


def one_network(number: int, networks: Networks, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, str]:
    """Return the prediction for InfoPlaneCallback: this network's outputs, the classes if any, and the likelihood."""
    x, *classes = batch
    return networks(x, number), classes[0] if classes else None, "categorical" if classes else "gaussian"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the Trainer's advice and the warnings of all seeds; verdicts stay in the callback."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
