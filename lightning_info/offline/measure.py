"""``measure``: the callbacks' measurements for weights that are not being trained."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_info import validation
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.error_policy import Refused
from lightning_info.callbacks.result import MeasureResult
from lightning_info.callbacks.stability import StabilityCallback
from lightning_info.callbacks.weight_info import WeightInfoCallback
from lightning_info.checkpoints import Checkpoint, CheckpointReader, PathLike
from lightning_info.functional.likelihoods import LikelihoodLike
from lightning_info.gradients.contract import first_line
from lightning_info.offline.likelihood import Predicts, adapter_of, described
from lightning_info.offline.run import OfflineRun
from lightning_info.offline.samples import batches_of, loader_of
from lightning_info.replica.isolation import isolated
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.replicate import replicate

OWNER = "measure"


def measure(
    module: nn.Module | type[nn.Module],
    data: Any,
    *callbacks: InfoCallback,
    checkpoints: PathLike | Sequence[PathLike] | None = None,
    likelihood: LikelihoodLike | None = None,
    adapter: Adapter | None = None,
    initial: nn.Module | Mapping[str, Tensor] | PathLike | None = None,
    step: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    weights_only: bool = True,
) -> MeasureResult:
    """Measure what callbacks measure without a Trainer: for a module as it is, or over the checkpoints of a run.

    With the same weights, samples, batch size, step and options the values are those that the callbacks log during
    training, bit by bit. Neither the module, nor random numbers, nor the callbacks are changed; the callbacks' schedule
    (intervals, ``max_overhead``) has no meaning here.

    Args:
        module: A LightningModule, measured through its ``training_step``; or any other ``nn.Module`` with a
            ``likelihood`` or an ``adapter``. Or the class of a LightningModule, made from the last checkpoint.
        data: The training set: tensors such as ``(x, y)``, a Dataset, a DataLoader or a
            LightningDataModule. The reference samples are the first ``num_samples`` of a callback; the length is N.
        callbacks: Any but :class:`~.StabilityCallback`, which needs a training (see :func:`~.compare_runs`). Copies are
            used, so the same objects can be given again.
        checkpoints: Files of one run, a folder, or patterns such as ``"run/checkpoints/*.ckpt"``: of a Trainer, or
            plain state dicts whose name gives the step (``step=100.pt``). None: the weights that the module has.
        likelihood: What ``module(x)`` predicts for batches ``(x, y)``: ``"categorical"`` logits ``(N, C, *)`` of
            classes ``(N, *)``, ``"bernoulli"`` logits, ``"gaussian"`` means, ``"laplace"`` or ``"huber"`` locations,
            ``"poisson"`` log-rates; or a distribution of :mod:`~lightning_info.functional.likelihoods`.
        adapter: ``(module, batch) -> (outputs, targets, likelihood)``, for anything else; a callback's own comes first.
        initial: The weights that training started from (a module, a state dict or a file), which
            :class:`~.WeightInfoCallback` uses with ``prior="init"``. None: those of the first checkpoint if there are
            several.
        step: Step of the values if there are no checkpoints. It also seeds their draws.
        batch_size: Number of samples that go through the module at once, if ``data`` does not say.
        device: Device to measure on.
        weights_only: See :func:`torch.load`; False runs code that a checkpoint holds.

    Returns:
        The values with steps and errors, see :class:`~.MeasureResult`.

    Raises:
        ValueError: An argument is invalid, a checkpoint does not fit, or the first batch does not fit the likelihood;
            the message says what to type.
        FileNotFoundError: A checkpoint does not exist.
        MisconfigurationException: A callback cannot measure the module.

    Example::

        from lightning_info import FisherTraceCallback, measure

        result = measure(resnet, (images, classes), FisherTraceCallback(), likelihood="categorical")
        print(result)  # fisher/trace  12.3 ± 0.4
    """
    validation.positive_integer(OWNER, "batch_size", batch_size, 64)
    validation.natural_number(OWNER, "step", step, 0)
    ours = [_fresh(callback) for callback in callbacks]
    if not ours:
        raise ValueError(f"{OWNER}: no callback is given; for example measure(module, data, FisherTraceCallback())")
    reader, device = CheckpointReader(OWNER, weights_only), _device(device)
    files = [] if checkpoints is None else reader.checkpoints("checkpoints", checkpoints)
    whole = _made(reader, module, files)
    adapter = adapter_of(OWNER, whole, likelihood, adapter)
    for callback in ours:
        callback.adapter = callback.adapter or adapter
    with isolated(device):
        target = _copy(whole).to(device)
        points = [(one.step, one.epoch, partial(reader.load, target, one.path)) for one in files]
        if not points:
            points = [(step, 0, partial(target.load_state_dict, dict(whole.state_dict())))]
        run = OfflineRun(target, loader_of(OWNER, data, batch_size), list(ours), device)
        run.global_step = 0 if _load_initial(reader, target, initial, files, ours) else -1
        for callback in ours:
            callback.setup(run, target, "fit")
            callback.on_train_start(run, target)
        for run.global_step, run.current_epoch, load in points:
            load()
            _collect(run, target, ours, device)
            for callback in ours:
                callback.take_point(run, target, ours)
            ours[0].let_go()
        for callback in ours:
            callback.look_back(run)
    return _result(ours)


def _made(reader: CheckpointReader, module: nn.Module | type[nn.Module], files: Sequence[Checkpoint]) -> nn.Module:
    if isinstance(module, nn.Module):
        return module
    if not isinstance(module, type) or not issubclass(module, nn.Module):
        raise ValueError(f"{OWNER}: module is {module!r}; give an nn.Module, or the class of a LightningModule")
    if not hasattr(module, "load_from_checkpoint"):
        raise ValueError(
            f"{OWNER}: module={module.__name__} is a class whose arguments are not known, as it is no "
            f"LightningModule; give an instance, module={module.__name__}(...)"
        )
    if not files:
        raise ValueError(
            f"{OWNER}: module={module.__name__} is a class; give an instance, module={module.__name__}(...), or "
            f"checkpoints=... to make it from"
        )
    made: nn.Module = reader.made(module, files[-1].path)
    return made


def _device(given: str | torch.device) -> torch.device:
    try:
        device = torch.device(given)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{OWNER}: device={str(given)!r} cannot be used ({first_line(error)}); give device='cpu'"
        ) from error
    return device


def _fresh(callback: InfoCallback) -> InfoCallback:
    """Return a copy with the same options and without what it has measured."""
    if isinstance(callback, type) and issubclass(callback, InfoCallback):
        raise ValueError(f"{OWNER}: {callback.__name__} is a class; pass an instance, {callback.__name__}()")
    if isinstance(callback, (list, tuple)):
        raise ValueError(f"{OWNER}: callbacks are in a {type(callback).__name__}; give them one by one, or *callbacks")
    if not isinstance(callback, InfoCallback):
        raise ValueError(
            f"{OWNER}: {callback!r} is not one of this package's callbacks; give, for example, FisherTraceCallback()"
        )
    if isinstance(callback, StabilityCallback):
        raise ValueError(
            f"{OWNER}: StabilityCallback cannot be measured, as it trains a second network beside a training; give it "
            f"to a Trainer, or train twice and give the checkpoints of both runs to lightning_info.compare_runs"
        )
    reference = callback.reference
    fresh = copy.deepcopy(callback, {id(reference): reference})
    fresh.go_offline()
    return fresh


def _copy(module: nn.Module) -> Any:
    """Return a private copy that has what the callbacks need from a module in training."""
    target = replicate(module, private=True, trainer=getattr(module, "_trainer", None), stand_in=None)
    trains = any(part.training for part in module.modules())
    for part, original in zip(target.modules(), module.modules(), strict=True):
        part.training = original.training if trains else True
    if not isinstance(target, LightningModule) and not hasattr(target, "device"):
        vars(target)["device"] = next((p.device for p in target.parameters()), torch.device("cpu"))
    return target


def _load_initial(
    reader: CheckpointReader, target: Any, initial: Any, points: Sequence[Checkpoint], ours: Sequence[InfoCallback]
) -> bool:
    """Give the target the weights at initialisation if they are known; return whether they are."""
    if isinstance(initial, (str, os.PathLike)):
        reader.load(target, Path(initial))
    elif isinstance(initial, (nn.Module, Mapping)):
        state = initial.state_dict() if isinstance(initial, nn.Module) else initial
        reader.fit(target, state, "initial")
    elif initial is not None:
        raise ValueError(f"{OWNER}: initial is {described(initial)}; give a module, a state dict or a file")
    elif points:
        reader.load(target, points[0].path)
        if points[0].step > 0 and len(points) > 1 and any(isinstance(one, WeightInfoCallback) for one in ours):
            warnings.warn(
                f"{OWNER}: the first checkpoint is of step {points[0].step} and is taken as the initialisation; give "
                f"initial=... if the weights at the start are known",
                stacklevel=3,
            )
        return points[0].step == 0 or len(points) > 1
    return initial is not None


def _collect(run: OfflineRun, target: Any, ours: Sequence[InfoCallback], device: torch.device) -> None:
    """Collect the reference samples and check the module, once, with the first weights that are measured."""
    if all(callback.is_ready for callback in ours):
        return
    for place, batch in enumerate(batches_of(run.train_dataloader, target, device)):
        told = {one.adapter for one in ours if isinstance(one.adapter, Predicts) and one.reference is None}
        for adapter in told if place == 0 else ():
            adapter.check(OWNER, _copy(target).eval(), batch)
        for callback in ours:
            try:
                callback.take_samples(run, target, batch, place)
            except Refused as error:
                raise Refused(f"{error}\n\nThe first batch of data was {described(batch)}.") from error
        if all(callback.is_ready for callback in ours):
            return
    raise ValueError(f"{OWNER}: data holds no batch")


def _result(ours: Sequence[InfoCallback]) -> MeasureResult:
    history: dict[str, Any] = {}
    drawings: dict[str, Callable[[], Any]] = {}
    for callback in ours:
        overhead = callback.tagged(f"{callback.family}/overhead")
        known = {tag: curve for tag, curve in callback.history.items() if any(math.isfinite(v) for _, v in curve)}
        history |= {tag: curve for tag, curve in known.items() if tag != overhead}
        drawings |= callback.drawings()
    return MeasureResult(history, drawings, "\n\n".join(callback.report() for callback in ours))
