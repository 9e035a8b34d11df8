"""What the gradient of a loss in logits tells of a cross entropy: the targets q, and the weight v of each row.

In logits z with softmax or sigmoids p the gradient of v times the cross entropy of q is ``v (p(z) - q)``, and no other
function of z has it. Where q is a label and v is one number for all rows, one gradient tells both. Otherwise two at
different logits do; a third shows whether v and q depend on the logits, as those of a focal loss do.

Rows are ``(*rows, C)`` of a softmax and ``(*rows)`` of sigmoids, where every output is a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SURE = 1e-6
"""Probability of all but one class below which the gradient may be 0 at a label, too: it counts as nothing."""
HARD = 1e-4
"""Distance of a target from a label that is one."""

Kind = Literal["categorical", "bernoulli"]


@dataclass(frozen=True)
class Targets:
    """What the cross entropy compares with.

    Attributes:
        q: Like the logits; 0 where a row is left out.
        weight: ``(*rows)``, 0 where a row is left out.
        kept: ``(*rows)``, False where a row is left out.
    """

    q: Tensor
    weight: Tensor
    kept: Tensor

    @property
    def scale(self) -> float | None:
        """The weight, if all rows have the same; else None."""
        weights = self.weight[self.kept]
        low, high = weights.aminmax()
        return float(high) if bool(high - low <= 1e-4 * high) else None

    def smoothing(self, kind: Kind) -> float | None:
        """0 if they are labels, ε if ε of each is spread evenly over the classes; None if they are something else."""
        q = self.q[self.kept]
        if kind == "bernoulli":
            return 0.0 if bool(((q - q.round()).abs() < HARD).all()) else None
        top, others = q.amax(-1), q.shape[-1] - 1
        rest = (1 - top) / others
        spread = (q - _spread(q.argmax(-1), q.shape[-1], rest)).abs().amax()
        epsilon = float(rest.mean()) * q.shape[-1]
        is_one = bool(spread < HARD and top.amax() - top.amin() < HARD and epsilon < 1 - HARD)
        return (0.0 if epsilon < HARD * q.shape[-1] else epsilon) if is_one else None

    def holds(self, kind: Kind, gradient: Tensor, z: Tensor, error: float) -> bool:
        """Whether a gradient at other logits is theirs too.

        Args:
            kind: Of the outputs.
            gradient: Like z.
            z: Logits.
            error: Relative to the weight of each row.
        """
        if not bool(self.kept.any()):
            return not bool(gradient.nan_to_num().any())
        each = (gradient - _times(kind, self.weight, _probabilities(kind, z) - self.q)).abs()
        each = each.amax(-1) if kind == "categorical" else each
        allowed = error * self.weight + 1e-9 * self.weight.amax()
        return bool((each <= allowed).all())


def of_labels(kind: Kind, gradient: Tensor, z: Tensor, error: float) -> Targets | None:
    """Labels, all of one weight, from one gradient; None if it is not that of such a loss.

    Args:
        kind: Of the outputs.
        gradient: Float64, like z.
        z: Logits, float64.
        error: Relative to the weight.
    """
    p = _probabilities(kind, z)
    if kind == "bernoulli":
        known, sure = gradient != 0, torch.minimum(p, 1 - p) < SURE
        q = torch.where(known, gradient < 0, p > 0.5).double()
    else:
        known, sure = (gradient != 0).any(-1), 1 - p.amax(-1) < SURE
        q = F.one_hot(torch.where(known, gradient.argmin(-1), p.argmax(-1)), p.shape[-1]).double()
    kept = known | sure
    scale = gradient[known].abs().sum() / (p - q)[known].abs().sum() if bool(known.any()) else gradient.new_ones(())
    found = Targets(_times(kind, kept.double(), q), scale * kept, kept)
    wrong = (gradient - scale * (p - q))[known].abs()
    return found if bool(scale.isfinite()) and bool((wrong <= error * scale).all()) else None


def of_smoothed_labels(gradient: Tensor, z: Tensor, epsilon: float, scale: float, error: float) -> Targets | None:
    """Smoothed labels of a softmax, all of one weight that is known, from one gradient; None if it is not theirs.

    Args:
        gradient: Float64, like z.
        z: Logits, float64.
        epsilon: What is spread over the classes.
        scale: The weight.
        error: Of the targets.
    """
    kept = (gradient != 0).any(-1)
    q = z.softmax(-1) - gradient / scale
    smoothed = _spread(q.argmax(-1), q.shape[-1], torch.full_like(q[..., 0], epsilon / q.shape[-1]))
    fits = bool(((q - smoothed)[kept].abs() <= error).all())
    return Targets(smoothed * kept.unsqueeze(-1), scale * kept, kept) if fits else None


def of_probabilities(kind: Kind, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Targets | None:
    """Any targets with any weights, from gradients at two logits; None if they are not those of such a loss.

    Args:
        kind: Of the outputs.
        one: Gradient and logits, float64.
        other: The same at other logits. Where both are 0 (or, of a mean over no rows, NaN), all rows are left out.
    """
    (gradient, z), (second, y) = one, other
    p = _probabilities(kind, z)
    if not bool((gradient.nan_to_num() != 0).any() or (second.nan_to_num() != 0).any()):
        return _nothing(kind, p)
    change, step = gradient - second, p - _probabilities(kind, y)
    weight = change / step if kind == "bernoulli" else (change * step).sum(-1) / step.square().sum(-1)
    if not bool(weight.isfinite().all()):
        return None
    kept = weight.abs() > 1e-9 * weight.abs().amax()
    if bool((weight[kept] < 0).any()):
        return None
    weight = torch.where(kept, weight, 0.0)
    q = _times(kind, kept.double(), p - gradient / _times(kind, torch.where(kept, weight, 1.0), torch.ones_like(p)))
    is_simplex = kind == "bernoulli" or bool(((q.sum(-1) - 1)[kept].abs() < HARD).all())
    if not is_simplex or bool((q < -HARD).any()) or bool((q > 1 + HARD).any()):
        return None
    return replace(Targets(q, weight, kept), q=q.clamp(0.0, 1.0))


def _nothing(kind: Kind, p: Tensor) -> Targets:
    rows = torch.zeros_like(p if kind == "bernoulli" else p[..., 0])
    return Targets(torch.zeros_like(p), rows, rows != 0)


def _probabilities(kind: Kind, z: Tensor) -> Tensor:
    return z.sigmoid() if kind == "bernoulli" else z.softmax(-1)


def _times(kind: Kind, weight: Tensor, values: Tensor) -> Tensor:
    return values * (weight if kind == "bernoulli" else weight.unsqueeze(-1))


def _spread(y: Tensor, classes: int, rest: Tensor) -> Tensor:
    """Every class has so much, and the label what is left to one."""
    even = rest.unsqueeze(-1).expand(*rest.shape, classes)
    return even.scatter(-1, y.unsqueeze(-1), (1 - (classes - 1) * rest).unsqueeze(-1))
