"""Operator taps: squared gradient norms of any module, without ``backpack.extend`` and without touching the module.

While the forward pass runs, a ``TorchFunctionMode`` sees every call of a supported operator whose weight or bias *is*
a parameter of the module. The call becomes a throw-away stand-in layer (``nn.Conv2d`` and so on) that carries the
call's input; a pre-hook on the output's autograd node hands both and the output gradient to the layer type's rules,
which BackPACK runs as well (:class:`~.SquaredGradNorm`).
In-place operators and functional calls are harmless, nothing stays behind on the module, and only the graph above the
inputs is run backward: no weight gradient is ever computed.

A parameter counts as covered when every one of its entries into the graph was tapped, with the samples on axis 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lightning_info.gradients import backward
from lightning_info.gradients.contract import Norms, NotCovered, Predict, trainable
from lightning_info.gradients.graph import graph_of
from lightning_info.gradients.recorder import OperatorCall, Recorder
from lightning_info.gradients.taps import UNUSED, group, listed, routes_of, tap, unsuited


class _Taps(Recorder):
    fuses = True

    def tapped(self, call: OperatorCall) -> Tensor:
        output: Tensor = call.func(*call.args, **call.kwargs)
        if output.requires_grad:
            self.taps.append(tap(call.operator, call.names, output))
        return output


def squared_norms(
    module: nn.Module,
    predict: Predict,
    batch: Any,
    cotangents: Iterable[Tensor],
    sums: dict[str, Tensor] | None = None,
) -> Norms:
    """Per-sample squared gradient norms by BackPACK rules fed from taps (an :class:`~.contract.Engine`)."""
    parameters = trainable(module)
    names = {id(p): name for name, p in parameters.items()}
    with _Taps(parameters) as recorder:
        outputs = predict(module, batch)
    samples = len(outputs)
    graph = graph_of(outputs)
    uses = Counter(names[id(leaf)] for leaf in graph.leaves if id(leaf) in names)
    groups = group(recorder.taps, graph.nodes)
    reasons: dict[str, list[str]] = {}
    for name, reason in unsuited(groups, uses).items():
        reasons.setdefault(reason, []).append(name)
    if reasons:
        raise NotCovered("; ".join(reason.format(listed(found)) for reason, found in reasons.items()))
    for one in (one for members in groups for one in members.taps):
        rows = len(one.operator.inputs)
        if rows != samples:
            raise NotCovered(f"the input of {listed(one.names.values())} has {rows} rows for {samples} samples")

    foreign = list({id(leaf): leaf for leaf in graph.leaves if id(leaf) not in names}.values())
    norms = backward.squared_norms(outputs, groups, {}, foreign, parameters, cotangents, sums)
    return Norms(norms, dict.fromkeys(parameters, UNUSED) | routes_of(groups, {}))
