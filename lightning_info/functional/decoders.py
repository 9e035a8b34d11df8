r"""Decoders of a label from activations, in closed form.

**Linear.** Ridge regression of the classes' indicators on the principal components of the standardised activations
gives scores, at all penalties from one eigendecomposition. On scores of samples that the regression was not fitted on,
Gaussians with a common covariance (linear discriminant analysis) say :math:`p(y|t)`, at a temperature. Without penalty
nothing of it depends on an invertible linear map of the activations, as long as no component is left out.

**Nearest neighbours.** Counts of the classes among the k nearest, and one more sample of the classes' shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Family = Literal["lda", "ridge", "knn"]

PENALTIES = (1e-5, 1e-3, 1e-2, 0.1, 1.0)
"""In units of the largest squared singular value."""
TEMPERATURES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
NEIGHBOURS = (5, 15, 45)
ITERATIONS = 2
"""Passes over wide layers in search of their largest principal components."""
RANK = 1e-10
"""Squared singular values below this part of the largest are none."""


class Decoder(NamedTuple):
    """A fitted one.

    Attributes:
        family: Of which it is; ``"none"`` if it does not look at the activations.
        worth: Mean log probability, or density, of samples that it was not fitted on, nats.
        log_probabilities: Of the labels ``(M,)`` of the samples that it is judged by, on demand.
    """

    family: str
    worth: float
    log_probabilities: Callable[[], Tensor]


def principal_components(t: Tensor, most: int) -> Tensor:
    """Return the principal components of activations of mean 0 and variance 1, ``(N, d) -> (N, at most d)``, float64.

    Args:
        t: Activations of all samples. Labels have no part in it, so a decoder may be judged by some of them.
        most: Largest number of components.
    """
    t = t.double()
    t = t - t.mean(0)
    std = t.square().mean(0).sqrt()
    t = t * torch.where(std > 1e-9 * std.max(), 1 / std, 0.0)
    if min(t.shape) > 2 * most:
        return _largest(t, most)
    n, d = t.shape
    squares, vectors = torch.linalg.eigh(t @ t.T if d > n else t.T @ t)
    kept = squares > RANK * squares[-1]
    kept[: max(0, len(kept) - most)] = False
    found: Tensor = vectors[:, kept] * squares[kept].sqrt() if d > n else t @ vectors[:, kept]
    return found


def _largest(t: Tensor, most: int) -> Tensor:
    """Components of a subspace in which nearly all of the variance of the largest is, by iteration from a random one.

    In single precision. Whatever the subspace, decoders of what is in it are decoders of the activations. Source:
    Halko, Martinsson & Tropp (2011), algorithm 4.4.
    """
    single = t.float()
    found = torch.randn(t.shape[1], most + 8, generator=torch.Generator().manual_seed(0))
    for _ in range(ITERATIONS):
        found = torch.linalg.qr(single.T @ (single @ found)).Q
    within = single @ found
    _, values, directions = torch.linalg.svd(within, full_matrices=False)
    kept = values[:most] > RANK**0.5 * values[0]
    largest: Tensor = (within.double() @ directions[:most][kept].T.double()).flip(1)
    return largest


class Moments(NamedTuple):
    """Sums over some samples: what ridge regressions need of them.

    Attributes:
        samples: Their number.
        z: Of the components, ``(r,)``.
        y: Of the targets, ``(m,)``.
        zz: Of products of components, ``(r, r)``.
        zy: Of products with targets, ``(r, m)``.
    """

    samples: int
    z: Tensor
    y: Tensor
    zz: Tensor
    zy: Tensor

    @classmethod
    def of(cls, z: Tensor, y: Tensor) -> Moments:
        """Sum over samples ``(n, r)`` and their targets ``(n, m)``."""
        return cls(len(z), z.sum(0), y.sum(0), z.T @ z, z.T @ y)


def regressions(parts: Sequence[Moments]) -> Callable[[Tensor], Tensor]:
    """Fit ridge regressions on parts of the samples.

    Returns:
        Components ``(M, r)`` -> predictions ``(1 + P, M, m)``, without penalty and at each of the :data:`PENALTIES`.
    """
    count, z, y, zz, zy = (sum(column[1:], start=column[0]) for column in zip(*parts, strict=True))
    z, y = z / count, y / count
    squares, vectors = torch.linalg.eigh(zz - count * torch.outer(z, z))
    along = vectors.T @ (zy - count * torch.outer(z, y))
    scale = squares[-1:].clamp_min(torch.finfo(torch.float64).tiny)
    penalised = squares.clamp_min(0) + torch.tensor((0.0, *PENALTIES), dtype=torch.float64)[:, None] * scale
    shrunk = torch.where(squares > RANK * scale, 1 / penalised, 0.0)  # (1 + P, r)
    weights = vectors @ (shrunk[:, :, None] * along)
    one, (settings, m) = weights.movedim(0, 1).flatten(1), weights.shape[::2]
    return lambda rows: ((rows - z) @ one).reshape(len(rows), settings, m).movedim(1, 0) + y


def neighbours(z: Tensor, y: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Return log probabilities by nearest neighbours: components ``(M, r)`` -> ``(len(NEIGHBOURS), M, classes)``."""
    told = shares_of(y, classes)

    def counted(rows: Tensor) -> Tensor:
        numbers = [min(k, len(y)) for k in NEIGHBOURS]
        near = torch.cdist(rows, z).topk(numbers[-1], largest=False).indices
        counts = torch.nn.functional.one_hot(y[near], classes).double().cumsum(1)
        return torch.stack([((counts[:, k - 1] + told) / (k + 1)).log() for k in numbers])

    return counted


