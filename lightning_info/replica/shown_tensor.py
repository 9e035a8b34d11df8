"""Which tensor of what a module gives are its activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor


def shown_tensor(output: Any) -> Tensor | None:
    """Recurrent layers give their outputs first, models of transformers (after a loss) logits or hidden states.

    Complex values, integers and booleans are shown where there are no real ones beside them.
    """
    shown = [tensor for tensor in _tensors(output) if _is_shown(tensor)]
    kinds = (Tensor.is_floating_point, Tensor.is_complex, lambda tensor: True)
    return next((tensor for is_kind in kinds for tensor in shown if is_kind(tensor)), None)


def description(output: Any) -> str:
    """What a call gave that shows no activations."""
    tensor = next(_tensors(output), None)
    if tensor is None:
        return f"no tensor ({type(output).__name__})"
    if is_functorch_wrapped_tensor(tensor):
        return "a tensor inside of torch.vmap or torch.func"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a tensor with layout {tensor.layout}"
    return f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}"


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
        return
    values: Any = ()
    if isinstance(output, Mapping):
        values = output.values()
    elif isinstance(output, (tuple, list)):
        values = output
    elif is_dataclass(output):
        values = (getattr(output, field.name) for field in fields(output))
    for value in values:
        yield from _tensors(value)


def _is_shown(tensor: Tensor) -> bool:
    if is_functorch_wrapped_tensor(tensor) or tensor.is_nested or tensor.layout != torch.strided:
        return False
    return not tensor.is_quantized and tensor.dim() > 0 and tensor.numel() > 0
