"""Which tensors a call of a torch function writes to, told before it is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

_MEMORY = {"numpy", "__array__", "__dlpack__", "untyped_storage", "storage", "_typed_storage"}
"""What hands out a tensor's memory, to which others can write unseen."""


def written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors that a call may write to.

    Operators (``torch.ops``, ``torch.library.custom_op``) say so in their schema, methods and functions by their name,
    as ``mul_`` or ``torch._foreach_mul_``, or by ``out`` and ``inplace``. Memory that is handed out counts as written.

    Args:
        func: As a ``TorchFunctionMode`` sees it.
        args: Of the call.
        kwargs: Of the call.
    """
    for target in _targets(func, args, kwargs):
        yield from (leaf for leaf in _flat(target) if isinstance(leaf, Tensor))


def _targets(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    if isinstance(func, OpOverload):
        return _by_schema(func._schema, args, kwargs)
    if isinstance(func, OpOverloadPacket):
        overloads = [getattr(func, name) for name in func.overloads()]  # type: ignore[no-untyped-call]
        return [target for one in overloads for target in _by_schema(one._schema, args, kwargs)]
    name = getattr(func, "__name__", "")
    if func in (F.embedding, F.embedding_bag):  # renormalises the rows that it reads
        arguments = inspect.signature(func).bind(*args, **kwargs).arguments
        return [arguments["weight"]] if arguments.get("max_norm") is not None else []
    if getattr(func, "__module__", "") == "torch.nn.init":
        return [args[0] if args else kwargs.get("tensor")]
    first = args[0] if args else kwargs.get("self", kwargs.get("input"))
    if name == "__set__":  # of an attribute
        return [first] if func.__self__ is torch.Tensor.data else []
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")
    if name.startswith("_fused_") or name in _MEMORY:
        return [args, kwargs]
    return [first if in_place or kwargs.get("inplace") else None, kwargs.get("out")]


def _by_schema(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    places = enumerate(schema.arguments)
    return [
        kwargs[argument.name] if argument.name in kwargs else args[place]
        for place, argument in places
        if argument.is_write and (argument.name in kwargs or (place < len(args) and not argument.kwarg_only))
    ]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value
