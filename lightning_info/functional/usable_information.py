r"""Usable information: what a decoder makes of a layer about the label, a lower bound of I(T;Y) without bins.

.. math:: I(T;Y) \ge H(Y) + \mathbb{E} \log f(Y|T),

for every decoder f that was not fitted on the samples that it is judged by. I(T;Y) of continuous activations and a
discrete label is finite, so unlike I(X;T) it needs neither bins nor noise. Sources: Xu et al. (2020), "A theory of
usable information under computational constraints"; Kleinman et al. (2021), "Usable information and evolution of
optimal representations during training".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Generator, Tensor

from lightning_info.functional.decoders import (
    Decoder,
    Family,
    Moments,
    by_counts,
    by_gaussian,
    by_scores,
    by_shares,
    neighbours,
    principal_components,
    regressions,
)
from lightning_info.functional.units import Unit, per_nat

SAMPLES = 4
"""Samples for each principal component that decoders use by default; they cannot learn more from them."""


class UsableInformation(NamedTuple):
    """What the decoders found.

    Attributes:
        information: The bound; below 0, but by little, where nothing can be told.
        stderr: Its standard error, over samples and folds.
        label_entropy: H(Y), which the bound cannot exceed; NaN of continuous targets.
        families: Of the decoder of each fold, ``"none"`` where none beats the shares of the classes.
    """

    information: float
    stderr: float
    label_entropy: float
    families: tuple[str, ...]


def usable_information(
    t: Tensor | Sequence[Tensor],
    y: Tensor,
    *,
    families: Sequence[Family] = ("lda", "ridge"),
    folds: int = 5,
    groups: Tensor | None = None,
    components: int | None = None,
    generator: Generator | None = None,
    unit: Unit = "bits",
) -> UsableInformation:
    """Cross-fitted lower bound of the information about the label in activations.

    Each fold is judged by the decoder of the others, whose family and temperature are those of the best log probability
    of samples of these that are left out of the fit in their turn, and whose penalty is that of the smallest squared
    error of these. Decoders see the first principal components of the standardised activations. H(Y) is the entropy of
    the classes' shares in the sample: about ``(C - 1) / 2N`` nats below that of the labels, which keeps the bound.

    Of floating targets the decoders are Gaussian, and the information is that beyond a Gaussian of the targets alone: a
    lower bound of I(T;Y) where the targets are Gaussian, else what a linear-Gaussian decoder can use.

    Args:
        t: Activations ``(N, ...)``; all positions and channels of a sample are used. Several tensors are several views
            of them (their means over positions, say), of which the best is chosen as a family is.
        y: Classes ``(N,)``, integers or bool; or floating targets ``(N,)`` or ``(N, m)``.
        families: Of decoders: ``"lda"``, ``"ridge"``, ``"knn"`` (classes only).
        folds: Parts that the samples fall into, each class evenly.
        groups: Integers ``(N,)``; samples of one group, positions of one sequence say, are not independent: they are in
            one fold, and count as one in the error.
        components: Largest number of principal components; None: N / 4, more cannot be learned from N samples. With
            fewer it takes less time and finds a little less.
        generator: Deals the samples out; by default with seed 0.
        unit: Unit of the result.

    Raises:
        ValueError: Shapes, activations or targets that are not finite, too few samples, an unknown family.
    """
    views = [_rows(one) for one in ([t] if isinstance(t, Tensor) else t)]
    y = y.detach().cpu()
    parts_of = None if groups is None else torch.unique(groups.detach().cpu(), return_inverse=True)[1]
    _check(views, y, families, folds, parts_of)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    views = [principal_components(rows, components or len(y) // SAMPLES) for rows in views]
    one_kind = y if not y.is_floating_point() else torch.zeros(len(y), dtype=torch.int64)
    kinds = torch.unique(one_kind, return_inverse=True)[1]
    parts = _dealt(kinds, folds, generator) if parts_of is None else _dealt_groups(parts_of, folds, generator)
    task = _Task(views, families, parts, parts_of, per_nat(unit))
    return _of_targets(task, y.double().reshape(len(y), -1)) if y.is_floating_point() else _of_classes(task, kinds)


class _Task(NamedTuple):
    """What all decoders of a layer have in common.

    Attributes:
        views: Components of all samples, of every view of the activations.
        families: Of decoders.
        parts: Indices of the samples of each fold.
        groups: Numbers of the groups of samples; None if each is one.
        factor: The result's unit per nat.
    """

    views: Sequence[Tensor]
    families: Sequence[Family]
    parts: Sequence[Tensor]
    groups: Tensor | None
    factor: float


def _rows(t: Tensor) -> Tensor:
    return t.detach().flatten(1).cpu() if t.dim() > 1 else t.detach().cpu()[:, None]


def _check(views: Sequence[Tensor], y: Tensor, families: Sequence[str], folds: int, groups: Tensor | None) -> None:
    known = get_args(Family)
    if not families or not set(families) <= set(known):
        raise ValueError(f"usable_information: families={tuple(families)}: choose among {', '.join(map(repr, known))}")
    n = len(views[0]) if views else 0
    if len(y) != n or y.dim() > (2 if y.is_floating_point() else 1):
        raise ValueError(f"usable_information: y of shape {tuple(y.shape)}: expected N = {n} labels")
    if any(len(rows) != n for rows in views) or (groups is not None and groups.shape != (n,)):
        raise ValueError(f"usable_information: all views of the activations, and groups, need N = {n} rows")
    independent = n if groups is None else int(groups.max()) + 1
    if folds < 3 or independent < 2 * folds:
        what = "samples" if groups is None else "groups of samples"
        raise ValueError(f"usable_information: {independent} {what} in {folds} folds; each needs two, and three folds")
    if not all(rows.isfinite().all() for rows in views) or (y.is_floating_point() and not y.isfinite().all()):
        raise ValueError("usable_information: activations and targets must be finite")


def _of_classes(task: _Task, y: Tensor) -> UsableInformation:
    n, classes = len(y), int(y.max()) + 1
    shares = torch.bincount(y).double() / n
    entropy = -(shares * shares.log()).sum().item()
    if classes == 1:
        return UsableInformation(0.0, 0.0, 0.0, ("none",) * len(task.parts))
    indicators, parts = torch.nn.functional.one_hot(y, classes).double(), task.parts

    def fit(view: Tensor, family: Family, kept: Sequence[int], moments: Sequence[Moments]) -> Predict:
        if family == "knn":
            chosen = torch.cat([parts[j] for j in kept])
            return neighbours(view[chosen], y[chosen], classes)
        return regressions([moments[j] for j in kept])

    def decoder(family: Family, held_out: Tensor, chosen: Tensor, of: Tensor, told: Tensor, part: Tensor) -> Decoder:
        if family == "knn":
            worths = held_out[:, torch.arange(len(chosen)), y[chosen]].mean(1)
            best = int(worths.argmax())
            return by_counts(held_out[best], y[chosen], told[best], y[part])
        errors = (held_out - indicators[chosen]).square().sum((1, 2))
        best = 0 if family == "lda" else 1 + int(errors[1:].argmin())
        return by_scores(family, held_out[best], y[chosen], of, told[best], y[part], classes)

    def alone(chosen: Tensor, part: Tensor) -> Decoder:
        return by_shares(y[chosen], y[part], classes)

    best = _best(task, indicators, fit, decoder, alone)
    gains = torch.empty(n, dtype=torch.float64)
    for part, one in zip(parts, best, strict=True):
        gains[part] = one.log_probabilities() - shares.log()[y[part]]
    information = gains.mean().item()
    if all(one.family == "none" for one in best):
        information = 0.0  # but for the shares of the folds
    stderr = _error(gains, parts, task.groups)
    return _in_unit(task, information, stderr, entropy, best)


def _of_targets(task: _Task, y: Tensor) -> UsableInformation:
    linear = [family for family in task.families if family != "knn"]
    if not linear:
        raise ValueError("usable_information: 'knn' decodes classes only; add 'ridge'")

    def decoder(family: Family, held_out: Tensor, chosen: Tensor, of: Tensor, told: Tensor, part: Tensor) -> Decoder:
        settings = [0] if family == "lda" else range(1, len(held_out))
        made = [by_gaussian(family, held_out[i], y[chosen], told[i], y[part]) for i in settings]
        return max(made, key=lambda one: one.worth)

    def alone(chosen: Tensor, part: Tensor) -> Decoder:
        mean = y[chosen].mean(0)
        return by_gaussian("none", mean.expand(len(chosen), -1), y[chosen], mean, y[part])

    best = _best(
        task._replace(families=linear),
        y,
        lambda view, family, kept, moments: regressions([moments[j] for j in kept]),
        decoder,
        alone,
    )
    gains = torch.empty(len(y), dtype=torch.float64)
    for k, (part, one) in enumerate(zip(task.parts, best, strict=True)):
        others = torch.cat([other for j, other in enumerate(task.parts) if j != k])
        gains[part] = one.log_probabilities() - alone(others, part).log_probabilities()
    return _in_unit(task, gains.mean().item(), _error(gains, task.parts, task.groups), math.nan, best)


def _in_unit(
    task: _Task, information: float, stderr: float, entropy: float, best: Sequence[Decoder]
) -> UsableInformation:
    families = tuple(one.family for one in best)
    return UsableInformation(information * task.factor, stderr * task.factor, entropy * task.factor, families)


Predict = Callable[[Tensor], Tensor]
"""Components ``(M, r)`` -> predictions ``(settings, M, m)``."""


def _best(
    task: _Task,
    targets: Tensor,
    fit: Callable[[Tensor, Family, Sequence[int], Sequence[Moments]], Predict],
    decoder: Callable[[Family, Tensor, Tensor, Tensor, Tensor, Tensor], Decoder],
    alone: Callable[[Tensor, Tensor], Decoder],
) -> list[Decoder]:
    """For each fold the decoder of the others that is worth most on samples of these that it was not fitted on.

    Args:
        task: Samples and families.
        targets: Of all samples, ``(N, m)``, for regressions.
        fit: Fits a family on some folds of a view.
        decoder: Makes a decoder of predictions for samples that these were not fitted on, the samples, their folds,
            predictions for a fold that it is judged by, and the samples of that one.
        alone: The decoder that does not look, of samples for others.
    """
    parts, folds = task.parts, range(len(task.parts))
    others = [torch.cat([parts[j] for j in folds if j != k]) for k in folds]
    of = [torch.cat([torch.full((len(parts[j]),), j) for j in folds if j != k]) for k in folds]
    found = [[alone(others[k], parts[k])] for k in folds]
    for view in task.views:
        if not view.shape[1]:
            continue  # no activation varies
        moments = [Moments.of(view[part], targets[part]) for part in parts]
        for alike in (["lda", "ridge"], ["knn"]):  # of one fit
            asked = [family for family in task.families if family in alike]
            if not asked:
                continue
            without: dict[tuple[int, int], Tensor] = {}  # predictions for the first fold by a fit without both
            for k in folds:
                for j in range(k):
                    predict = fit(view, asked[0], [i for i in folds if i not in (j, k)], moments)
                    without[j, k], without[k, j] = predict(view[parts[j]]), predict(view[parts[k]])
            for k in folds:
                held_out = torch.cat([without[j, k] for j in folds if j != k], 1)
                told = fit(view, asked[0], [i for i in folds if i != k], moments)(view[parts[k]])
                found[k] += [decoder(family, held_out, others[k], of[k], told, parts[k]) for family in asked]
    return [max(some, key=lambda one: one.worth) for some in found]


def _dealt(y: Tensor, folds: int, generator: Generator) -> list[Tensor]:
    """Indices of the parts: the samples of each class one after the other, in random order."""
    shuffled = torch.randperm(len(y), generator=generator)
    by_class = shuffled[y[shuffled].argsort(stable=True)]
    return [by_class[first::folds] for first in range(folds)]


def _dealt_groups(groups: Tensor, folds: int, generator: Generator) -> list[Tensor]:
    """Indices of the parts: those of some groups each."""
    part_of = torch.randperm(int(groups.max()) + 1, generator=generator) % folds
    return [(part_of[groups] == part).nonzero().squeeze(1) for part in range(folds)]


def _error(gains: Tensor, parts: Sequence[Tensor], groups: Tensor | None) -> float:
    """Of the mean: that of samples, or of groups, and that of decoders, as the means of the folds differ."""
    means = torch.stack([gains[part].mean() for part in parts])
    own = gains.var().item() / len(gains)
    if groups is not None:
        count = int(groups.max()) + 1
        sums = torch.zeros(count, dtype=gains.dtype).index_add_(0, groups, gains - gains.mean())
        own = count / (count - 1) * sums.square().sum().item() / len(gains) ** 2
    return math.sqrt(own + means.var().item() / len(parts))
