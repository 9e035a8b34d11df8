"""The interface of predictive distributions for the Fisher information of the weights."""

# ruff: noqa: B027 - most distributions have nothing to refuse

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws

CotangentEstimator = Literal["importance", "rademacher", "sampled"]


class NotRegular(ValueError):
    """A distribution has no Fisher information, or its scores cannot be computed; the message says why."""


class Likelihood(ABC):
    """``p(y | z)`` at every position of a sample; positions are independent given z.

    With a score ``s(y) = -∂ log p(y | z) / ∂z``, the Fisher information of the outputs is ``H(z) = E[s sᵀ]``. All
    methods take outputs z of float64 without a graph, samples on axis 0.

    Attributes:
        name: Name by which a user chooses it.
        has_class_axis: Whether the last axis of z holds the classes of one position.
        is_joint: Whether the last axis of z belongs to one position: its classes, or its distribution's parameters.
        is_exact: Whether H is known; otherwise it is a mean over sampled labels, see :class:`~.Sampled`.
        convention: What is fixed as z does not determine it, such as the unit variance of a mean; may be empty.
        support: Smallest and largest y.
    """

    name: ClassVar[str]
    has_class_axis: ClassVar[bool] = False
    is_joint: ClassVar[bool] = False
    is_exact: bool = True
    convention: ClassVar[str] = ""
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __str__(self) -> str:
        return self.name

    def positions(self, z: Tensor) -> tuple[int, ...]:
        """Return the shape of a mask, ``(N, *positions)``."""
        return tuple(z.shape[:-1] if self.is_joint else z.shape)

    def masked(self, u: Tensor, mask: Tensor) -> Tensor:
        """Return ``u`` like z, and zero at positions that a mask ``(N, *positions)`` leaves out."""
        return u * mask.reshape(*mask.shape, *(1,) * (u.dim() - mask.dim()))

    def check(self, z: Tensor) -> None:
        """Refuse outputs at which there is no Fisher information.

        Raises:
            NotRegular: There is none.
        """

    @abstractmethod
    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return ``tr H(z)`` of every position, ``(N, *positions)``."""

    @abstractmethod
    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """Return ``H(z) t``, with t like z."""

    @abstractmethod
    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        """Yield all columns of a square root of ``H(z)``, each like z: the sum of ``u uᵀ`` over them is H."""

    def root_columns(self, z: Tensor) -> int:
        """Return the number of columns of :meth:`fisher_root`: usually one for each output of a sample."""
        return z[0].numel()

    @abstractmethod
    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """Return a random u like z with ``E[u uᵀ] = H(z)``; independent signs at the positions of a sample."""

    @abstractmethod
    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return targets from the model, ``(N, *positions)``."""

    @abstractmethod
    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``-log p(y | z)`` of every position in nats, up to what does not depend on z; differentiable in z."""

    @abstractmethod
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``-∂ log p(y | z) / ∂z``, like z."""

    @abstractmethod
    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``KL(p(y | z) ‖ p(y | other))`` of every position in nats, ``(N, *positions)``.

        Args:
            z: Outputs of the first distribution.
            other: Outputs of the second distribution, like z.
            variances: Variances of both, if the distribution has one that its outputs do not determine.
        """


class PerOutput(Likelihood):
    """Distribution with every output its own position: H is diagonal."""

    @abstractmethod
    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return the diagonal of H, like z."""

    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the diagonal times t."""
        return self.fisher_trace(z) * t

    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        """Yield one output at a time: the square root of its element of H, all others zero."""
        flat = self.fisher_trace(z).sqrt().reshape(len(z), -1)
        for place in range(flat.shape[1]):
            u = torch.zeros_like(flat)
            u[:, place] = flat[:, place]
            yield u.reshape(z.shape)

    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """Return the score of a target from the model for ``"sampled"``, else ``± sqrt`` of the diagonal."""
        if estimator == "sampled":
            return self.score(z, self.sample(z, generator))
        return draws.signs(z.shape, z, generator) * self.fisher_trace(z).sqrt()
