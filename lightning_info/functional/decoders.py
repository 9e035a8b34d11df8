r"""Decoders of a label from activations, in closed form.

**Linear.** Ridge regression of the classes' indicators on standardised activations gives scores, at all penalties from
one singular value decomposition. On scores of samples that the regression was not fitted on, Gaussians with a common
covariance (linear discriminant analysis) say :math:`p(y|t)`, at a temperature. Without penalty nothing of it depends on
an invertible linear map of the activations.

**Nearest neighbours.** Counts of the classes among the k nearest, and one more sample of the classes' shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Family = Literal["lda", "ridge", "knn"]

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""In units of the largest squared singular value."""
TEMPERATURES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
NEIGHBOURS = (5, 15, 45)
RANK = 1e-10
"""Squared singular values below this part of the largest are none."""

Predict = Callable[[Tensor], Tensor]
"""Activations ``(M, d)`` -> predictions ``(M, m)``."""


class Decoder(NamedTuple):
    """A fitted one.

    Attributes:
        family: Of which it is; ``"none"`` if it does not look at the activations.
        worth: Mean log probability, or density, of samples that it was not fitted on, nats.
        log_probabilities: ``(M, d)`` activations and their ``(M,)`` or ``(M, m)`` labels -> ``(M,)``.
    """

    family: str
    worth: float
    log_probabilities: Callable[[Tensor, Tensor], Tensor]


class Standardised:
    """Activations of mean 0 and variance 1, as a singular value decomposition.

    Args:
        t: ``(n, d)`` float64.

    Attributes:
        rows: The activations on the new scale.
        squares: The squared singular values, ``(r,)``.
        u: The left singular vectors, ``(n, r)``.
    """

    def __init__(self, t: Tensor) -> None:
        self._mean = t.mean(0)
        std = (t - self._mean).square().mean(0).sqrt()
        self._scale = torch.where(std > 1e-9 * std.max(), 1 / std, 0.0)
        self.rows = self.of(t)
        n, d = t.shape
        squares, vectors = torch.linalg.eigh(self.rows @ self.rows.T if d > n else self.rows.T @ self.rows)
        kept = squares > RANK * squares[-1]
        self.squares, vectors = squares[kept], vectors[:, kept]
        root = self.squares.sqrt()
        self._right = self.rows.T @ (vectors / root) if d > n else vectors
        self.u = vectors if d > n else self.rows @ vectors / root

    def of(self, t: Tensor) -> Tensor:
        """Other activations on the same scale."""
        centred: Tensor = t - self._mean
        return centred * self._scale

    def along(self, t: Tensor) -> Tensor:
        """``(M, r)``: other activations along the right singular vectors."""
        return torch.matmul(self.of(t), self._right)


def regressions(family: Family, x: Standardised, y: Tensor) -> list[Predict]:
    """Ridge regressions of ``y (n, m)``, one a penalty; for ``"lda"`` that without; none where no activation varies."""
    if not len(x.squares):
        return []
    mean = y.mean(0)
    along, root = x.u.T @ (y - mean), x.squares.sqrt()

    def predict(t: Tensor, weights: Tensor) -> Tensor:
        return x.along(t) @ weights + mean

    squares = [x.squares + penalty * x.squares[-1] for penalty in ((0.0,) if family == "lda" else PENALTIES)]
    return [partial(predict, weights=(root / one)[:, None] * along) for one in squares]


def neighbours(x: Standardised, y: Tensor, classes: int) -> list[Predict]:
    """Log probabilities of the classes by nearest neighbours, one a number of them."""
    told = shares_of(y, classes)

    def counted(t: Tensor, k: int) -> Tensor:
        near = torch.cdist(x.of(t), x.rows).topk(k, largest=False).indices
        return ((torch.nn.functional.one_hot(y[near], classes).double().sum(1) + told) / (k + 1)).log()

    return [partial(counted, k=min(k, len(y))) for k in NEIGHBOURS]


