"""Per-output gradients of one parameter: the form in which every layer's rule gives them.

They are the rows ``J_nᵀ u_nc`` of N samples and C cotangents, in the order (n, c), restricted to the parameter: ``(N C,
elements)``. A layer's rule makes them from its input ``x (N, ...)`` and the gradients ``g (N, C, ...)`` at its output
(:func:`~.layers.base.by_sample`), some columns at a time: for a large layer they are never all at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_info.gradients.real import as_real, sizes


class Factors(NamedTuple):
    """A row is ``sum_l g[n, c, l] x[n, l]ᵀ``: the same x for all cotangents.

    Attributes:
        positions: L.
        inside: I.
        out: O.
        tensors: Makes ``x (N, L, I)`` and ``g (N, C, L, O)``.
    """

    positions: int
    inside: int
    out: int
    tensors: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class Rows:
    """Rows ``(R, slices * width)`` of one parameter, real numbers, a range of slices at a time.

    Attributes:
        slices: Along the parameter's axis 0, as a rule.
        width: Elements of a slice.
        make: ``(first, end) -> (R, (end - first) * width)``.
        factors: Of which each row is a product, if it is one.
        is_transposed: The parameter is a matrix and the slices lie along its axis 1.
        at: Which slices of axis 0 they are, where the others are zero in all rows.
    """

    slices: int
    width: int
    make: Callable[[int, int], Tensor]
    factors: Factors | None = None
    is_transposed: bool = False
    at: Tensor | None = None

    def __add__(self, other: Rows) -> Rows:
        """Of a parameter that two operators use: the gradients add up."""
        return Rows(self.slices, self.width, lambda first, end: self.make(first, end) + other.make(first, end))

    def everywhere(self, slices: int) -> Rows:
        """With all slices of axis 0, also those that are zero in all rows."""
        if self.at is None:
            return self
        at, make = self.at, self.make

        def make_all(first: int, end: int) -> Tensor:
            lo, hi = torch.searchsorted(at, torch.tensor([first, end], device=at.device)).tolist()
            some = make(lo, hi)
            whole = some.new_zeros(len(some), end - first, self.width)
            whole[:, at[lo:hi] - first] = some.view(len(some), hi - lo, self.width)
            return whole.flatten(1)

        return Rows(slices, self.width, make_all)

    def arrange(self, elements: Tensor, shape: torch.Size) -> Tensor:
        """Put one number per column in the places of the parameter's elements, of which ``shape`` is the real form."""
        if self.at is not None:
            return elements.new_zeros(shape).index_copy_(0, self.at, elements.view(-1, *shape[1:]))
        if self.is_transposed:
            return elements.view(shape[1], shape[0], *shape[2:]).transpose(0, 1)
        return elements.view(shape)


def of_tensor(gradient: Tensor) -> Rows:
    """Gradients that are at hand, ``(N, C, *shape)``."""
    flat = as_real(gradient).reshape(len(gradient) * gradient.shape[1], sizes([gradient[0, 0]])[0])
    return Rows(flat.shape[1], 1, lambda first, end: flat[:, first:end])


def of_channels(g: Tensor) -> Rows:
    """Gradients of a bias per channel, from those at the output, ``(N, C, channels, *positions)``."""
    return of_tensor(g.flatten(3).sum(3) if g.dim() > 3 else g)
