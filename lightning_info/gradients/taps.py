"""Taps: run a BackPACK extension on any module, without ``backpack.extend`` and without touching the module.

While the forward pass runs, a ``TorchFunctionMode`` sees every call of a supported operator whose weight or bias *is*
a parameter of the module. The call becomes a throw-away stand-in layer (``nn.Conv2d`` and so on) that carries the
call's input; a pre-hook on the output's autograd node hands the stand-in and the output gradient to the extension.
In-place operators and functional calls are harmless, nothing stays behind on the module, and only the graph above the
inputs is run backward: no weight gradient is ever computed.

A parameter counts as covered when it enters the graph exactly once and that use was tapped.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from lightning_info.gradients.contract import NotCovered, Predict, trainable
from lightning_info.gradients.graph import leaf_uses
from lightning_info.gradients.rules import SquaredGradNorm


class _Operator(NamedTuple):
    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None
    layer: nn.Module


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Operator:
    return _Operator(input, weight, bias, nn.Linear(weight.shape[1], weight.shape[0], device="meta"))


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Operator:
    kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
    out_channels, in_channels, *kernel_size = weight.shape
    shape = (in_channels * groups, out_channels, tuple(kernel_size))
    return _Operator(input, weight, bias, kind(*shape, stride, padding, dilation, groups, device="meta"))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Operator:
    if training or running_mean is None:
        raise NotCovered("BatchNorm with batch statistics has no per-sample gradient")
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[input.dim()]
    layer = kind(input.shape[1], eps=eps, device="meta")
    layer.running_mean, layer.running_var = running_mean, running_var
    return _Operator(input, weight, bias, layer)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Operator:
    return _Operator(input, weight, bias, nn.LayerNorm(tuple(normalized_shape), eps=eps, device="meta"))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Operator:
    return _Operator(input, weight, bias, nn.GroupNorm(num_groups, input.shape[1], eps=eps, device="meta"))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> _Operator:
    if max_norm is not None or scale_grad_by_freq:
        raise NotCovered("an embedding with max_norm or scale_grad_by_freq has no per-sample gradient of its own")
    layer = nn.Embedding(weight.shape[0], weight.shape[1], padding_idx=padding_idx, device="meta")
    return _Operator(input, weight, None, layer)


_OPERATORS: dict[Callable[..., Any], Callable[..., _Operator]] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.embedding: _embedding,
}


@dataclass(eq=False)
class _Tap:
    names: dict[str, str]  # "weight" or "bias" of the stand-in -> the module's name of the parameter
    layer: Any
    version: int
    edge: GradientEdge
    is_root: bool


class _Recorder(TorchFunctionMode):
    """Records one tap per call of a supported operator on parameters of the module."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.taps: list[_Tap] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        read = _OPERATORS.get(func)
        if read is not None and output.requires_grad:
            try:
                operator = read(*args, **(kwargs or {}))
            except (TypeError, KeyError, AttributeError):  # a call of a form not known here stays untapped
                return output
            slots = {"weight": operator.weight, "bias": operator.bias}
            names = {slot: self.names[id(p)] for slot, p in slots.items() if id(p) in self.names}
            if names:
                self.taps.append(_tap(operator, names, output))
        return output


def _tap(operator: _Operator, names: dict[str, str], output: Tensor) -> _Tap:
    layer: Any = operator.layer
    x = operator.inputs
    for slot in ("weight", "bias"):
        source = getattr(operator, slot)
        stand_in = None if source is None else nn.Parameter(source.detach(), requires_grad=slot in names)
        setattr(layer, slot, stand_in)
    layer.input0 = x.detach()
    return _Tap(names, layer, x._version, get_gradient_edge(output), is_root=not x.requires_grad)


def squared_norms(module: nn.Module, predict: Predict, batch: Any, cotangents: Iterable[Tensor]) -> dict[str, Tensor]:
    """Per-sample squared gradient norms by BackPACK rules fed from taps (an :class:`~.contract.Engine`)."""
    parameters = trainable(module)
    names = {id(p): name for name, p in parameters.items()}
    with _Recorder(names) as recorder:
        outputs = predict(module, batch)
    n = len(outputs)
    uses = Counter(names[id(leaf)] for leaf in leaf_uses(outputs) if id(leaf) in names)
    _check_coverage(uses, recorder.taps, n)
    # a tap that the outputs do not depend on is a dead branch: its gradient is zero and it never fires
    taps = [tap for tap in recorder.taps if all(uses[name] for name in tap.names.values())]

    total = {name: torch.zeros(n, dtype=torch.float64, device=outputs.device) for name in parameters}
    if not taps:
        return total
    extension = SquaredGradNorm()
    fired: Counter[str] = Counter()

    def run(tap: _Tap, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        with torch.no_grad():
            tap.layer.output = gradient
            extension(tap.layer, (), (gradient,))
            for slot, name in tap.names.items():
                total[name] += getattr(tap.layer, slot).sq_grad_norm.double()
                fired[name] += 1

    roots = [tap for tap in taps if tap.is_root] or taps  # no root where the module's input requires a gradient
    handles = [
        tap.edge.node.register_prehook(lambda gradients, tap=tap: run(tap, gradients[tap.edge.output_nr]))
        for tap in taps
        if tap not in roots
    ]
    count = 0
    try:
        for u in cotangents:
            count += 1
            gradients = torch.autograd.grad(
                outputs, [tap.edge for tap in roots], u.to(outputs), retain_graph=True, allow_unused=True
            )
            for tap, gradient in zip(roots, gradients, strict=True):
                run(tap, gradient)
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in parameters if uses[name] and fired[name] != count]
    if silent:
        raise NotCovered(f"no gradient arrived at {_list(silent)}")
    return total


def _check_coverage(uses: Counter[str], taps: list[_Tap], n: int) -> None:
    tapped = Counter(name for tap in taps for name in tap.names.values())
    no_rule = [name for name in uses if not tapped[name]]
    if no_rule:
        raise NotCovered(f"no rule for the operator that uses {_list(no_rule)}")
    shared = [name for name in uses if uses[name] > 1 or tapped[name] > 1]
    if shared:
        raise NotCovered(f"{_list(shared)} used more than once")
    for tap in taps:
        names = _list(list(tap.names.values()))
        if len(tap.layer.input0) != n:
            raise NotCovered(f"the input of {names} has {len(tap.layer.input0)} rows for {n} samples")
        if tap.layer.input0._version != tap.version:
            raise NotCovered(f"the input of {names} is changed in place after its use")


def _list(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    shown = ", ".join(itertools.islice(names, most))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
