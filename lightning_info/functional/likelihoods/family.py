"""Families of ``torch.distributions`` whose Fisher information is known: by a formula, or from their divergence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from lightning_info.functional.likelihoods.parameters import OfParameters

Predicted = tuple[bool, ...]
Shapes = tuple[tuple[int, ...], ...]


class Family(OfParameters):
    """``H = ∂² KL(p_θ ‖ p_θ') / ∂θ'²`` at ``θ' = θ``, of the divergence that torch has, by autograd: exact.

    Only for families that are smooth in their parameters, the support included; others have a formula of their own.

    Args:
        kind: The class of torch.
        names: Its parameters, which its constructor takes.
        predicted: Whether each number among the parameters of one position is predicted, see :class:`~.OfParameters`;
            None if all are.
        shapes: Axes of each parameter beyond the positions; None if they are numbers.
    """

    def __init__(
        self,
        kind: type[Distribution],
        names: tuple[str, ...],
        predicted: Predicted | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        self.kind, self.names = kind, names
        self.shapes = shapes or ((),) * len(names)
        sizes = [math.prod(shape) for shape in self.shapes]
        super().__init__(predicted or (True,) * sum(sizes))
        self._sizes = sizes

    def __str__(self) -> str:
        return self.kind.__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Family) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.kind, self.predicted, self.shapes

    def distribution(self, z: Tensor) -> Distribution:
        """Return one distribution per position."""
        parts = torch.split(z, self._sizes, -1)
        values = [part.reshape(*z.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        make: Any = self.kind
        return make(**dict(zip(self.names, values, strict=True)), validate_args=False)  # type: ignore[no-any-return]

    def information(self, z: Tensor) -> Tensor:
        """See the class."""
        with torch.enable_grad():
            at = z.detach().clone().requires_grad_()
            kl = kl_divergence(self.distribution(z.detach()), self.distribution(at)).sum()
            (slope,) = torch.autograd.grad(kl, at, create_graph=True)
            rows = [
                torch.autograd.grad(slope[..., place].sum(), at, retain_graph=True)[0] for place in range(z.shape[-1])
            ]
        return torch.stack(rows, -2)


def matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """Return ``(*, P, P)`` of elements that are numbers, or tensors like one of shape ``(*)``."""
    elements = [[torch.as_tensor(one).to(like).expand_as(like) for one in row] for row in rows]
    return torch.stack([torch.stack(row, -1) for row in elements], -2)
