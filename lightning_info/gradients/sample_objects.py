"""Samples that are objects of their own: a batch of graphs, a packed sequence, or whatever a user's function splits.

Nothing is imported for it: a batch of graphs is whatever counts them (``num_graphs``), comes apart
(``to_data_list()``) and is put together by its class (``from_data_list``), as those of PyTorch Geometric are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.overrides import TorchFunctionMode

Function = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Objects:
    """How a part of a batch falls into its samples, and how some of them are put together.

    Attributes:
        split: Gives the samples, in their order.
        collate: Makes such a part of a list of them.
        mapped: Gives a copy of the part with what a function gives for each tensor in it.
    """

    split: Callable[[Any], Sequence[Any]]
    collate: Callable[[list[Any]], Any]
    mapped: Callable[[Any, Function], Any]


def objects_of(value: Any) -> Objects | None:
    """How a value falls into samples, if it holds them as objects."""
    if isinstance(value, PackedSequence):
        return Objects(unpack_sequence, _packed, _mapped_packed)
    kind = type(value)
    if isinstance(value, (Tensor, type)) or not all(hasattr(kind, name) for name in ("to_data_list", "from_data_list")):
        return None
    if getattr(value, "num_graphs", None) is None:
        return None
    keys = list(value.keys()) if callable(getattr(value, "keys", None)) else []
    followed = [key for key in keys if isinstance(key, str) and f"{key}_batch" in keys]
    options: dict[str, Any] = {"follow_batch": followed} if followed else {}
    return Objects(kind.to_data_list, partial(kind.from_data_list, **options), deep_mapped)


def is_one_graph(value: Any) -> bool:
    """Whether it is a graph, and not a batch of several."""
    if isinstance(value, (Tensor, dict)) or not hasattr(value, "edge_index") or not hasattr(value, "num_nodes"):
        return False
    return getattr(value, "num_graphs", 1) == 1


def deep_mapped(value: Any, function: Function) -> Any:
    """A deep copy of any object with what a function gives for each tensor in it."""
    with _Mapped(function):
        return copy.deepcopy(value)


class _Mapped(TorchFunctionMode):
    """Tensors are not copied but given to a function, each once."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo.setdefault(id(memo), []).append(tensor)  # lives as long as its identity is known
            memo[id(tensor)] = self.function(tensor)
        return memo[id(tensor)]


def _packed(sequences: list[Tensor]) -> PackedSequence:
    return pack_sequence(sequences, enforce_sorted=False)


def _mapped_packed(value: PackedSequence, function: Function) -> Any:
    """Its lengths stay where they are, on the CPU."""
    order = [None if index is None else torch.as_tensor(function(index)) for index in value[2:]]
    return PackedSequence(function(value.data), value.batch_sizes.clone(), *order)
