"""One backward pass per cotangent, which feeds the taps and the copies and computes no weight gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients import norms
from lightning_info.gradients.contract import NotCovered, add_gradients
from lightning_info.gradients.taps import Group, Tap, Tied, listed, tied


def squared_norms(
    outputs: Tensor,
    groups: list[Group],
    copies: dict[str, Tensor],
    foreign: list[Tensor],
    parameters: Mapping[str, Tensor],
    cotangents: Iterable[Tensor],
    sums: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Per-sample squared gradient norms from a forward pass that was tapped.

    Args:
        outputs: ``(N, ...)``.
        groups: All taps that they depend on.
        copies: Leaves ``(N, *shape)`` that stand for N copies of a parameter, by its name.
        foreign: All other leaves but the parameters. Autograd visits only what lies on a way to what is asked for, so
            that taps before which there is nothing else would stay silent.
        parameters: All of them, by name.
        cotangents: Of the outputs' shape.
        sums: See :class:`~.contract.Engine`.

    Returns:
        ``(N,)`` float64 by name.

    Raises:
        NotCovered: A call that the outputs depend on got no gradient.
    """
    total = {name: torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device) for name in parameters}
    taps = [one for members in groups for one in members.taps]
    roots = [one for one in taps if one.is_root]
    asked: list[Any] = [*(one.edge for one in roots), *copies.values(), *foreign]
    if not asked:  # nothing that is trained
        return total
    arriving = _Sums(groups, total, len(outputs))
    wanted = {} if sums is None else parameters
    handles = [
        one.edge.node.register_prehook(lambda gradients, one=one: arriving.arrive(one, gradients[one.edge.output_nr]))
        for one in taps
        if not one.is_root
    ]
    try:
        for u in cotangents:
            if u.shape != outputs.shape:
                raise NotCovered(f"the outputs have shape {tuple(outputs.shape)} here and {tuple(u.shape)} otherwise")
            gradients = torch.autograd.grad(
                outputs, [*asked, *wanted.values()], u.to(outputs), retain_graph=True, allow_unused=True
            )
            for one, gradient in zip(roots, gradients, strict=False):
                arriving.arrive(one, gradient)
            arriving.close()
            for name, gradient in zip(copies, gradients[len(roots) :], strict=False):
                if gradient is not None:
                    total[name] += norms.squared_norm(gradient).double()
                    if sums is not None:
                        add_gradients(sums, [name], [gradient.sum(0)])
            if sums is not None:
                add_gradients(sums, wanted, gradients[len(asked) :])
    finally:
        for handle in handles:
            handle.remove()
    return total


class _Sums:
    """Adds up squared norms per parameter while gradients arrive at the taps."""

    def __init__(self, groups: list[Group], total: dict[str, Tensor], samples: int) -> None:
        self.groups, self.total, self.samples = groups, total, samples
        self.home = {one: members for members in groups for one in members.taps}
        sharing: dict[str, list[Group]] = defaultdict(list)
        for members in groups:
            sharing[members.names.get("weight", "")].append(members)
        pairs = {name: tied(name, several) for name, several in sharing.items()}
        self.tied = {name: pair for name, pair in pairs.items() if pair is not None}

    @torch.no_grad()
    def arrive(self, tap: Tap, gradient: Tensor | None) -> None:
        """Take the gradient at the output of a tapped call; None is zero."""
        members = self.home[tap]
        members.arrive(tap, gradient, self.samples)
        if not members.is_complete:
            return
        factors = members.join()
        if factors is not None:
            self._add(members, *factors)
        pair = self.tied.get(members.names.get("weight", ""))
        if pair is None:
            members.factors = []
        elif pair.first.is_complete and pair.second.is_complete:
            self._add_cross_term(pair)

    def _add(self, members: Group, x: Tensor, g: Tensor) -> None:
        operator = members.taps[0].operator
        for slot, values in operator.layer.norms(members.names, operator.module, x, g).items():
            self.total[members.names[slot]] += values

    def _add_cross_term(self, pair: Tied) -> None:
        """``‖a + b‖² = ‖a‖² + ‖b‖² + 2 <a, b>``, whose squares are there already."""
        own, other = pair.first.join(), pair.second.join()
        if own is not None and other is not None:
            modules = (members.taps[0].operator.module for members in (pair.first, pair.second))
            product = pair.inner_product(next(modules), own, next(modules), other)
            self.total[pair.first.names["weight"]] += 2 * product.double()

    def close(self) -> None:
        """End of one backward pass."""
        silent = [name for members in self.groups if not members.is_complete for name in members.names.values()]
        for members in self.groups:
            members.arrived, members.factors = 0, []
        if silent:
            raise NotCovered(f"no gradient arrived at {listed(silent)}")
