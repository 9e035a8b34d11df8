"""The check before the first step: refuses what cannot be measured, with the fix, and describes what can."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_info.callbacks.error_policy import Refused, WrongArgument
from lightning_info.callbacks.loss_rows import loss_rows
from lightning_info.gradients.batches import num_samples, spread, take
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.graph import leaf_uses
from lightning_info.gradients.layout import Batch, Layout
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.real import sizes
from lightning_info.quantities.checks import WrongQuantity
from lightning_info.quantities.quantity import NotMeasurable
from lightning_info.replica.blame import text_of
from lightning_info.replica.layer_selection import NoLayers
from lightning_info.replica.noise import NotItsOwnNoise
from lightning_info.replica.predicted import NoLikelihood, WritesParameters
from lightning_info.replica.prediction import ADAPTER_LINES, NoPrediction, Prediction, Skipped
from lightning_info.replica.repeatable import repeated
from lightning_info.replica.replicate import NotCopyable
from lightning_info.replica.sample_axis import Layouts, SamplesMixed, first_predictions, sample_layout
from lightning_info.replica.sharded import WholeParameters, gathered
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.train_mode import TRAIN_MODE_ONLY, in_train_mode_only
from lightning_info.replica.uncut import DECLARE, one_graph

STATISTICS = {
    "running": "running statistics, which lag behind the weights in the first steps; batch_norm='reference' takes "
    "those of the reference samples instead",
    "reference": "statistics of the reference samples at the measured weights",
}
"""Summary texts about BatchNorm, by option."""

T = TypeVar("T")

_SHARDED = ("FSDP", "DeepSpeed", "XLAFSDP")
_RECIPE = (
    "measure the consolidated checkpoint instead: measure(module, data, {owner}(), checkpoints=...), see "
    "docs/measure.md; or train with strategy='ddp'"
)


def refuse_sharding(owner: str, strategy: Any) -> None:
    """Refuse a strategy that leaves no process with whole parameters, or gives it those of another dimension.

    Raises:
        Refused: The message says what to do instead.
    """
    name = type(strategy).__name__
    if name.startswith(_SHARDED):
        raise Refused(
            f"{owner}: {name} shards the parameters in a way that they cannot be gathered here; "
            f"{_RECIPE.format(owner=owner)}, or with ModelParallelStrategy and fully_shard"
        )
    mesh: Any = getattr(strategy, "_device_mesh", None)
    names = () if mesh is None else mesh.mesh_dim_names or ()
    if "tensor_parallel" in names and mesh["tensor_parallel"].size() > 1:
        raise Refused(
            f"{owner}: {name} is tensor-parallel, so that several processes see the same samples; give it "
            f"tensor_parallel_size=1 and data_parallel_size={mesh.size()}, or {_RECIPE.format(owner=owner)}"
        )


def gather_weights(owner: str, module: nn.Module) -> WholeParameters:
    """Gather sharded parameters, in all processes.

    Raises:
        Refused: They are too large; the message says what to do instead.
    """
    try:
        return gathered(module)
    except NotCopyable as error:
        raise Refused(
            f"{owner} measures on a copy of the module, but {error}; {_RECIPE.format(owner=owner)}"
        ) from error


@dataclass
class Findings:
    """Results of the check.

    Attributes:
        snapshot: A snapshot with a private replica and a few samples.
        rows: Rows of the summary, title and text.
        writes: Whether the module writes to its parameters when it runs; a replica must then not share them.
        whole: The batch that was checked, with the places of its samples.
    """

    snapshot: ModelSnapshot
    rows: dict[str, str]
    writes: bool
    whole: Batch


def preflight(
    owner: str,
    module: nn.Module,
    make_snapshot: Callable[[], ModelSnapshot],
    prepare: Callable[[ModelSnapshot], Mapping[str, str]],
    layouts: Layouts,
    key: Hashable,
) -> Findings:
    """Find the samples in a batch, and try a few of them on a replica as a measurement will.

    Args:
        owner: Name of the callback's class.
        module: The user's module.
        make_snapshot: Builds a snapshot with a private replica and a batch as its only group.
        prepare: The callback's own check; returns rows of the summary that say how it will measure.
        layouts: Known places of samples.
        key: Key of these places.

    Raises:
        Refused: The module cannot be measured; the message says what to write.
        Skipped: The ``training_step`` returns None for these samples.
        WritesParameters: The module writes to those that its replica shares.
    """
    name = type(module).__name__
    try:
        snapshot = make_snapshot()
        whole = _with_samples(snapshot, module, layouts, key)
        snapshot.groups = [spread(whole, CHECK_SAMPLES)]
        prediction = _predict(snapshot, name)
        prediction.check()
        originals = {id(p) for p in module.parameters()}
        if any(id(leaf) in originals for leaf in leaf_uses(prediction.outputs)):
            raise NotCopyable(f"a copy of {name} still computes with the original's parameters (a closure over it?)")
        few = snapshot.to_device(snapshot.groups[0])
        prediction, state = _guarded(snapshot, name, partial(_repeated, snapshot, few, prediction, module))
        writes = _writes(prediction, snapshot, module)
        _refuse_freed_graph(prediction, name)
        rows = dict(prepare(snapshot))
        beside = {} if prediction.unknown else loss_rows(owner, name, snapshot, prediction)
    except (Skipped, WritesParameters):
        raise
    except (NoPrediction, SamplesMixed) as error:
        reason, details = _no_samples(owner, snapshot, name, error)
        if isinstance(error, NoPrediction) and not trainable(module):
            reason = (
                f"none of the weights of {name} is trained (requires_grad is False for all of them), and only trained "
                f"weights are measured; set requires_grad for some of them before fit"
            )
        raise Refused(f"{owner}: {reason}", details) from error
    except NotCopyable as error:
        raise Refused(f"{owner} measures on a copy of the module, but {error}") from error
    except (NoLayers, WrongQuantity) as error:
        raise WrongArgument(f"{owner}: {error}") from error
    except NotMeasurable as error:
        raise Refused(f"{owner}: {error}") from error
    except NotCovered as error:
        raise Refused(
            f"{owner}: the gradients of single samples of {name} cannot be computed exactly, so nothing is "
            f"measured; pass an adapter that predicts every sample by itself, {owner}(adapter=...), as in the "
            f"documentation. No engine gives exact per-sample gradients: {' '.join(str(error).split())}"
        ) from error
    weights = sum(sizes(trainable(module).values()))
    rows["module"] = f"{name}, {weights:,} trainable weights, {prediction.described}"
    if snapshot.predictor.noise.draws:
        rows["noise"] = str(snapshot.predictor.noise)
    if state:
        rows["state"] = state
    return Findings(snapshot, rows | beside, writes, whole)


def _no_samples(owner: str, snapshot: ModelSnapshot, name: str, error: NoPrediction | SamplesMixed) -> tuple[str, str]:
    """Say why there is no prediction for each sample, what to write, and what was seen."""
    source, lines = snapshot.predictor.source(name), ADAPTER_LINES.format(callback=owner)
    graph = "" if isinstance(error, NoLikelihood) or not snapshot.groups else one_graph(snapshot.groups[0])
    if graph:
        return graph, f"What was seen: {error}"
    if isinstance(error, NoPrediction):
        return f"{error}. Tell it what the module predicts:\n\n{lines}", ""
    drawn = ""
    if snapshot.predictor.noise.by_others:
        drawn = " It draws from numpy or random, whose noise depends on a sample's place: draw it with torch."
    reason = (
        f"what {source} predicts for a sample must not depend on the others of its batch, and {error.fault}; pass an "
        f"adapter, or say where the samples are with split=, batch_axes= or reference= (report() has more). An adapter "
        f"predicts every sample by itself, from tensors whose first axis counts the samples:\n\n{lines}"
    )
    return reason, (
        f"What was seen: {error}. The cause may be that samples are compared or mixed with one another (negatives or "
        f"statistics of the batch, two views joined, mixup), that samples of different length lie in one tensor, that "
        f"rows are picked by a mask, or that the size or a maximum of the batch is read.{drawn} To say where the "
        f"samples are: {DECLARE}"
    )


def summary_text(owner: str, rows: Mapping[str, str]) -> str:
    """Return the rows, one below the other."""
    width = max(map(len, rows))
    lines = [
        textwrap.fill(text, 110, initial_indent=f"  {title:<{width}}  ", subsequent_indent=" " * (width + 4))
        for title, text in rows.items()
    ]
    return "\n".join([owner, *lines])


def _refuse_freed_graph(prediction: Prediction, module: str) -> None:
    outputs = prediction.outputs
    if not outputs.requires_grad:
        return
    try:
        torch.autograd.grad(outputs.sum(), list(leaf_uses(outputs)), retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise NoPrediction(
            f"{module}.training_step differentiates its own graph and frees it; use self.manual_backward(loss) or "
            f"loss.backward() instead"
        ) from error


def _with_samples(snapshot: ModelSnapshot, module: nn.Module, layouts: Layouts, key: Hashable) -> Batch:
    """Return the batch of a snapshot with the places of its samples, found by experiment unless they are known."""
    (batch,) = snapshot.groups
    known = layouts.get(key)
    if known is None:
        try:
            known = _find_samples(snapshot, batch, module)
        except SamplesMixed as error:
            known = error
        layouts[key] = known
    if isinstance(known, SamplesMixed):
        raise known
    return batch.laid(known) if isinstance(batch, Batch) else known.wrap(batch)


def _find_samples(snapshot: ModelSnapshot, batch: Any, module: nn.Module) -> Layout:
    name = type(module).__name__
    while True:
        try:
            look = partial(first_predictions, snapshot.predictor, snapshot.module, snapshot.to_device(batch))
            whole, prediction = _guarded(snapshot, name, look)
            base = None if prediction.writes else prediction  # which the next pass may see
            try:
                return sample_layout(snapshot.module, snapshot.predictor, whole, base, isinstance(batch, Batch))
            except SamplesMixed:  # two passes over the same samples may differ, which is then reported
                _guarded(snapshot, name, partial(_repeated, snapshot, whole, prediction, module))
                raise
        except Exception as error:
            if not is_out_of_memory(error) or num_samples(batch) <= CHECK_SAMPLES:
                raise
            batch = take(batch, slice(0, num_samples(batch) // 2))


def _writes(prediction: Prediction, snapshot: ModelSnapshot, module: nn.Module) -> bool:
    pairs = zip(snapshot.module.parameters(), module.parameters(), strict=True)
    return prediction.writes or any(not isinstance(q, DTensor) and not torch.equal(p, q.to(p)) for p, q in pairs)


def _repeated(snapshot: ModelSnapshot, batch: Any, first: Prediction, module: nn.Module) -> tuple[Prediction, str]:
    """Return the prediction in another pass, and the state that it depends on."""
    return repeated(snapshot.predictor, snapshot.module, batch, first, _writes(first, snapshot, module))


def _predict(snapshot: ModelSnapshot, module: str) -> Prediction:
    return _guarded(
        snapshot, module, partial(snapshot.predictor, snapshot.module, snapshot.to_device(snapshot.groups[0]))
    )


def _guarded(snapshot: ModelSnapshot, module: str, predict: Callable[[], T]) -> T:
    source = snapshot.predictor.source(module)
    try:
        return predict()
    except (NotCopyable, NotItsOwnNoise, Skipped, WritesParameters):
        raise
    except NoPrediction as error:
        if not in_train_mode_only(snapshot):
            raise
        raise NoPrediction(f"{error}. {TRAIN_MODE_ONLY}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        told = (
            f"{source} fails on a copy of the module in eval mode, without its trainer and optimisers: {text_of(error)}"
        )
        raise NoPrediction(f"{told}. {TRAIN_MODE_ONLY}" if in_train_mode_only(snapshot) else told) from error
