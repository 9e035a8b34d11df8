"""Classes: logits with the classes on the last axis.

For the likeliest class ``1 - p`` is computed as the sum of the others, so no precision is lost if a network is certain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import CotangentEstimator, Likelihood


class Categorical(Likelihood):
    """``p = softmax(z)`` over the last axis, and ``H = diag(p) - p pᵀ``; everything from log-probabilities."""

    name: ClassVar[str] = "categorical"
    has_class_axis: ClassVar[bool] = True
    is_joint: ClassVar[bool] = True

    def fisher_trace(self, z: Tensor) -> Tensor:
        """Return ``sum p (1 - p)``."""
        p, _, rest = _probabilities(z)
        return ((1 - rest) * rest + rest - p.square_().sum(-1, keepdim=True)).squeeze(-1)

    def fisher_product(self, z: Tensor, t: Tensor) -> Tensor:
        """Return ``p∘t - p (pᵀt)``."""
        p = z.softmax(-1)
        return p * (t - (p * t).sum(-1, keepdim=True))

    def fisher_root(self, z: Tensor) -> Iterator[Tensor]:
        r"""C - 1 columns at each position, as H has the rank C - 1 there.

        With ``q = sqrt(p)``, ``H = diag(q) (I - q qᵀ) diag(q)``, and the columns of Householder's reflection of -q to
        the unit vector of the likeliest class m, but for the m-th, are an orthonormal basis of what is orthogonal to q:

        .. math:: u_c = q \circ \Bigl(e_c - \frac{q_c}{1 + q_m} (q + e_m)\Bigr), \qquad c \ne m .

        A single class has one column, of zeros.
        """
        p = z.softmax(-1).reshape(len(z), -1, z.shape[-1])
        q, classes = p.sqrt(), p.shape[2]
        most = p.argmax(2, keepdim=True)
        at_most = q.gather(2, most)
        for position in range(p.shape[1]):
            own, m = p[:, position], most[:, position]
            for column in range(max(1, classes - 1)):
                u = torch.zeros_like(p)
                if classes > 1:
                    c = column + (m <= column).long()
                    along = q[:, position].gather(1, c)
                    value = -own * along / (1 + at_most[:, position])
                    value.scatter_(1, m, -at_most[:, position] * along)
                    u[:, position] = value.scatter_add_(1, c, along)
                yield u.reshape(z.shape)

    def root_columns(self, z: Tensor) -> int:
        """Return the number of columns, C - 1 at each position."""
        return z[0, ..., 0].numel() * max(1, z.shape[-1] - 1)

    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """See :func:`~lightning_info.functional.fisher_cotangent`."""
        if estimator == "sampled":
            return self.score(z, self.sample(z, generator))
        p, most, rest = _probabilities(z)
        p.scatter_(-1, most, 1 - rest)
        if estimator == "rademacher":
            weighted = p.sqrt() * draws.signs(z.shape, z, generator)
            return weighted - p * weighted.sum(-1, keepdim=True)
        # ‖e_c - p‖² = (1 - p_c)² + sum over the other classes of p²
        one_minus_p, squares = (1 - p).scatter_(-1, most, rest), p.square()
        distance = squares.sum(-1, keepdim=True).sub(squares).clamp_min_(0).addcmul_(one_minus_p, one_minus_p)
        curvature = (p * one_minus_p).sum(-1, keepdim=True)
        label = draws.index(distance.mul_(p), generator)
        direction = p.neg().scatter_(-1, label, one_minus_p.gather(-1, label))
        length = direction.norm(dim=-1, keepdim=True)
        scale = torch.where(length > 0, curvature.sqrt() / length.clamp_min(torch.finfo(z.dtype).tiny), 0)
        if z.dim() > 2:
            scale = scale * draws.signs((*z.shape[:-1], 1), z, generator)
        return direction.mul_(scale)

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Return classes, int64."""
        return draws.index(z.log_softmax(-1).exp(), generator).squeeze(-1)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``-log p_y``."""
        return -z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``p - e_y``."""
        log_p, label = z.log_softmax(-1), y.unsqueeze(-1)
        return log_p.exp().scatter(-1, label, torch.expm1(log_p).gather(-1, label))

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``sum p (log p - log q)``."""
        p, q = z.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)


def _probabilities(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``p`` with 0 for the likeliest class, that class, and the probability of all others, ``(..., 1)``."""
    highest, most = z.max(-1, keepdim=True)
    e = (z - highest).exp_().scatter_(-1, most, 0.0)
    others = e.sum(-1, keepdim=True)
    return e.div_(1 + others), most, others / (1 + others)
