"""``LikelihoodCall``: the user says which likelihood calls of a ``training_step`` tell what the module predicts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from lightning_info.replica.likelihood_calls import Call, listed
from lightning_info.replica.predicted import NoPrediction

OutputNodes = dict[str, set[Node]]
"""Where in the graph the outputs of submodules are, by name."""


class LikelihoodCall:
    """As ``adapter=``: which of the likelihoods that the ``training_step`` calls say what the module predicts.

    Of several the module predicts the product, each with weight 1 whatever the loss makes of it, and F is their sum.
    Calls that are left out are not measured; what they add to the loss is said in the summary.

    Args:
        which: Places in the list that the refusal of the ``training_step`` has, from 0, or names of submodules, each
            of which gives the outputs of one call, itself or through functions of these outputs alone (a sigmoid, a
            change of shape).

    Raises:
        ValueError: A number is negative or none, or there is none or one twice.

    Example::

        FisherTraceCallback(adapter=LikelihoodCall(0))
        FisherTraceCallback(adapter=LikelihoodCall([0, 1]))
        FisherTraceCallback(adapter=LikelihoodCall("discriminator"))
    """

    def __init__(self, which: int | str | Sequence[int | str]) -> None:
        given = [which] if isinstance(which, (int, float, str)) else list(which)
        if not given or len(set(given)) < len(given) or not all(map(_is_place, given)):
            raise ValueError(
                f"LikelihoodCall: {which!r} does not count calls from 0, and names no submodule; for example "
                f"LikelihoodCall(0), or LikelihoodCall('classifier')"
            )
        self.which = given

    @property
    def names(self) -> list[str]:
        """Of submodules."""
        return [one for one in self.which if isinstance(one, str)]

    def among(self, calls: list[Call], nodes: OutputNodes, owner: str) -> list[int]:
        """The places of the calls that are meant.

        Args:
            calls: All of them, of an ordinary pass if submodules are named.
            nodes: See :func:`outputs_of`.
            owner: Name of the module's class, for messages.

        Raises:
            NoPrediction: There are fewer, or one name is that of none or of several; the message has the list.
        """
        places = [one if isinstance(one, int) else self._named(one, calls, nodes, owner) for one in self.which]
        if max(places) >= len(calls):
            raise NoPrediction(
                f"{self!r} is none of the {len(calls)} likelihoods that {owner}.training_step calls ({listed(calls)})"
            )
        if len(set(places)) < len(places):
            raise NoPrediction(f"{self!r} means one likelihood call of {owner}.training_step twice ({listed(calls)})")
        return places

    def _named(self, name: str, calls: list[Call], nodes: OutputNodes, owner: str) -> int:
        found = [place for place, call in enumerate(calls) if _comes_from(call.outputs, nodes[name])]
        if len(found) == 1:
            return found[0]
        if not found:
            raise NoPrediction(
                f"{name!r} gives the outputs of none of the {len(calls)} likelihoods that {owner}.training_step calls "
                f"({listed(calls)})"
            )
        lines = "; ".join(f"LikelihoodCall({place}): {calls[place]}" for place in found)
        raise NoPrediction(
            f"{name!r} gives the outputs of {len(found)} of the likelihoods that {owner}.training_step calls; choose "
            f"one of them by its number ({lines}), or all of them, LikelihoodCall({found})"
        )

    def __repr__(self) -> str:
        return f"LikelihoodCall({(self.which[0] if len(self.which) == 1 else self.which)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LikelihoodCall) and other.which == self.which

    def __hash__(self) -> int:
        return hash((LikelihoodCall, *self.which))

    def __call__(self, module: Any, batch: Any) -> Any:
        """Runs the ``training_step``; the :class:`~.Predictor` that calls it looks at its calls."""
        return run_training_step(module, batch)


@contextmanager
def outputs_of(module: nn.Module, names: Sequence[str]) -> Iterator[OutputNodes]:
    """As long as it is open, where the outputs of submodules are.

    Raises:
        NoPrediction: There is no submodule of a name.
    """
    nodes: OutputNodes = {name: set() for name in names}
    parts = dict(module.named_modules())
    for name in names:
        if name not in parts:
            children = ", ".join(repr(child) for child, _ in module.named_children())
            raise NoPrediction(f"{type(module).__name__} has no submodule {name!r}; it has {children}, and their parts")

    def see(name: str, output: Any) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        nodes[name].update(leaf.grad_fn for leaf in leaves if leaf.grad_fn is not None)

    handles = [
        parts[name].register_forward_hook(lambda part, args, output, name=name: see(name, output)) for name in names
    ]
    try:
        yield nodes
    finally:
        for handle in handles:
            handle.remove()


def run_training_step(module: nn.Module, batch: Any) -> Any:
    """What the ``training_step`` returns for a batch; its number and that of its loader are 0."""
    step = cast(Any, module).training_step
    args: list[int] = []  # index of the batch, then of the loader
    kwargs: dict[str, int] = {}
    for parameter in list(inspect.signature(step).parameters.values())[1:]:
        wanted = parameter.default is parameter.empty or parameter.name in ("batch_idx", "dataloader_idx")
        if wanted and parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = 0
        elif wanted and parameter.kind is not parameter.VAR_KEYWORD:
            args.append(0)
    return step(batch, *args, **kwargs)


def _is_place(one: object) -> bool:
    if isinstance(one, str):
        return bool(one)
    return isinstance(one, int) and not isinstance(one, bool) and one >= 0


def _comes_from(outputs: Tensor, nodes: set[Node]) -> bool:
    """Whether they are outputs at these nodes, or a function of one of them alone."""
    node = outputs.grad_fn
    while node is not None and node not in nodes:
        before = [one for one, _ in node.next_functions if one is not None]
        node = before[0] if len(before) == 1 else None
    return node is not None
