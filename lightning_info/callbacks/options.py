"""The arguments that all callbacks share: declared, and described, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_type_hints

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import TypedDict, Unpack

from lightning_info import validation
from lightning_info.functional.units import Unit
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.declared_samples import Collate, Split
from lightning_info.replica.prediction import Adapter

MARK = "        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.\n"
"""Stands in the docstring of a callback for :data:`ARGUMENTS`."""

ARGUMENTS = """\
        every_n_epochs: Measure at s = 0 and after epochs n, 2n, ... (before the first step of the next epoch, so
            ``EarlyStopping`` sees it one epoch later).
        every_n_train_steps: Measure at optimiser steps 0, n, 2n, ... Without an interval: 0, 1, 2, 4, 8, ..., and the
            end of every epoch, as far as ``max_overhead`` allows.
        reference: Reference samples to use instead of the first that training uses; the first ``num_samples`` of them
            count: a Dataset (collated as a DataLoader does by default), or tensors such as ``(x, y)``; they must look
            like the batches that ``training_step`` gets.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)`` with ``"categorical"``
            (logits), ``"bernoulli"`` (logits), ``"gaussian"`` (means), ``"laplace"``, ``"huber"`` (locations) or
            ``"poisson"`` (log-rates), if the ``training_step`` does not show them.
        split: ``batch -> [sample, ...]``, for batches whose samples do not lie along an axis (graphs, flat tensors with
            offsets, your own class); needs ``collate``. Batches of PyTorch Geometric, packed sequences, and flat
            tensors with an index of their samples need neither.
        collate: ``[sample, ...] -> batch``, such as the ``collate_fn`` of the loader: joins what ``split`` returns, and
            the items of a Dataset given as ``reference``.
        batch_axes: Maps the name or position of a tensor in the batch to the axis of its samples, or None if it belongs
            to all of them: ``{"x": 1, "table": None}``, ``{0: 1}``, ``{"inputs.0": 1}``. Other tensors carry samples if
            their axis 0 has the same length. Without ``batch_axes`` the axes are found by experiment.
        seed: Seed of all random numbers of the measurements; training's own are never touched.
        prefix: Text in front of every tag, ``prefix/...``.
        on_error: ``"warn"``: a measurement that fails gives one warning and NaN, and a module that cannot be measured
            gives one warning, after which the callback is off. ``"raise"``: either ends the run.
        max_overhead: Largest share of the run's time for all callbacks without an interval together (the largest
            of their values), including the checks before the first step. Points and figures have 3 s, or half of that
            share, whatever the checks take. The default is 0.05, and no limit with an interval. Points that do not fit
            are measured with fewer draws or samples, which is reported, or left out. 1 is no limit.
        batch_norm: Statistics of BatchNorm layers that train on batch statistics: those of the ``"reference"`` samples
            at the measured weights (default), or the ``"running"`` ones, as with ``module.eval()``. Running ones lag
            behind the weights and are arbitrary at initialisation: the first 100 steps or so of a curve then show their
            warm-up more than the weights.
        unit: Unit of all information that is logged, shown and kept, ``"bits"`` or ``"nats"``; set on one callback it
            applies to all of a Trainer. The default is the custom of the field: bits for the information plane, nats
            for what is measured in weights and under their noise.
        summary: Whether to print the table at the end of fit, with notes on it.
        verbose: Whether to print the samples, steps and costs in full before the first step, as ``report()`` does,
            instead of one line with what is measured and what is left out.
        prog_bar: Whether to show the last value of the headline, the first row of the table at the end, in the progress
            bar.
        log_hyperparams: Whether to add the arguments (``with/FisherTraceCallback/num_samples``, ...) to the run's
            hyperparameters in its loggers, beside those of ``save_hyperparameters()``.
        save_samples: Whether to keep the reference samples (up to 64 MiB) in checkpoints; a resumed run then measures
            on the same ones. False keeps training data out of them: a resumed run then collects samples anew and says
            so. The values before and after come from different samples, and no error bar includes that change.
"""


class CommonOptions(TypedDict, total=False):
    """Schedule, reference samples and error policy of a callback; ``help()`` of each callback describes them."""

    every_n_epochs: int | None
    every_n_train_steps: int | None
    reference: Dataset | Sequence[Tensor] | None  # type: ignore[type-arg]
    adapter: Adapter | None
    split: Split | None
    collate: Collate | None
    batch_axes: dict[str, int | None] | dict[int, int | None] | None
    seed: int
    prefix: str | None
    on_error: Literal["warn", "raise"]
    max_overhead: float | None
    batch_norm: BatchNormStatistics
    unit: Unit | None
    summary: bool
    verbose: bool
    prog_bar: bool
    log_hyperparams: bool
    save_samples: bool


def check_common_options(owner: str, **common: Unpack[CommonOptions]) -> None:
    """Refuse invalid shared arguments; those that are not given are not checked.

    Raises:
        ValueError: An argument is invalid; the message has the fix.
    """
    validation.intervals(owner, common.get("every_n_epochs"), common.get("every_n_train_steps"))
    validation.integer(owner, "seed", common.get("seed", 0), 0)
    validation.one_of(owner, "on_error", common.get("on_error", "warn"), ("warn", "raise"))
    validation.one_of(owner, "batch_norm", common.get("batch_norm", "reference"), get_args(BatchNormStatistics))
    if common.get("unit") is not None:
        validation.one_of(owner, "unit", common["unit"], get_args(Unit))
    share, prefix, adapter = common.get("max_overhead"), common.get("prefix"), common.get("adapter")
    if share is not None:
        validation.positive_number(owner, "max_overhead", share, 0.05)
        if share > 1:
            raise ValueError(
                f"{owner}: max_overhead={share:g} is more than the whole run; it is a share of the run's time, for "
                f"example max_overhead=0.05 for 5 %"
            )
    if prefix:
        validation.path(owner, "prefix", prefix, "run1")
    if adapter is not None and not callable(adapter):
        raise ValueError(f"{owner}: adapter must be a function (module, batch) -> (outputs, targets), got {adapter!r}")


def show_common_options(init: Callable[..., Any], base: Callable[..., Any]) -> None:
    """Give a constructor that hands ``**common`` on a signature with the names, types and defaults of its base.

    ``inspect``, ``help()`` and LightningCLI read it; type checkers read :class:`CommonOptions`.
    """
    own, types = inspect.signature(init), get_type_hints(base)
    parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(parameters) == len(own.parameters):
        return
    shared = [
        p.replace(annotation=types[p.name])
        for p in inspect.signature(base).parameters.values()
        if p.name in CommonOptions.__annotations__
    ]
    vars(init)["__signature__"] = own.replace(parameters=[*parameters, *shared])