def by_shares(y: Tensor, judged: Tensor, classes: int) -> Decoder:
    """The shares of the classes, whatever the activations.

    Args:
        y: Classes of the samples to learn from.
        judged: Classes of the others.
        classes: How many there are.
    """
    told = shares_of(y, classes).log()
    return Decoder("none", told[y].mean().item(), lambda: told[judged])


def by_scores(
    family: str, held_out: Tensor, y: Tensor, parts: Tensor, scores: Tensor, judged: Tensor, classes: int
) -> Decoder:
    """Discriminants on scores, at the best temperature.

    Args:
        family: Name.
        held_out: Scores ``(n, classes)`` of samples that their regressions were not fitted on.
        y: Classes of those.
        parts: To which part each of them belongs: discriminants are judged by a part and fitted on the others.
        scores: Scores ``(M, classes)`` of the samples that the decoder is judged by.
        judged: Classes of those.
        classes: How many there are, of which some may be missing.
    """
    shares = shares_of(y, classes)
    lengths, directions = torch.linalg.eigh(torch.cov(held_out.T))
    span = directions[:, lengths > 1e-8 * lengths[-1]]
    held_out = held_out @ span
    own = held_out.new_empty(len(y), classes)
    spreads = {part: _Spread.of(held_out[parts == part], y[parts == part], classes) for part in set(parts.tolist())}
    for part in spreads:
        others = [spread for other, spread in spreads.items() if other != part]
        own[parts == part] = _discriminants(others)(held_out[parts == part])
    temperatures = torch.tensor(TEMPERATURES, dtype=own.dtype)
    worth, best = _mixed(own, y, shares, temperatures).mean(1).max(0)

    def told() -> Tensor:
        logits = _discriminants(list(spreads.values()))(scores @ span)
        return _mixed(logits, judged, shares, temperatures[best, None])[0]

    return Decoder(family, worth.item(), told)


def by_counts(held_out: Tensor, y: Tensor, told: Tensor, judged: Tensor) -> Decoder:
    """Nearest neighbours, of log probabilities ``(n, classes)`` and ``(M, classes)``; see :func:`by_scores`."""
    worth = held_out[torch.arange(len(y)), y].mean().item()
    return Decoder("knn", worth, lambda: told[torch.arange(len(judged)), judged])


def by_gaussian(family: str, held_out: Tensor, y: Tensor, predicted: Tensor, judged: Tensor) -> Decoder:
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

    return Decoder(family, log_density(rest).mean().item(), lambda: log_density(judged - predicted))


def shares_of(y: Tensor, classes: int) -> Tensor:
    """Return the shares of the classes, none of them 0."""
    return (torch.bincount(y, minlength=classes).double() + 0.5) / (len(y) + classes / 2)


class _Spread(NamedTuple):
    """What discriminants need of some samples.

    Attributes:
        counts: Samples of each class, ``(C,)``.
        means: Of the scores of each class, ``(C, q)``.
        within: Sum of the squares around these, ``(q, q)``.
    """

    counts: Tensor
    means: Tensor
    within: Tensor

    @classmethod
    def of(cls, scores: Tensor, y: Tensor, classes: int) -> _Spread:
        counts = torch.bincount(y, minlength=classes).to(scores)
        means = scores.new_zeros(classes, scores.shape[1]).index_add_(0, y, scores) / counts.clamp(min=1)[:, None]
        rest = scores - means[y]
        return cls(counts, means, rest.T @ rest)


def _discriminants(parts: Sequence[_Spread]) -> Callable[[Tensor], Tensor]:
    """Log densities of Gaussians with the covariance within classes, but for what all classes have in common."""
    counts, of = (torch.stack([getattr(part, name) for part in parts]) for name in ("counts", "means"))
    means = (counts[:, :, None] * of).sum(0) / counts.sum(0).clamp(min=1)[:, None]
    moved = (of - means) * counts.sqrt()[:, :, None]
    within = torch.stack([part.within for part in parts]).sum(0) + moved.flatten(0, 1).T @ moved.flatten(0, 1)
    pulled = means @ torch.linalg.pinv(within / counts.sum(), rtol=1e-9, hermitian=True)
    return lambda scores: scores @ pulled.T - (means * pulled).sum(1) / 2


def _mixed(logits: Tensor, y: Tensor, shares: Tensor, temperatures: Tensor) -> Tensor:
    """Log probabilities of labels, with a thousandth of the classes' shares, so none is impossible.

    Args:
        logits: ``(n, C)``.
        y: The labels ``(n,)``.
        shares: Of the classes, ``(C,)``.
        temperatures: Factors of the logits, ``(T,)``.

    Returns:
        ``(T, n)``.
    """
    log_shares = shares.log()
    beyond = (logits - logits.gather(1, y[:, None])).T.contiguous()[:, None] * temperatures[:, None]  # (C, T, n)
    beyond += (log_shares[:, None] - log_shares[y])[:, None]
    # e^-100 is nothing beside 1, the label itself, and smaller numbers are slow; an overflow is a probability of 0
    told = -beyond.clamp_(min=-100).exp_().sum(0).log_()
    return torch.logaddexp(told + math.log1p(-1e-3), log_shares[y] + math.log(1e-3))
