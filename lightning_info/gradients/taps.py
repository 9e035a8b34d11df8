"""Taps on operator calls, and the calls that share their parameters: one rule for the sum of their gradients.

The gradient of a weight that is used several times is the sum over its uses. Where all of them are the same operator,
that is the rule of one call with the positions of all of them (a layer that is called twice, a recurrent layer's
steps); an embedding table that is also the output layer's weight adds a cross term.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.layers.base import CrossTerm, Operator, by_sample


@dataclass(eq=False)
class Tap:
    """One call of an operator on parameters of the module.

    Attributes:
        operator: The call.
        names: ``"weight"`` or ``"bias"`` of the stand-in -> the module's name of the parameter.
        version: Of the input's data, which must not be changed in place any more.
        edge: Where the gradient at the output arrives.
        is_root: Nothing before the call requires a gradient.
    """

    operator: Operator
    names: dict[str, str]
    version: int
    edge: GradientEdge
    is_root: bool


def tap(operator: Operator, names: dict[str, str], output: Tensor) -> Tap:
    """Tap a call whose output is at hand; of the input its operator keeps the data."""
    x = operator.inputs
    operator.inputs = x.detach().conj()  # the gradient at a complex weight holds the conjugate; others are their own
    return Tap(operator, names, x._version, get_gradient_edge(_behind_view(output)), is_root=not x.requires_grad)


def _behind_view(output: Tensor) -> Tensor:
    """A linear layer's output on a sequence is a view; changing it in place would put another node in its place."""
    base = output._base
    plain = base is not None and output.numel() == base.numel() and output.shape[-1:] == base.shape[-1:]
    return base if base is not None and plain and output.is_contiguous() and base.is_contiguous() else output


@dataclass(eq=False)
class Group:
    """Taps with the same parameters and the same operator, and what one backward pass has brought them so far."""

    taps: list[Tap]
    factors: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    arrived: int = 0

    @property
    def names(self) -> dict[str, str]:
        """See :class:`Tap`."""
        return self.taps[0].names

    @property
    def is_complete(self) -> bool:
        """Every call got its gradient."""
        return self.arrived == len(self.taps)

    def arrive(self, tap: Tap, gradient: Tensor | None, samples: int) -> None:
        """Keep the input and the output's gradient of one call; None is a gradient of zero.

        Raises:
            NotCovered: The input's data are not those of the call any more.
        """
        self.arrived += 1
        if gradient is None:
            return
        operator = tap.operator
        if operator.inputs._version != tap.version:
            raise NotCovered(f"the input of {listed(tap.names.values())} is changed in place after its use")
        joined = len(self.taps) > 1
        x = by_sample(operator, operator.inputs, samples, rows=joined)
        g = by_sample(operator, gradient, samples, is_output=True, rows=joined)
        self.factors.append((x, g))

    def join(self) -> tuple[Tensor, Tensor] | None:
        """Input and output gradient over the positions of all calls; None if no gradient arrived."""
        if len(self.factors) > 1:
            axis = 1 if self.taps[0].operator.axes is not None else 2
            x, g = zip(*self.factors, strict=True)
            self.factors = [(torch.cat(x, axis), torch.cat(g, axis))]
        return self.factors[0] if self.factors else None


def group(taps: Iterable[Tap], alive: set[Node]) -> list[Group]:
    """Group the taps that the outputs depend on; the others are dead branches, whose gradient is zero."""
    groups: dict[Any, list[Tap]] = defaultdict(list)
    for one in taps:
        if one.edge.node in alive:
            key = one.operator.key
            groups[(key, *sorted(one.names.items())) if key is not None else one].append(one)
    return [Group(members) for members in groups.values()]


NO_RULE = "no rule for the operator that uses {}"
NO_PARTNER = "{} used together with a weight that no rule fits"
OTHER_USE = "{} used by an operator without a rule too"
UNUSED = "unused"


def routes_of(groups: list[Group], copied: Mapping[str, str]) -> dict[str, str]:
    """Who computes the gradient of each parameter that is used (see :attr:`~.plan.Plan.routes`).

    Args:
        groups: The taps.
        copied: Parameters that have one copy per sample, and why (as :func:`unsuited` says it).
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for members in groups:
        for name in members.names.values():
            kinds[name].append(members.taps[0].operator.layer.name)
    found = {name: f"rule: {' and '.join(dict.fromkeys(several))}" for name, several in kinds.items()}
    found.update({name: f"copied per sample: {_about_it(reason)}" for name, reason in copied.items()})
    return found


def _about_it(reason: str) -> str:
    return reason.format("it").removeprefix("it ")


def unsuited(groups: list[Group], uses: Counter[str]) -> dict[str, str]:
    """Parameters whose gradient is not all in the taps' reach, and why (a text with a place for their names).

    Args:
        groups: The taps.
        uses: How often each parameter itself enters the graph.
    """
    by_name: dict[str, list[Group]] = defaultdict(list)
    for members in groups:
        for name in members.names.values():
            by_name[name].append(members)
    reasons = {}
    for name in uses | Counter(by_name.keys()):
        sharing = by_name[name]
        if not sharing:
            reasons[name] = NO_RULE
        elif sum(len(members.taps) for members in sharing) != uses[name]:
            reasons[name] = OTHER_USE
        elif len(sharing) > 1 and tied(name, sharing) is None:
            reasons[name] = "{} used more than once, by different operators"
        elif any(not _joinable(members) for members in sharing):
            reasons[name] = "{} used more than once, in ways that no rule sums"
    return reasons


class Tied(NamedTuple):
    """Two groups that use one weight, each as another layer type, and the inner product of their gradients."""

    first: Group
    second: Group
    inner_product: CrossTerm


def tied(name: str, sharing: list[Group]) -> Tied | None:
    """The groups that use a parameter as such a pair; None if they are none that the layer types know of."""
    if len(sharing) != 2 or any(members.names.get("weight") != name for members in sharing):
        return None
    for first, second in (sharing, sharing[::-1]):
        rule = first.taps[0].operator.layer.cross_terms.get(second.taps[0].operator.layer)
        if rule is not None:
            return Tied(first, second, rule)
    return None


def _joinable(members: Group) -> bool:
    if len(members.taps) == 1:
        return True
    first = members.taps[0].operator
    if first.axes is not None:
        return True
    # channels first: of equal size
    return first.key is not None and len({one.operator.inputs.shape[1:] for one in members.taps}) == 1


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first few, and how many more."""
    names = list(names)
    shown = ", ".join(itertools.islice(names, most))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
