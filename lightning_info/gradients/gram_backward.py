"""One backward pass under ``torch.vmap`` over all cotangents, which hands out each parameter's rows as they arrive.

The graph is that of :mod:`~.vmap_taps`, made once; what the backward pass carries has C times the forward's size. A
parameter's rows are handed out when all its operators got their gradients, and their tensors are freed behind it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.engine_vmap_taps import Forward
from lightning_info.gradients.layer_gradients import Rows, of_tensor
from lightning_info.gradients.layers.base import SampleAxes, by_sample
from lightning_info.gradients.taps import Tap, listed
from lightning_info.gradients.vmap_taps import Physical
from lightning_info.gradients.vmapping import vmapping

Consume = Callable[[str, Rows], None]
"""Takes one parameter's name and rows, which are gone afterwards."""


def each_parameter(forward: Forward, columns: Tensor, consume: Consume) -> None:
    """Go backward once, from all cotangents.

    Args:
        forward: Of N samples.
        columns: ``(C, *outputs.shape)``.
        consume: Called once for each parameter whose gradient is not zero everywhere.

    Raises:
        NotCovered: The backward pass does not vmap, or a call got no gradient.
    """
    taps = [one for members in forward.groups for one in members.taps]
    roots = [one for one in taps if one.is_root]
    asked: list[Any] = [*(one.edge for one in roots), *forward.copies.values(), *forward.foreign]
    if not asked:
        return
    arrivals = _Arrivals(forward, len(columns), consume)

    def one_cotangent(u: Tensor) -> Tensor:
        arrivals.anchor = u
        gradients = torch.autograd.grad(forward.outputs, asked, u, retain_graph=True, allow_unused=True)
        for tap, gradient in zip(roots, gradients, strict=False):
            arrivals.at_tap(tap, gradient)
        for name, gradient in zip(forward.copies, gradients[len(roots) :], strict=False):
            if gradient is not None:
                arrivals.unwrap(gradient, partial(arrivals.take_copies, name))
        return u

    handles = [
        tap.edge.node.register_prehook(lambda gradients, tap=tap: arrivals.at_tap(tap, gradients[tap.edge.output_nr]))
        for tap in taps
        if not tap.is_root
    ]
    try:
        with vmapping("the backward pass"):
            torch.vmap(one_cotangent)(columns.to(forward.outputs))
    finally:
        for handle in handles:
            handle.remove()
        silent = [name for members in forward.groups if not members.is_complete for name in members.names.values()]
        for members in forward.groups:
            members.arrived, members.factors = 0, []
    if silent:
        raise NotCovered(f"no gradient arrived at {listed(silent)}")


class _Arrivals:
    """Puts together each parameter's rows while gradients arrive at the taps."""

    def __init__(self, forward: Forward, columns: int, consume: Consume) -> None:
        self.columns, self.consume, self.samples = columns, consume, len(forward.outputs)
        self.home = {tap: members for members in forward.groups for tap in members.taps}
        self.awaited: dict[str, int] = defaultdict(int)
        for members in forward.groups:
            for name in members.names.values():
                self.awaited[name] += 1
        self.tied = {name for name, count in self.awaited.items() if count > 1}
        self.arrived: dict[str, list[Rows]] = defaultdict(list)
        self.anchor = torch.empty(0)

    def unwrap(self, gradient: Tensor, then: Callable[[Tensor], None]) -> None:
        """Call with the tensor ``(C, ...)`` behind what vmap shows."""

        @torch.no_grad()
        def rule(size: int, dims: SampleAxes, tensors: tuple[Tensor, ...]) -> Tensor:
            (dim,), (tensor,) = dims, tensors
            then(tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0))
            return torch.empty(size)

        apply: Any = Physical.apply
        apply(self.anchor, rule, gradient)

    def at_tap(self, tap: Tap, gradient: Tensor | None) -> None:
        """Take the gradient at the output of a tapped call; None is zero."""
        if gradient is None:
            self._take(tap, None)
        else:
            self.unwrap(gradient, lambda g: self._take(tap, g))

    def take_copies(self, name: str, gradient: Tensor) -> None:
        """Take the gradients ``(C, N, *shape)`` at a parameter's copies."""
        self.consume(name, of_tensor(gradient.transpose(0, 1)))

    def _take(self, tap: Tap, gradient: Tensor | None) -> None:
        members, operator = self.home[tap], tap.operator
        members.arrived += 1
        if gradient is not None:
            if operator.inputs._version != tap.version:
                raise NotCovered(f"the input of {listed(tap.names.values())} is changed in place after its use")
            joined = len(members.taps) > 1
            x = by_sample(operator, operator.inputs, self.samples, rows=joined)
            many = self.columns * self.samples
            g = by_sample(operator, gradient.flatten(0, 1), many, is_output=True, rows=joined)
            members.factors.append((x, g))
        if not members.is_complete:
            return
        factors, members.factors = members.join(), []
        for slot, name in members.names.items():
            self.awaited[name] -= 1
            if factors is not None:
                x, g = factors
                g = g.view(self.columns, self.samples, *g.shape[1:]).transpose(0, 1)
                rows = operator.layer.gradients[slot](operator.module, x, g)
                weight = operator.weight if slot == "weight" else operator.bias
                if weight is not None and name in self.tied:
                    rows = rows.everywhere(len(weight))
                self.arrived[name].append(rows)
            if self.awaited[name] == 0 and self.arrived[name]:
                first, *others = self.arrived.pop(name)
                self.consume(name, sum(others, first))