def by_shares(y: Tensor, classes: int) -> Decoder:
    """The shares of the classes, whatever the activations."""
    told = shares_of(y, classes).log()
    return Decoder("none", told[y].mean().item(), lambda t, y: told[y])


def by_scores(family: Family, held_out: Tensor, y: Tensor, parts: Tensor, predict: Predict, classes: int) -> Decoder:
    """Discriminants on scores, at the best temperature.

    Args:
        family: Name.
        held_out: Scores ``(n, classes)`` of samples that their regressions were not fitted on.
        y: Classes of those.
        parts: To which part each of them belongs: discriminants are judged by a part and fitted on the others.
        predict: Gives scores.
        classes: How many there are, of which some may be missing.
    """
    shares = shares_of(y, classes)
    lengths, directions = torch.linalg.eigh(torch.cov(held_out.T))
    span = directions[:, lengths > 1e-8 * lengths[-1]]
    scores, own = held_out @ span, torch.empty_like(held_out)
    for part in set(parts.tolist()):
        own[parts == part] = _discriminants(scores[parts != part], y[parts != part], classes)(scores[parts == part])
    worths = [_mixed(own * tau, shares)[torch.arange(len(y)), y].mean().item() for tau in TEMPERATURES]
    tau, logits = TEMPERATURES[worths.index(max(worths))], _discriminants(scores, y, classes)

    def told(t: Tensor, y: Tensor) -> Tensor:
        return _mixed(logits(predict(t) @ span) * tau, shares)[torch.arange(len(y)), y]

    return Decoder(family, max(worths), told)


def by_counts(held_out: Tensor, y: Tensor, predict: Predict) -> Decoder:
    """Nearest neighbours; see :func:`by_scores`."""
    worth = held_out[torch.arange(len(y)), y].mean().item()
    return Decoder("knn", worth, lambda t, y: predict(t)[torch.arange(len(y)), y])


def by_gaussian(family: str, held_out: Tensor, y: Tensor, predict: Predict) -> Decoder:
    """A Gaussian around a prediction of continuous targets ``(n, m)``; see :func:`by_scores`."""
    rest = y - held_out
    covariance = rest.T @ rest / len(y)
    covariance += 1e-12 * (covariance.diagonal().mean() + 1e-300) * torch.eye(y.shape[1], dtype=y.dtype)
    factor = torch.linalg.cholesky(covariance)
    constant = -factor.diagonal().log().sum().item() - y.shape[1] / 2 * math.log(2 * math.pi)

    def log_density(rest: Tensor) -> Tensor:
        white: Tensor = torch.linalg.solve_triangular(factor, rest.T, upper=False)
        squares: Tensor = white.square().sum(0)
        return squares.mul(-0.5).add(constant)

    return Decoder(family, log_density(rest).mean().item(), lambda t, y: log_density(y - predict(t)))


def shares_of(y: Tensor, classes: int) -> Tensor:
    """The shares of the classes, none of them 0."""
    return (torch.bincount(y, minlength=classes).double() + 0.5) / (len(y) + classes / 2)


def _discriminants(scores: Tensor, y: Tensor, classes: int) -> Predict:
    """Log densities of Gaussians with the covariance within classes, but for what all classes have in common."""
    indicators = torch.nn.functional.one_hot(y, classes).double()
    means = (indicators.T @ scores) / indicators.sum(0).clamp(min=1)[:, None]
    within = scores - means[y]
    pulled = means @ torch.linalg.pinv(within.T @ within / len(y), rtol=1e-9, hermitian=True)
    return lambda scores: scores @ pulled.T - (means * pulled).sum(1) / 2


def _mixed(logits: Tensor, shares: Tensor) -> Tensor:
    """Log probabilities, with a thousandth of the classes' shares, so no label is impossible."""
    told = torch.log_softmax(logits + shares.log(), 1)
    return torch.logaddexp(told + math.log1p(-1e-3), shares.log() + math.log(1e-3))
