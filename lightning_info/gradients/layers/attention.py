"""Attention: the linear layers inside ``F.multi_head_attention_forward``, and the fused kernel under ``torch.vmap``.

It has no parameters but those of its linear layers, so there is no rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.gradients.layers.base import Layer, SampleAxes, register


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


def fold(dims: SampleAxes, tensors: tuple[Tensor, ...], samples: int) -> list[Tensor]:
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


def _under_vmap(
    apply: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The fused kernels have no batching rule, but take all samples as one batch."""
    if not is_foldable(query, key, value, attn_mask):
        with sdpa_kernel(SDPBackend.MATH):
            output: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
            return output

    def rule(samples: int, dims: SampleAxes, tensors: tuple[Tensor, ...]) -> Tensor:
        q, k, v, *rest = fold(dims, tensors, samples)
        output: Tensor = F.scaled_dot_product_attention(q, k, v, rest[0] if rest else None, *args, **kwargs)
        return output.view(samples, -1, *output.shape[1:])

    return apply(rule, query, key, value, *([] if attn_mask is None else [attn_mask]))


register(
    Layer(
        name="attention",
        opened={F.multi_head_attention_forward: multi_head_attention_forward},
        under_vmap={F.scaled_dot_product_attention: _under_vmap},
    )
)
