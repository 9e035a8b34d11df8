"""Which layers are measured: those that a user names, or some evenly over depth and the outputs."""

from __future__ import annotations

import difflib
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import company, num_samples, shuffled, take
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.real import as_real
from lightning_info.replica.activations import OUTPUTS_CALL, Call, Capture, Layer, masks_of, outputs_of
from lightning_info.replica.padding import Padding, of_positions, of_samples
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.unit_rows import (
    SampleAxis,
    by_channel,
    by_sample,
    is_discrete,
    mean_of,
    possible_axes,
    units,
)

MOST = 8
"""Layers that are chosen where none are named."""

OUTPUTS = "outputs"
"""Label of what the module predicts, where no call gives it as it is; another name of the call that does."""

LayerNames = str | type[nn.Module] | Sequence[str | type[nn.Module]]


class NoLayers(ValueError):
    """The layers that a user named do not exist, or have no activations; the message tells what there is."""


@dataclass
class _Seen:
    """A call's output over a few samples: the units for every place that the sample axis may have."""

    call: Call
    shape: tuple[int, ...]
    units: dict[SampleAxis, Tensor]
    positions: dict[SampleAxis, bool]
    sums: tuple[int, float, float]
    dtype: torch.dtype
    knows_input: bool = False  # what an invertible function took was shown

    @property
    def is_discrete(self) -> bool:
        """See :class:`~.activations.Layer`."""
        return not (self.dtype.is_floating_point or self.dtype.is_complex)


def find_layers(
    module: nn.Module,
    predict: Callable[[nn.Module, Any], Prediction],
    batch: Any,
    named: LayerNames | None,
    with_outputs: bool = True,
    before: bool = False,
) -> tuple[list[Layer], dict[str, str]]:
    """Look at passes over a few samples, in another order and alone, and choose the layers.

    Where the samples are in a layer's activations (axis 0, axis 1, folded into axis 0 with positions) is told by what
    moves as the samples do, and is the same for a sample alone.

    Args:
        module: A replica.
        predict: Its prediction for a batch.
        batch: A few samples, on its device; one alone cannot show its axis, and axis 0 is taken. Of ordered samples
            (see :class:`~.layout.Layout`) every other one, in their order, stands for another order.
        named: Dotted names of modules or functions (``:index`` for one of several calls), or classes of modules (or
            their names); None for the activation functions before the outputs (without any, the modules with weights
            that give real numbers), at most eight with the outputs, evenly over depth; none that no gradient goes
            through, as in a frozen target network, if there are others.
        with_outputs: The outputs are among those that are chosen; if not, they are where there is no other layer.
        before: Of those that are chosen, the calls that an activation function takes its input from stand for it,
            unless the function is invertible and its input is known (:attr:`~.activations.Activation.before`).

    Returns:
        The layers in the order of their calls, the outputs last where they are among them; and why others cannot be
        measured, by label.

    Raises:
        NoLayers: A name that is not there, or a layer that did not run or has no sample axis; no names at all.
    """
    samples, layout = num_samples(batch), batch.layout if isinstance(batch, Batch) else None
    order = torch.arange(0, samples, 2) if layout is not None and layout.ordered else shuffled(samples)
    orders = [order]
    if layout is not None and samples > 1:
        orders += [company(n, samples, layout.fewest) for n in range(samples)]
    masks = masks_of(predict(module, batch))
    first, prediction, unseen = _record(module, predict, batch, masks)
    others = [
        (_record(module, predict, take(batch, some), of_samples(masks, samples, some))[0], some) for some in orders
    ]
    outputs = outputs_of(prediction)
    counts = Counter(name for name, _ in first)
    found: dict[str, tuple[_Seen, Layer]] = {}
    refused: dict[str, tuple[_Seen, str]] = {}
    for (name, index), seen in first.items():
        label = name if counts[name] == 1 else f"{name}:{index}"
        again = [(other.get((name, index)), some) for other, some in others]
        axes = [axis for axis, rows in seen.units.items() if all(_moved(rows, one, axis, some) for one, some in again)]
        if axes:
            size, pooled = seen.units[axes[0]].shape[1], seen.positions[axes[0]]
            kind, discrete = seen.call.kind, seen.is_discrete
            pooled = pooled and not discrete
            padding = _padding(masks, seen.sums[0], samples, size) if pooled else ""
            found[label] = seen, Layer(label, name, index, kind, axes[0], size, pooled, padding, discrete)
        else:
            refused[label] = seen, f"its shape {seen.shape} has no axis along which its values move as the samples do"
    final = _final(found, outputs)
    if final is None:
        final, rows = OUTPUTS, units(outputs, False, "first")
        found.pop(OUTPUTS, None)  # a module of that name
        padding = _padding(masks, outputs.numel(), len(rows), rows.shape[1]) if outputs.dim() > 2 else ""
        layer = Layer(OUTPUTS, "", 0, "", "first", rows.shape[1], outputs.dim() > 2, padding)
        found[OUTPUTS] = _seen(OUTPUTS_CALL, outputs, len(outputs), masks), layer
    chosen = (
        _evenly(found, final, with_outputs, before)
        if named is None
        else _named(module, found, final, refused, unseen, named)
    )
    left_out = {label: reason for label, (seen, reason) in refused.items() if not seen.is_discrete}
    return [found[label][1] for label in chosen], left_out


