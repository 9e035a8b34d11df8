"""A case: a training module of a public package, tiny data, and what is needed to judge what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Predicted = tuple[Tensor, str]
"""Outputs of one sample, and ``"categorical"`` (C, *), ``"bernoulli"``, ``"gaussian"``, ... (*)."""

CLASSES = 4


@dataclass
class Run:
    """A training run.

    Attributes:
        fit: Trains with these callbacks; gives the trained module.
        predicts: The oracle's reading: module and batch of one sample -> its outputs and their likelihood; None where
            the loss is no likelihood.
        alone: Gives the first samples of training, each as a batch of its own.
        adapter: What the documentation advises where the ``training_step`` is refused; None if nothing is advised.
    """

    fit: Callable[[list[pl.Callback]], pl.LightningModule]
    predicts: Callable[[Any, Any], Predicted | list[Predicted]] | None = None
    alone: Callable[[], Iterable[Any]] | None = None
    adapter: Callable[[Any, Any], Any] | None = None


@dataclass
class Case:
    """What is run, and what the table says of it.

    Attributes:
        name: Class or model.
        package: That it is from, as ``import`` names it.
        field: Forecasting, segmentation, ...
        loss: What is trained.
        make: Builds module and data, and says how they are trained.
    """

    name: str
    package: str
    field: str
    loss: str
    make: Callable[[], Run]


CASES: list[Case] = []


def case(name: str, package: str, field: str, loss: str) -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    """Enter a function that makes a run in the list of cases."""

    def enter(make: Callable[[], Run]) -> Callable[[], Run]:
        CASES.append(Case(name, package, field, loss, make))
        return make

    return enter


def trainer(callbacks: list[pl.Callback], **arguments: Any) -> pl.Trainer:
    """A Trainer that is quiet, with its default logger."""
    return pl.Trainer(**quiet(callbacks, **arguments))


def quiet(callbacks: list[pl.Callback], **arguments: Any) -> dict[str, Any]:
    """Arguments of a Trainer that is quiet, with its default logger."""
    off = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return {"accelerator": "cpu", "devices": 1, "max_epochs": 2, **off, "callbacks": callbacks, **arguments}


def run(
    module: pl.LightningModule,
    loader: DataLoader[Any],
    predicts: Callable[[Any, Any], Any] | None = None,
    adapter: Callable[[Any, Any], Any] | None = None,
    alone: Callable[[], Iterable[Any]] | None = None,
    validated: bool = False,
    **arguments: Any,
) -> Run:
    """``Trainer.fit`` of a module on a loader that does not shuffle.

    Args:
        module: The module.
        loader: The loader.
        predicts: See :class:`Run`.
        adapter: See :class:`Run`.
        alone: See :class:`Run`; None: each sample of the data set through the loader's ``collate_fn``.
        validated: The loader also validates, for a scheduler that asks for it.
        **arguments: Of the Trainer.
    """

    def fit(callbacks: list[pl.Callback]) -> pl.LightningModule:
        trainer(callbacks, **arguments).fit(module, loader, loader if validated else None)
        return module

    def each() -> Iterator[Any]:
        for n in range(len(loader.dataset)):
            yield loader.collate_fn([loader.dataset[n]])

    return Run(fit, predicts, alone or each, adapter)


def doubled(batch: Any) -> Any:
    """A batch with its floating-point tensors in double precision."""
    return apply_to_collection(batch, Tensor, lambda t: t.double() if t.is_floating_point() else t)


class Rows(Dataset[Any]):
    """A data set of a list."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> Any:
        return self.rows[n]


def loader(rows: list[Any], batch_size: int = 16, **arguments: Any) -> DataLoader[Any]:
    """A loader of a list, in order."""
    return DataLoader(Rows(rows), batch_size=batch_size, **arguments)


def images(n: int = 64, size: int = 32, channels: int = 3, classes: int = CLASSES) -> list[tuple[Tensor, Tensor]]:
    """Noise, brighter where the class says."""
    labels = torch.arange(n) % classes
    pictures = torch.randn(n, channels, size, size) + 0.5 * labels[:, None, None, None]
    return list(zip(pictures, labels, strict=True))
