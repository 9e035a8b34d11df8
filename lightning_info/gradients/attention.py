"""Attention: the linear layers inside ``F.multi_head_attention_forward``, and the fused kernel under ``torch.vmap``."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def _opened(function: Any) -> Any:
    """The function without its first step, which hands the whole call to a ``TorchFunctionMode``.

    A copy with globals of its own; torch's stay as they are.
    """
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


multi_head_attention_forward = _opened(F.multi_head_attention_forward)


def is_foldable(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether attention has the one form ``(batch, heads, T, d)`` that the fused kernels take."""
    same = query.dim() == key.dim() == value.dim() == 4 and len(query) == len(key) == len(value)
    return same and (mask is None or mask.dim() <= 4)


def fold(dims: tuple[int | None, ...], tensors: tuple[Tensor, ...], samples: int) -> list[Tensor]:
    """Query, key, value and perhaps a mask of N samples, all of the form above, as those of one batch.

    Args:
        dims: Where each has its sample axis; None if it has none.
        tensors: Query, key, value and perhaps a mask.
        samples: N.
    """
    query, key, value, *masks = (
        tensor.expand(samples, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for dim, tensor in zip(dims, tensors, strict=True)
    )
    wide = [mask.reshape(samples, *(1,) * (5 - mask.dim()), *mask.shape[1:]) for mask in masks]
    wide = [mask.expand(samples, query.shape[1], *mask.shape[2:]) for mask in wide]
    return [tensor.flatten(0, 1) for tensor in (query, key, value, *wide)]
