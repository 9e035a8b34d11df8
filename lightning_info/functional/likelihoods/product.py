"""Several predictions of one network that are independent given its input: heads, tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood


class Product(Likelihood):
    """Product ``p(y | z)`` over heads: H has their blocks on its diagonal, and ``tr H`` is their sum.

    The outputs ``(N, D)`` are those of the heads side by side, each head's flattened; positions ``(N, P)`` likewise.

    Args:
        heads: Distribution of every head, and the shape of its outputs for one sample, ``(*positions, C)``.
    """

    name: ClassVar[str] = "product"

    def __init__(self, heads: Sequence[tuple[Likelihood, tuple[int, ...]]]) -> None:
        self.heads = tuple(heads)
        self.is_exact = all(head.is_exact for head, _ in heads)

    def __str__(self) -> str:
        return " and ".join(f"{head} {shape}" for head, shape in self.heads)

    def positions(self, z: Tensor) -> tuple[int, ...]:
        """Return the shape of a mask, ``(N, P)``."""
        return len(z), sum(self._numbers_of_positions())

    def outputs_of(self, z: Tensor) -> list[Tensor]:
        """Return the outputs of each head, ``(N, *positions, C)``."""
        parts = torch.split(z, [math.prod(shape) for _, shape in self.heads], 1)
        return [part.reshape(len(z), *shape) for part, (_, shape) in zip(parts, self.heads, strict=True)]

    def positions_of(self, values: Tensor) -> list[Tensor]:
        """Return the values ``(N, *positions)`` of each head, from values ``(N, P)`` of all positions."""
        places = [(len(values), *shape[: len(shape) - head.is_joint]) for head, shape in self.heads]
        parts = torch.split(values, self._numbers_of_positions(), 1)
        return [part.reshape(place) for part, place in zip(parts, places, strict=True)]

    def check(self, z: Tensor) -> None:
        """Check every head separately."""
        for head, part in self._with(z):
            head.check(part)

    def masked(self, u: Tensor, mask: Tensor) -> Tensor:
        """Mask the positions of each head."""
        parts = zip(self._distributions, self.outputs_of(u), self.positions_of(mask), strict=True)
        return _joined([head.masked(part, kept) for head, part, kept in parts])

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return the values of the heads side by side."""
        return _joined([head.fisher_trace(part) for head, part in self._with(z)])

    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the product of each block separately."""
        return _joined([head.fisher_product(*parts) for head, *parts in self._with(z, t)])

    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        """Yield the columns of one head after those of another, all other heads zero."""
        parts = self.outputs_of(z)
        for place, (head, part) in enumerate(self._with(z)):
            for column in head.fisher_root(part):
                yield _joined([column if i == place else torch.zeros_like(other) for i, other in enumerate(parts)])

    def root_columns(self, z: Tensor) -> int:
        """Return the number of columns of all heads."""
        return sum(head.root_columns(part) for head, part in self._with(z))

    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """Return those of each head with its own sign, as those of a single position need not have mean zero."""
        found = [head.cotangent(part, estimator, generator) for head, part in self._with(z)]
        return _joined([u * draws.signs((len(z), *(1,) * (u.dim() - 1)), z, generator) for u in found])

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return the targets of the heads side by side, float64, including classes."""
        return _joined([head.sample(part, generator).double() for head, part in self._with(z)])

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the values of the heads side by side."""
        return _joined([head.loss(part, label) for head, part, label in self._with_targets(z, y)])

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the values of the heads side by side."""
        return _joined([head.score(part, label) for head, part, label in self._with_targets(z, y)])

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the values of the heads side by side."""
        return _joined([head.kl(*parts) for head, *parts in self._with(z, other)])

    @property
    def _distributions(self) -> list[Likelihood]:
        return [head for head, _ in self.heads]

    def _numbers_of_positions(self) -> list[int]:
        return [math.prod(shape[: len(shape) - head.is_joint]) for head, shape in self.heads]

    def _with(self, *outputs: Tensor) -> Iterator[tuple[Any, ...]]:
        return zip(self._distributions, *(self.outputs_of(z) for z in outputs), strict=True)

    def _with_targets(self, z: Tensor, y: Tensor) -> Iterator[tuple[Likelihood, Tensor, Tensor]]:
        for head, part, label in zip(self._distributions, self.outputs_of(z), self.positions_of(y), strict=True):
            yield head, part, label.long() if head.has_class_axis else label


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) if part.dim() > 1 else part.unsqueeze(1) for part in parts], 1)