def _record(
    module: nn.Module, predict: Callable[[nn.Module, Any], Prediction], batch: Any, masks: list[Padding]
) -> tuple[dict[tuple[str, int], _Seen], Prediction, dict[str, str]]:
    samples, seen = num_samples(batch), {}

    def see(call: Call, tensor: Tensor, before: Tensor | None) -> None:
        seen[call.name, call.index] = replace(_seen(call, tensor, samples, masks), knows_input=before is not None)

    with Capture(module, see) as capture:
        prediction = predict(module, batch)
    if capture.error is not None:
        raise capture.error
    return seen, prediction, capture.unseen


def _padding(masks: list[Padding], elements: int, samples: int, channels: int) -> str:
    mask = of_positions(masks, samples, elements // (samples * channels))
    return "" if mask is None else mask.name


def _seen(call: Call, tensor: Tensor, samples: int, masks: list[Padding]) -> _Seen:
    axes = possible_axes(tensor, samples)
    rows = {axis: by_sample(tensor, samples, axis) for axis in axes}
    return _Seen(
        call,
        tuple(tensor.shape),
        {axis: _units(rows[axis], call.channels_first, axis, masks).clone() for axis in axes},
        {axis: rows[axis].dim() > 2 for axis in axes},
        _sums(tensor),
        tensor.dtype,
    )


def _units(rows: Tensor, channels_first: bool, axis: SampleAxis, masks: list[Padding]) -> Tensor:
    """What is measured of each sample: without its padding, as far as it is known."""
    if rows.dim() > 2 and not is_discrete(rows):
        places = by_channel(rows, channels_first, axis)
        mask = of_positions(masks, len(rows), places.shape[2])
        if mask is not None:
            return mean_of(places, mask.kept)
    return units(rows, channels_first, axis)


def _moved(rows: Tensor, again: _Seen | None, axis: SampleAxis, order: Tensor) -> bool:
    other = None if again is None else again.units.get(_only(axis, again, len(order)))
    moved = rows[order.to(rows.device)]
    if other is None or other.shape != moved.shape:
        return False
    if is_discrete(rows) or is_discrete(other):
        return torch.equal(moved, other)
    scale = moved[moved.isfinite()].abs().amax().item() if moved.isfinite().any() else 0.0
    return torch.allclose(moved, other, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def _only(axis: SampleAxis, seen: _Seen, samples: int) -> SampleAxis:
    """Rows folded with one position each have the samples on axis 0."""
    return "first" if axis == "folded" and samples == seen.shape[0] else axis


def _sums(tensor: Tensor) -> tuple[int, float, float]:
    values = as_real(tensor).double()
    return values.numel(), values.sum().item(), values.square().sum().item()


def _is_like(sums: tuple[int, float, float], outputs: tuple[int, float, float]) -> bool:
    """Whether the values are those of the outputs, in whatever layout."""
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(sums, outputs, strict=True))


def _final(found: dict[str, tuple[_Seen, Layer]], outputs: Tensor) -> str | None:
    """The call that gives the outputs: the innermost, and of several (all zero, say) the last one with weights."""
    sums = _sums(outputs)
    real = {label: pair for label, pair in found.items() if not pair[1].is_discrete}
    alike = {label: layer.name for label, (seen, layer) in real.items() if _is_like(seen.sums, sums)}
    holds_another = {name for name in alike.values() for other in alike.values() if other.startswith(f"{name}.")}
    inner = [label for label, name in alike.items() if name not in holds_another]
    weighted = [label for label in inner if found[label][0].call.has_weights]
    return weighted[-1] if weighted else next(iter(inner), None)


def _evenly(found: dict[str, tuple[_Seen, Layer]], final: str, with_outputs: bool, before: bool) -> list[str]:
    labels = list(found)
    inner = labels[: labels.index(final)]
    inner = [label for label in inner if _learns(found[label][0])] or inner
    candidates = [label for label in inner if found[label][0].call.is_activation] or [
        label for label in inner if found[label][0].call.has_weights and found[label][0].dtype.is_floating_point
    ]
    last = [final] if with_outputs or not candidates else []
    places = torch.linspace(0, len(candidates) - 1, min(len(candidates), MOST - len(last))).round().int().tolist()
    chosen = [candidates[i] for i in places]
    return [*dict.fromkeys(_input_of(found, label) if before else label for label in chosen), *last]


def _learns(seen: _Seen) -> bool:
    """Whether training moves what the call gives; codes have no gradient, but may."""
    return seen.call.learns or seen.is_discrete


def _input_of(found: dict[str, tuple[_Seen, Layer]], label: str) -> str:
    """The call that an activation function takes its input from, the innermost of those that give it; or itself."""
    labels, (seen, layer) = list(found), found[label]
    place = labels.index(label)
    if not seen.call.follows or place == 0 or (seen.knows_input and not layer.positions):
        return label
    given = found[labels[place - 1]][0]
    if given.shape != seen.shape:  # another one, which is not among those that can be measured
        return label
    while place > 1 and _is_like(found[labels[place - 2]][0].sums, given.sums):
        place -= 1
    return labels[place - 1]


def _named(
    module: nn.Module,
    found: dict[str, tuple[_Seen, Layer]],
    final: str,
    refused: dict[str, tuple[_Seen, str]],
    unseen: dict[str, str],
    named: LayerNames,
) -> list[str]:
    names = [named] if isinstance(named, (str, type)) else list(named)
    if not names:
        raise NoLayers("layers names none; leave it out for an automatic choice")
    chosen: set[str] = set()
    for name in names:
        if not isinstance(name, (str, type)):
            raise NoLayers(f"layers holds a {type(name).__name__}; give names of layers or classes, for example 'ReLU'")
        hits = {label for label, (_, layer) in found.items() if name in (label, layer.name, layer.kind)}
        kind = name if hits or isinstance(name, type) else _class(name)
        if isinstance(kind, type):
            parts = {path for path, part in module.named_modules() if isinstance(part, kind)}
            hits = {label for label, (_, layer) in found.items() if layer.name in parts}
        if name == OUTPUTS and not hits:
            hits = {final}
        if not hits:
            raise NoLayers(_why_not(module, name if isinstance(name, str) else name.__name__, found, refused, unseen))
        chosen |= hits
    return sorted((label for label in found if label in chosen), key=lambda label: label == final)


def _class(name: str) -> Any:
    """The class that a YAML file names; nothing is imported for it."""
    where, _, last = name.rpartition(".")
    return getattr(sys.modules.get(where), last, None)


def _why_not(
    module: nn.Module,
    name: str,
    found: dict[str, tuple[_Seen, Layer]],
    refused: dict[str, tuple[_Seen, str]],
    unseen: dict[str, str],
) -> str:
    there = list(found)
    for label, (seen, reason) in refused.items():
        if name in (label, seen.call.name, seen.call.kind):
            return f"layer {label!r} cannot be measured: {reason}"
    if name in unseen:
        return f"layer {name!r} cannot be measured: it ran, and gave {unseen[name]}; those that can: {_listed(there)}"
    part = dict(module.named_modules()).get(name)
    if isinstance(part, torch.jit.ScriptModule):
        return f"layer {name!r} belongs to TorchScript, which shows no activations"
    if part is not None:
        return f"layer {name!r} did not run in the training_step; those that ran: {_listed(there)}"
    kinds = {layer.kind for _, layer in found.values()} - {""}
    close = difflib.get_close_matches(name, [*there, *kinds], n=4, cutoff=0.4)
    return f"there is no layer {name!r}; " + (
        f"did you mean {_listed(close)}?" if close else f"those that ran: {_listed(there)}"
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
