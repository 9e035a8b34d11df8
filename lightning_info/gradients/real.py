r"""The trained weights as one vector of real numbers: a complex weight is two of them, its real and imaginary part.

For ``w = a + ib`` PyTorch's gradient of a real function is ``∂L/∂a + i ∂L/∂b``, so that its squared modulus is that of
the gradient in (a, b), and everything here is what the same module gives that is written with real parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def as_real(tensor: Tensor) -> Tensor:
    """``(*shape, 2)``, real and imaginary part, of a complex tensor ``(*shape)``; any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flat(tensor: Tensor) -> Tensor:
    """All real numbers of a tensor, ``(n,)``."""
    return as_real(tensor).reshape(-1)


def sizes(tensors: Iterable[Tensor]) -> list[int]:
    """How many real numbers each tensor has."""
    return [tensor.numel() * (1 + tensor.is_complex()) for tensor in tensors]


def shaped(numbers: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`flat`: real numbers ``(n,)`` as a tensor of the shape, type and device of another."""
    if not like.is_complex():
        return numbers.view(like.shape).to(like)
    return torch.complex(*numbers.view(*like.shape, 2).unbind(-1)).to(like)


def in_double(tensor: Tensor) -> Tensor:
    """In double precision, complex or not; integers as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
