"""The measurements of :class:`~.StabilityCallback`, from the checkpoints of two ordinary runs."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info import validation
from lightning_info.checkpoints import Checkpoint, CheckpointReader, PathLike, few
from lightning_info.figures.stability_paths import LossLandscape, stability_paths
from lightning_info.quantities.quantity import Point
from lightning_info.quantities.stability.quantity import Other, Stability
from lightning_info.quantities.stability.weight_change import flat_weights
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.replica.isolation import isolated
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.prediction import Adapter, Predictor
from lightning_info.replica.reference_samples import ReferenceSamples
from lightning_info.replica.replicate import replicate
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.stand_in_trainer import NullObject, StandInTrainer
from lightning_info.reporting.table import Curve, curves_table

OWNER = "compare_runs"


@dataclass(frozen=True)
class RunComparison:
    """Result of :func:`compare_runs`.

    Attributes:
        history: ``tag -> [(global_step, value), ...]``, with the tags of :class:`~.StabilityCallback`.
        picture: Content of the figure; None if there is none.
        reason: Why there is no figure.
        caption: Caption of the figure.
    """

    history: Mapping[str, Curve]
    picture: LossLandscape | None
    reason: str
    caption: str

    def figure(self) -> Figure:
        """Draw both paths in the plane of where they start and end, see :func:`~.stability_paths`.

        Raises:
            ValueError: There is no figure; the message says why.
        """
        if self.picture is None:
            raise ValueError(f"{OWNER}: no figure, as {self.reason}")
        first, last = self.picture.paths.steps[0], self.picture.paths.steps[-1]
        return stability_paths(self.picture, title=f"Two runs from step {first} to step {last}", caption=self.caption)

    def table(self) -> str:
        """Return a row for each step, a column for each quantity."""
        return curves_table(self.history)

    def write(self, folder: PathLike) -> None:
        """Write curves and figure for TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter  # takes long to import

        with SummaryWriter(os.fspath(folder)) as writer:
            for tag, curve in self.history.items():
                for step, value in curve:
                    writer.add_scalar(tag, value, step)
            if self.picture is not None:
                writer.add_figure("stability/paths", self.figure(), self.picture.paths.steps[-1])


def compare_runs(
    module: Any,
    run: PathLike | Sequence[PathLike],
    twin: PathLike | Sequence[PathLike],
    reference: Dataset[Any] | Sequence[Tensor],
    *,
    replaced: Dataset[Any] | Sequence[Tensor] | None = None,
    training_samples: int | None = None,
    beta: float = 1.0,
    num_samples: int = 256,
    batch_size: int = 64,
    adapter: Adapter | None = None,
    device: str | torch.device = "cpu",
    weights_only: bool = True,
    seed: int = 0,
) -> RunComparison:
    """Compare two runs that differ only in their data, at every step at which both have a checkpoint.

    For runs that :class:`~.StabilityCallback` cannot follow with a twin (several processes, sharded, very large): train
    twice with the same seed, the second time with one sample replaced. Only ``"state_dict"`` and ``"global_step"`` of a
    checkpoint are read; neither file nor module is changed. Quantities and tags are those of the callback.

    Args:
        module: A LightningModule of the right architecture, whose weights do not matter; or its class, which is then
            made from the last checkpoint by ``load_from_checkpoint``.
        run: Checkpoints of the run, or their folder.
        twin: Checkpoints of the other run.
        reference: Samples to measure on, the first ``num_samples`` of them: a Dataset, or tensors such as ``(x, y)``;
            they must look like the batches that ``training_step`` gets.
        replaced: The replaced sample, in the same form, for ``stability/loss_gap``; several are averaged.
        training_samples: N of the summed loss, for ``stability/unique_information``; None: as many as there are
            reference samples, with a warning.
        beta: Level of the task.
        num_samples: Largest number of reference samples.
        batch_size: Number of samples that go through the module at once.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)``, if the
            ``training_step`` does not show them.
        device: Device to measure on.
        weights_only: See :func:`torch.load`; False runs code that a checkpoint holds.
        seed: Seed of the random draws for the figure.

    Raises:
        ValueError: There is nothing to compare, or an argument is invalid; the message says what to type.

    Example::

        from lightning_info import compare_runs

        found = compare_runs(MyModule(), "run/", "replaced/", (x, y), training_samples=50_000)
        print(found.table())
        found.figure().savefig("paths.png")
    """
    validation.positive_number(OWNER, "beta", beta, 1.0)
    validation.positive_integer(OWNER, "num_samples", num_samples, 256)
    validation.positive_integer(OWNER, "batch_size", batch_size, 64)
    reader, device = CheckpointReader(OWNER, weights_only), torch.device(device)
    pairs = matched(reader.checkpoints("run", run), reader.checkpoints("twin", twin))
    samples = _samples(reference, num_samples)
    alone = None if replaced is None else _samples(replaced, sys.maxsize)[0]
    if isclass(module):
        module = reader.made(module, pairs[max(pairs)][0])
    with isolated(device):
        here, there = (_snapshot(module, samples, batch_size, adapter, device) for _ in range(2))
        n, quantity = _training_samples(training_samples, here.size), Stability(beta, seed)
        quantity.others = [Other(there.module, lambda groups: there, None if alone is None else lambda: alone)]
        told: set[str] = set()
        history: dict[str, list[tuple[int, float]]] = {}
        for step, (ours, theirs) in pairs.items():
            reader.load(here.module, ours)
            reader.load(there.module, theirs)
            point = Point(step, torch.Generator().manual_seed(seed), TrainingSetup(n), here.size, partial(_once, told))
            if not history:
                _look_at(quantity, here, there, point)
            for tag, value in _values(quantity, here, point).items():
                history.setdefault(tag, []).append((step, value))
        history = {tag: curve for tag, curve in history.items() if tag not in _UNKNOWN or _has_values(curve)}
        found, reason = _landscape(quantity, here, there, point)
    return RunComparison(history, found, reason, f"N = {n}, β = {beta:g}")


