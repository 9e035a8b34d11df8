"""What a predictive distribution must tell of itself for the Fisher information of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

CotangentEstimator = Literal["importance", "rademacher", "sampled"]


class Likelihood(ABC):
    """``p(y | z)`` at every position of a sample; positions are independent given z.

    With a score ``s(y) = -∂ log p(y | z) / ∂z``, the Fisher information of the outputs is ``H(z) = E[s sᵀ]``. All
    methods take outputs z of float64 without a graph, samples on axis 0.

    Attributes:
        name: By which a user chooses it.
        has_class_axis: The last axis of z holds the classes of one position.
    """

    name: ClassVar[str]
    has_class_axis: ClassVar[bool] = False

    @abstractmethod
    def fisher_trace(self, z: Tensor) -> Tensor:
        """``tr H(z)`` of every position, ``(N, *positions)``."""

    @abstractmethod
    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """``H(z) t``, with t like z."""

    @abstractmethod
    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        """All columns of a square root of ``H(z)``, each like z: the sum of ``u uᵀ`` over them is H."""

    @abstractmethod
    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """A random u like z with ``E[u uᵀ] = H(z)``; independent signs at the positions of a sample."""

    @abstractmethod
    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Targets from the model, ``(N, *positions)``."""

    @abstractmethod
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """``-∂ log p(y | z) / ∂z``, like z."""

    @abstractmethod
    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``KL(p(y | z) ‖ p(y | other))`` of every position in nats, ``(N, *positions)``.

        Args:
            z: Of the one distribution.
            other: Of the other one, like z.
            variances: Of both, where the distribution has one that its outputs do not tell.
        """


def columns_of(root: Tensor) -> Iterator[Tensor]:
    """The columns of a diagonal root ``(N, *)``: one output at a time, all others zero."""
    flat = root.reshape(len(root), -1)
    for place in range(flat.shape[1]):
        u = torch.zeros_like(flat)
        u[:, place] = flat[:, place]
        yield u.reshape(root.shape)
