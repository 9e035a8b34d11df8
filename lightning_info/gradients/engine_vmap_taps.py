"""vmap taps: operator taps in a forward pass under ``torch.vmap``, whose batching rules keep track of the sample axis.

Every sample goes forward as a batch of one, so whatever a module does with its axes (windows folded into the batch,
sequence-first layouts) is right by construction; :mod:`~.vmap_taps` taps the operators. The backward pass is ordinary.

Parameters that no rule fits (bare ones, recomputed weights, several uses that do not add up in one rule) take part as
N separate copies, an expanded tensor: the gradients at these are per-sample gradients, from the same backward pass.
They are materialised, so samples are done in chunks that keep them within :data:`~.memory.LIMITS`.

Samples for which the module takes different paths (it reads their length, or whether a mask is full) go forward apart:
one group for each answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients import backward
from lightning_info.gradients.attributes import kept
from lightning_info.gradients.batches import select, split_samples
from lightning_info.gradients.contract import Norms, NotCovered, Predict, trainable
from lightning_info.gradients.graph import graph_of
from lightning_info.gradients.memory import LIMITS
from lightning_info.gradients.taps import (
    NO_PARTNER,
    NO_RULE,
    OTHER_USE,
    UNUSED,
    Group,
    group,
    listed,
    routes_of,
    unsuited,
)
from lightning_info.gradients.vmap_taps import Disagreement, OverBudget, VmapTaps
from lightning_info.gradients.vmapping import vmapping


def squared_norms(
    module: nn.Module,
    predict: Predict,
    batch: Any,
    cotangents: Iterable[Tensor],
    sums: dict[str, Tensor] | None = None,
) -> Norms:
    """Per-sample squared gradient norms by taps under ``torch.vmap`` (an :class:`~.contract.Engine`)."""
    leaves, rebuild = split_samples(batch)
    passes = Passes(module, predict, rebuild)
    everything = torch.arange(len(leaves[0]))
    try:
        forward = passes.forward(leaves)
    except (OverBudget, Disagreement) as reason:
        pending = _divide(everything, reason, passes, leaves)
    else:
        return Norms(forward.squared_norms(cotangents, sums), passes.routes)
    columns = list(cotangents)
    index: list[Tensor] = []
    parts: list[dict[str, Tensor]] = []
    while pending:
        some = pending.pop()
        try:
            forward = passes.forward(select(leaves, some))
        except (OverBudget, Disagreement) as reason:
            pending.extend(_divide(some, reason, passes, leaves))
            continue
        parts.append(forward.squared_norms(select(columns, some), sums))
        index.append(some)
    order = torch.cat(index).argsort()
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Norms({name: values[order.to(values.device)] for name, values in joined.items()}, passes.routes)


def _divide(index: Tensor, reason: OverBudget | Disagreement, passes: Passes, leaves: list[Tensor]) -> list[Tensor]:
    """Samples that can go forward together."""
    if isinstance(reason, Disagreement):
        answers, label = torch.unique(reason.answers, dim=0, return_inverse=True)
        return [index[label == branch] for branch in range(len(answers))]
    alone = passes.forward(select(leaves, index[:1]))  # tells which parameters have to be copied
    return list(torch.split(index, max(1, min(len(index) - 1, LIMITS.copies // max(1, alone.bytes_per_sample)))))


@dataclass
class Forward:
    """A forward pass of some samples, ready to go backward; the copies are those that the outputs depend on."""

    outputs: Tensor
    parameters: dict[str, nn.Parameter]
    groups: list[Group]
    copies: dict[str, Tensor]
    foreign: list[Tensor]
    bytes_per_sample: int
    routes: dict[str, str]

    def squared_norms(self, cotangents: Iterable[Tensor], sums: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Go backward: see :func:`~.backward.squared_norms`."""
        return backward.squared_norms(
            self.outputs, self.groups, self.copies, self.foreign, self.parameters, cotangents, sums
        )


class Passes:
    """Forward passes of one module; they share what they find out about which parameters cannot be tapped, and why."""

    def __init__(self, module: nn.Module, predict: Predict, rebuild: Callable[[list[Tensor]], Any]) -> None:
        self.module, self.predict, self.rebuild = module, predict, rebuild
        self.parameters = trainable(module)
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.copied: dict[str, str] = {}
        self.routes = dict.fromkeys(self.parameters, UNUSED)

    def forward(self, leaves: list[Tensor]) -> Forward:
        """Go forward until every parameter is either tapped in all its uses or copied in all of them."""
        while True:
            found, wrong = self._attempt(leaves)
            if not wrong:
                self.routes.update(found.routes)
                return found
            hidden = wrong.keys() & self.copied.keys()
            if hidden:
                raise NotCovered(f"{listed(sorted(hidden))} used where no torch function shows it")
            self.copied |= wrong

    def _attempt(self, leaves: list[Tensor]) -> tuple[Forward, dict[str, str]]:
        samples = len(leaves[0])
        recorder = VmapTaps(self.parameters, set(self.copied), samples)
        copies = {name: p.detach().expand(samples, *p.shape).requires_grad_() for name, p in self.parameters.items()}

        def one_sample(sample: list[Tensor], copies: dict[str, Tensor]) -> Tensor:
            single = self.rebuild([leaf.unsqueeze(0) for leaf in sample])
            with recorder.enter(copies):
                outputs = self.predict(self.module, single)
            return outputs.squeeze(0)

        with vmapping("the module"), kept(self.module):
            outputs = torch.vmap(one_sample, randomness="different")(leaves, copies)
        graph = graph_of(outputs)
        alive = {id(leaf) for leaf in graph.leaves}
        groups = group(recorder.taps, graph.nodes)
        uses = Counter(self.names[id(leaf)] for leaf in graph.leaves if id(leaf) in self.names)
        wrong = unsuited(groups, uses)
        copies = {name: copy for name, copy in copies.items() if id(copy) in alive}
        wrong.update({name: OTHER_USE for name in uses if name in copies})
        known = self.names.keys() | {id(copy) for copy in copies.values()}
        foreign = list({id(leaf): leaf for leaf in graph.leaves if id(leaf) not in known}.values())
        why = {name: NO_PARTNER if name in recorder.beside else NO_RULE for name in copies}
        routes = routes_of(groups, {name: self.copied.get(name, reason) for name, reason in why.items()})
        found = Forward(outputs, self.parameters, groups, copies, foreign, recorder.bytes_per_sample, routes)
        return found, wrong