def matched(run: Sequence[Checkpoint], twin: Sequence[Checkpoint]) -> dict[int, tuple[Path, Path]]:
    """Return the pairs of checkpoints of the same optimiser step, in rising order.

    Raises:
        ValueError: There are none.
    """
    ours, theirs = ({one.step: one.path for one in checkpoints} for checkpoints in (run, twin))
    steps = sorted(ours.keys() & theirs.keys())
    if not steps:
        raise ValueError(
            f"{OWNER}: no global_step has a checkpoint of both runs: run has {few(sorted(ours))}, twin has "
            f"{few(sorted(theirs))}; save both at the same steps, for example ModelCheckpoint("
            f"every_n_train_steps=100, save_top_k=-1)"
        )
    return {step: (ours[step], theirs[step]) for step in steps}


def _samples(given: Dataset[Any] | Sequence[Tensor], most: int) -> list[Any]:
    if isinstance(given, Tensor):
        raise ValueError(f"{OWNER}: samples are a Dataset or several tensors, for example (x, y); got one tensor")
    samples = ReferenceSamples(most)
    samples.fill(given)
    return samples.groups


def _snapshot(
    module: Any, samples: list[Any], chunk: int, adapter: Adapter | None, device: torch.device
) -> ModelSnapshot:
    stand_in = StandInTrainer(NullObject())
    replica = replicate(module, private=True, trainer=getattr(module, "_trainer", None), stand_in=stand_in).to(device)
    return ModelSnapshot(replica, Predictor(stand_in, adapter, shared=False), samples, chunk, device)


def _training_samples(given: int | None, measured: int) -> int:
    if given is None:
        _warn(f"training_samples is not given; N = {measured}, the number of reference samples, is used")
        return measured
    validation.positive_integer(OWNER, "training_samples", given, 50_000)
    return given


def _look_at(quantity: Stability, here: ModelSnapshot, there: ModelSnapshot, point: Point) -> None:
    """Warn once about what the comparison cannot measure."""
    try:
        rows = quantity.prepare(here, point)
    except (NoPrediction, AttributeError) as error:
        raise ValueError(
            f"{OWNER}: {error}; say what is predicted, for example adapter=lambda module, batch: (module(batch[0]), "
            f'batch[1], "categorical") (or "bernoulli", "gaussian")'
        ) from error
    if point.step > 0:
        _warn(
            f"the first common checkpoint is of step {point.step}: no relative_distance, and the figure begins there. "
            f"Save the start too: torch.save({{'state_dict': model.state_dict(), 'global_step': 0}}, 'start.ckpt')"
        )
    elif not torch.equal(flat_weights(here.module), flat_weights(there.module)):
        _warn(
            "the runs start from different weights, so distances reflect more than the data; use the same seed for both"
        )
    if "left out" in rows:
        _warn(f"no {rows['left out']}")


def _values(quantity: Stability, here: ModelSnapshot, point: Point) -> Mapping[str, float]:
    """Return the values by tag; without finite outputs, those of the weights."""
    try:
        return quantity.measure(here, point)
    except Unavailable as error:
        _warn(f"no value at step {point.step} (NaN): {error}")
        return dict.fromkeys(quantity.tags, math.nan) | quantity.distances(here.module, point)


_UNKNOWN = ("stability/relative_distance", "stability/loss_gap")
"""Tags that are left out if unknown: without a checkpoint of the start, without the replaced sample."""


def _has_values(curve: Curve) -> bool:
    return any(not math.isnan(value) for _, value in curve)


def _landscape(
    quantity: Stability, here: ModelSnapshot, there: ModelSnapshot, point: Point
) -> tuple[LossLandscape | None, str]:
    """Return the picture at the weights of the last step, or why there is none."""
    try:
        return quantity.landscape(here, there.module, point), ""
    except (ValueError, Unavailable) as error:
        return None, str(error)


def _once(told: set[str], message: str, kind: str) -> None:
    if kind not in told | {"start"}:  # a warning about the start was given before
        told.add(kind)
        _warn(message)


def _warn(text: str) -> None:
    warnings.warn(f"{OWNER}: {text}", stacklevel=4)  # where compare_runs was called
