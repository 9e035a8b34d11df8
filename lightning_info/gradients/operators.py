"""Calls of torch's operators, read as layers: the weight and bias that they use, and the stand-in that a rule needs.

A stand-in is a throw-away ``nn.Conv2d`` (and so on) with the call's settings and no weights of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Operator:
    """One call.

    Attributes:
        layer: The stand-in.
        inputs: What the layer acts on.
        weight: As given to the call; None if it has none.
        bias: The same.
        axes: Number of last axes of ``inputs`` that the layer acts on (those before them are positions); None if
            ``inputs`` are ``(rows, C, *positions)``.
        key: Equal for calls whose gradients one rule can sum over all their positions; None if there is no such rule.
        refused: Why samples have no gradients of their own here; empty if they have.
    """

    layer: nn.Module
    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None
    axes: int | None
    key: tuple[Any, ...] | None
    refused: str = ""

    @property
    def kind(self) -> str:
        """What its rule is called by."""
        return _KINDS[type(self.layer)]


def read(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operator | None:
    """The call of a known operator, or None. Of operators with complex weights linear layers alone have a rule."""
    reader = _READERS.get(func)
    if reader is None:
        return None
    try:
        operator = reader(*args, **kwargs)
    except (TypeError, KeyError, AttributeError, IndexError):  # a call of a form that is not known here
        return None
    if operator is None or operator.weight is None or not operator.weight.is_complex():
        return operator
    return operator if isinstance(operator.layer, nn.Linear) else None


def by_sample(operator: Operator, tensor: Tensor, samples: int, *, extra_axes: int = 0, rows: bool = False) -> Tensor:
    """Bring an operator's input or output gradient into the form that rules take, and that can be joined on an axis.

    Args:
        operator: The operator.
        tensor: All positions of the first sample, then those of the second, and so on.
        samples: N.
        extra_axes: By how many axes a position of it is larger than one of the input.
        rows: Keep the axis of a sample's own rows where there is only one.

    Returns:
        ``(N, positions, *)``; with the channels first ``(N, C, rows, *positions)``.
    """
    if operator.axes is not None:
        return tensor.reshape(samples, -1, *tensor.shape[tensor.dim() - operator.axes - extra_axes :])
    if not rows and len(tensor) == samples:
        return tensor
    return tensor.reshape(samples, -1, *tensor.shape[1:]).transpose(1, 2)


def _stand_in(kind: type[nn.Module], **settings: Any) -> nn.Module:
    """Without the layer's constructor, which would draw weights."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    vars(layer).update(settings, training=False)
    return layer


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operator:
    return Operator(_stand_in(nn.Linear), input, weight, bias, 1, (nn.Linear,))


def _matmul(input: Tensor, other: Tensor) -> Operator | None:
    """A linear layer with the matrix the other way round, which changes no norm."""
    return (
        Operator(_stand_in(nn.Linear), input, other, None, 1, (nn.Linear, "transposed")) if other.dim() == 2 else None
    )


def _mm(input: Tensor, mat2: Tensor) -> Operator | None:
    return _matmul(input, mat2)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Operator | None:
    if input.dim() != 1 or len(input) != mat2.shape[1]:
        return None
    return Operator(_stand_in(nn.Linear), mat1, mat2, input, 1, (nn.Linear, "transposed"))


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Operator:
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
    return _any_conv(kind, input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Operator:
    kind = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}[weight.dim()]
    return _any_conv(kind, input, weight, bias, stride, padding, dilation, groups)


def _any_conv(
    kind: type[nn.Module],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Operator:
    kernel_size = tuple(weight.shape[2:])
    settings = {
        "kernel_size": kernel_size,
        "stride": _each(stride, len(kernel_size)),
        "padding": padding if isinstance(padding, str) else _each(padding, len(kernel_size)),
        "dilation": _each(dilation, len(kernel_size)),
        "groups": groups,
    }
    return Operator(_stand_in(kind, **settings), input, weight, bias, None, (kind, *settings.values()))


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Operator:
    layer = _stand_in(nn.BatchNorm2d, running_mean=running_mean, running_var=running_var, eps=eps)
    key = (nn.BatchNorm2d, id(running_mean), id(running_var), eps)
    refused = "BatchNorm with batch statistics has no per-sample gradient" if training or running_mean is None else ""
    return Operator(layer, input, weight, bias, None, key, refused)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operator:
    shape = tuple(normalized_shape)
    layer = _stand_in(nn.LayerNorm, normalized_shape=shape, eps=eps)
    return Operator(layer, input, weight, bias, len(shape), (nn.LayerNorm, shape, eps))


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Operator:
    shape = tuple(normalized_shape)
    layer = _stand_in(nn.RMSNorm, normalized_shape=shape, eps=eps)
    return Operator(layer, input, weight, None, len(shape), (nn.RMSNorm, shape, eps))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operator:
    return Operator(_stand_in(nn.GroupNorm, num_groups=num_groups, eps=eps), input, weight, bias, None, None)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operator:
    refused = ""
    if max_norm is not None or scale_grad_by_freq:
        refused = "an embedding with max_norm or scale_grad_by_freq has no per-sample gradient of its own"
    if padding_idx is not None:
        padding_idx %= len(weight)
    layer = _stand_in(nn.Embedding, padding_idx=padding_idx)
    return Operator(layer, input, weight, None, 0, (nn.Embedding, padding_idx), refused)


_KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch_norm",
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm",
    nn.GroupNorm: "group_norm",
    nn.Embedding: "embedding",
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolution"),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolution"),
}
_READERS: dict[Callable[..., Any], Callable[..., Operator | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.addmm: _addmm,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    F.conv_transpose3d: _conv_transpose,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.embedding: _embedding,
}
