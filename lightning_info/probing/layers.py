"""Which layers are measured: those that a user names, or some evenly over depth and the outputs."""

from __future__ import annotations

import difflib
import math
import pydoc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.samples import num_samples, take
from lightning_info.probing.activations import (
    OUTPUTS_CALL,
    Call,
    Capture,
    Layer,
    SampleAxis,
    by_sample,
    possible_axes,
    units,
)
from lightning_info.probing.likelihoods import Prediction

MOST = 8
"""Layers that are chosen where none are named."""

OUTPUTS = "outputs"
"""Label of what the module predicts, where no call gives it as it is."""

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


def find_layers(
    module: nn.Module, predict: Callable[[nn.Module, Any], Prediction], batch: Any, named: LayerNames | None
) -> tuple[list[Layer], dict[str, str]]:
    """Look at two passes over a few samples, the second in another order, and choose the layers.

    Where the samples are in a layer's activations (axis 0, axis 1, folded into axis 0 with positions) is told by what
    moves as the samples do.

    Args:
        module: A replica.
        predict: Its prediction for a batch.
        batch: A few samples, on its device; one alone cannot show its axis, and axis 0 is taken.
        named: Dotted names of modules or functions (``:index`` for one of several calls), or classes of modules (or
            their names); None for the activation functions (without any, the modules with weights), at most eight
            with the outputs, evenly over depth.

    Returns:
        The layers in the order of their calls, the outputs last where they are among them; and why others cannot be
        measured, by label.

    Raises:
        NoLayers: A name that is not there, or a layer that did not run or has no sample axis.
    """
    order = torch.arange(num_samples(batch)).roll(1)
    first, outputs = _record(module, predict, batch)
    second, _ = _record(module, predict, take(batch, order))
    counts = Counter(name for name, _ in first)
    found: dict[str, tuple[_Seen, Layer]] = {}
    refused: dict[str, str] = {}
    for (name, index), seen in first.items():
        label = name if counts[name] == 1 else f"{name}:{index}"
        again = second.get((name, index))
        axes = [axis for axis, rows in seen.units.items() if again is not None and _moved(rows, again, axis, order)]
        if axes:
            size, pooled = seen.units[axes[0]].shape[1], seen.positions[axes[0]]
            found[label] = seen, Layer(label, name, index, seen.call.kind, axes[0], size, pooled)
        else:
            refused[label] = f"its shape {seen.shape} has no axis along which its values move as the samples do"
    final = next((label for label, (seen, _) in found.items() if _is_like(seen.sums, _sums(outputs))), OUTPUTS)
    if final == OUTPUTS:
        rows = units(outputs, False, "first")
        layer = Layer(OUTPUTS, "", 0, "", "first", rows.shape[1], outputs.dim() > 2)
        found[OUTPUTS] = _seen(OUTPUTS_CALL, outputs, len(outputs)), layer
    chosen = _evenly(found, final) if named is None else _named(module, found, refused, named)
    return [found[label][1] for label in chosen], refused


def _record(
    module: nn.Module, predict: Callable[[nn.Module, Any], Prediction], batch: Any
) -> tuple[dict[tuple[str, int], _Seen], Tensor]:
    samples, seen = num_samples(batch), {}

    def see(call: Call, tensor: Tensor) -> None:
        seen[call.name, call.index] = _seen(call, tensor, samples)

    with Capture(module, see) as capture:
        outputs = predict(module, batch).outputs.detach()
    if capture.error is not None:
        raise capture.error
    return seen, outputs


def _seen(call: Call, tensor: Tensor, samples: int) -> _Seen:
    axes = possible_axes(tensor, samples)
    rows = {axis: by_sample(tensor, samples, axis) for axis in axes}
    return _Seen(
        call,
        tuple(tensor.shape),
        {axis: units(rows[axis], call.channels_first, axis).clone() for axis in axes},
        {axis: rows[axis].dim() > 2 for axis in axes},
        _sums(tensor),
    )


def _moved(rows: Tensor, again: _Seen, axis: SampleAxis, order: Tensor) -> bool:
    other = again.units.get(axis)
    if other is None or other.shape != rows.shape:
        return False
    return torch.allclose(rows[order.to(rows.device)], other, rtol=1e-3, atol=1e-4, equal_nan=True)


def _sums(tensor: Tensor) -> tuple[int, float, float]:
    values = tensor.double()
    return tensor.numel(), values.sum().item(), values.square().sum().item()


def _is_like(sums: tuple[int, float, float], outputs: tuple[int, float, float]) -> bool:
    """Whether the values are those of the outputs, in whatever layout."""
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(sums, outputs, strict=True))


def _evenly(found: dict[str, tuple[_Seen, Layer]], final: str) -> list[str]:
    inner = [label for label in found if label != final]
    candidates = [label for label in inner if found[label][0].call.is_activation] or [
        label for label in inner if found[label][0].call.has_weights
    ]
    places = torch.linspace(0, len(candidates) - 1, min(len(candidates), MOST - 1)).round().int().tolist()
    return [*(candidates[i] for i in places), final]


def _named(
    module: nn.Module, found: dict[str, tuple[_Seen, Layer]], refused: dict[str, str], named: LayerNames
) -> list[str]:
    names = [named] if isinstance(named, (str, type)) else list(named)
    chosen: set[str] = set()
    for name in names:
        hits = {label for label, (_, layer) in found.items() if name in (label, layer.name, layer.kind)}
        kind = pydoc.locate(name) if isinstance(name, str) and "." in name and not hits else name
        if isinstance(kind, type):  # also as a YAML file names it
            parts = {path for path, part in module.named_modules() if isinstance(part, kind)}
            hits = {label for label, (_, layer) in found.items() if layer.name in parts}
        if not hits:
            raise NoLayers(_why_not(module, name if isinstance(name, str) else name.__name__, found, refused))
        chosen |= hits
    return [label for label in found if label in chosen]


def _why_not(module: nn.Module, name: str, found: dict[str, tuple[_Seen, Layer]], refused: dict[str, str]) -> str:
    there = list(found)
    for label, reason in refused.items():
        if name in (label, label.rpartition(":")[0]):
            return f"layer {name!r} cannot be measured: {reason}"
    if name in dict(module.named_modules()):
        return f"layer {name!r} did not run in the training_step; those that ran: {_listed(there)}"
    kinds = {layer.kind for _, layer in found.values()} - {""}
    close = difflib.get_close_matches(name, [*there, *kinds], n=4, cutoff=0.4)
    return f"there is no layer {name!r}; " + (
        f"did you mean {_listed(close)}?" if close else f"those that ran: {_listed(there)}"
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
