"""Autograd graphs: which leaves they lead back to, and tensors that modules keep of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from lightning_info.gradients.contract import NotCovered


class Graph(NamedTuple):
    """What a tensor depends on: autograd's nodes, and the leaf tensors, each as often as it enters the graph."""

    nodes: set[Node]
    leaves: list[Tensor]


def graph_of(outputs: Tensor) -> Graph:
    """All that the outputs depend on.

    Raises:
        NotCovered: Part of the graph is hidden by reentrant checkpointing.
    """
    leaves: list[Tensor] = []
    stack: list[Node] = [outputs.grad_fn] if outputs.grad_fn is not None else []
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == "CheckpointFunctionBackward":
            raise NotCovered(
                "reentrant gradient checkpointing hides parameters from autograd.grad; use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        for following, _ in node.next_functions:
            if following is None:
                continue
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                leaves.append(leaf)
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return Graph(seen, leaves)


def leaf_uses(outputs: Tensor) -> list[Tensor]:
    """The leaf tensors that the outputs depend on, each as often as it enters the graph; raises as above."""
    return graph_of(outputs).leaves


def without_graph(module: nn.Module) -> dict[int, Tensor]:
    """A memo for ``copy.deepcopy``: tensors that a module kept from a forward pass, which it refuses, are detached."""
    kept = [
        leaf
        for part in module.modules()
        for leaf in pytree.tree_leaves({k: v for k, v in vars(part).items() if k not in _MEMBERS})
        if isinstance(leaf, Tensor) and not leaf.is_leaf
    ]
    return {id(tensor): tensor.detach().clone() for tensor in kept}


_MEMBERS = ("_parameters", "_buffers", "_modules")
