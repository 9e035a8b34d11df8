"""Distributions whose parameters are outputs, as in ``torch.distributions``: H is a matrix per position."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, kl_divergence

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood

LABELS = 128
"""Number of labels of each position whose mean replaces what has no closed form."""


class OfParameters(Likelihood):
    """``p(y | θ)`` with the P parameters of a position on the last axis of the outputs ``(N, *positions, P)``.

    Which ones does not matter: Jᵀ H J is the same for a scale and its logarithm. Parameters that the network does not
    predict stand among them and have no Fisher information. Targets are ``(N, *positions, *event)``.

    Args:
        predicted: Whether the network predicts each parameter.
    """

    is_joint: ClassVar[bool] = True

    def __init__(self, predicted: tuple[bool, ...]) -> None:
        self.predicted = predicted

    @abstractmethod
    def distribution(self, z: Tensor) -> Distribution:
        """Return one distribution per position."""

    @abstractmethod
    def information(self, z: Tensor) -> Tensor:
        """Return H of all parameters as if all were predicted, ``(N, *positions, P, P)``."""

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return the trace of H over the predicted parameters."""
        return self._information(z).diagonal(dim1=-2, dim2=-1).sum(-1)

    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """Return ``H t`` at every position."""
        return (self._information(z) @ t.unsqueeze(-1)).squeeze(-1)

    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        """Yield the columns of the symmetric root of H of one position after another, all other positions zero."""
        root = self._root(z).reshape(len(z), -1, z.shape[-1], z.shape[-1])
        for position in range(root.shape[1]):
            for column in range(root.shape[-1]):
                if self.predicted[column]:
                    u = torch.zeros_like(root[..., 0])
                    u[:, position] = root[:, position, :, column]
                    yield u.reshape(z.shape)

    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """Return the score of a target from the model for ``"sampled"``, else the root of H times random signs."""
        if estimator == "sampled":
            return self.score(z, self.sample(z, generator))
        return (self._root(z) @ draws.signs(z.shape, z, generator).unsqueeze(-1)).squeeze(-1)

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return targets ``(N, *positions, *event)``."""
        with draws.seeding(z.device, generator), torch.no_grad():
            found: Tensor = self.distribution(z).sample()
        return found

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``-log p(y | θ)``."""
        return -self.distribution(z).log_prob(y)

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the score by autograd, 0 for parameters that are not predicted."""
        with torch.enable_grad():
            at = z.detach().clone().requires_grad_()
            (found,) = torch.autograd.grad(self.loss(at, y).sum(), at)
        return found * self._predicted(z)

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return torch's divergence; else the mean of ``r - 1 - log r`` over targets, ``r = p(y | other) / p(y | z)``.

        There are :data:`LABELS` targets from ``p(y | z)``, the same at every call; the mean has no bias.
        """
        try:
            found: Tensor = kl_divergence(self.distribution(z), self.distribution(other))
        except NotImplementedError:
            return self._sampled_kl(z, other)
        return found

    def _sampled_kl(self, z: Tensor, other: Tensor) -> Tensor:
        generator, total = torch.Generator().manual_seed(0), torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        for _ in range(LABELS):
            y = self.sample(z, generator)
            log_ratio = self.loss(z, y) - self.loss(other, y)
            total += torch.expm1(log_ratio) - log_ratio
        return total / LABELS

    def _predicted(self, z: Tensor) -> Tensor:
        return torch.tensor(self.predicted, device=z.device).to(z)

    def _information(self, z: Tensor) -> Tensor:
        kept = self._predicted(z)
        return self.information(z) * kept * kept.unsqueeze(-1)

    def _root(self, z: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(self._information(z))
        root: Tensor = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
        return root
