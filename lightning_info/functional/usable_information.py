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
    Predict,
    Standardised,
    by_counts,
    by_gaussian,
    by_scores,
    by_shares,
    neighbours,
    regressions,
)
from lightning_info.functional.units import Unit, per_nat


class UsableInformation(NamedTuple):
    """What the decoders found.

    Attributes:
        information: The bound; below 0, but by little, where nothing can be told.
        stderr: Its standard error, over samples and folds.
        label_entropy: H(Y), which the bound cannot exceed but by its error; NaN of continuous targets.
        families: Of the decoder of each fold, ``"none"`` where none beats the shares of the classes.
    """

    information: float
    stderr: float
    label_entropy: float
    families: tuple[str, ...]


def usable_information(
    t: Tensor,
    y: Tensor,
    *,
    families: Sequence[Family] = ("lda", "ridge"),
    folds: int = 5,
    generator: Generator | None = None,
    unit: Unit = "bits",
) -> UsableInformation:
    """Cross-fitted lower bound of the information about the label in activations.

    Each fold is judged by the decoder of the others, whose family, penalty and temperature are those of the best log
    probability of samples of these that are left out of the fit in their turn. H(Y) is the entropy of the classes'
    shares with the correction of Miller and Madow, ``(C - 1) / 2N`` nats.

    Of floating targets the decoders are Gaussian, and the information is that beyond a Gaussian of the targets alone: a
    lower bound of I(T;Y) where the targets are Gaussian, else what a linear-Gaussian decoder can use.

    Args:
        t: Activations ``(N, ...)``; all positions and channels of a sample are used.
        y: Classes ``(N,)``, integers or bool; or floating targets ``(N,)`` or ``(N, m)``.
        families: Of decoders: ``"lda"``, ``"ridge"``, ``"knn"`` (classes only).
        folds: Parts that the samples fall into, each class evenly.
        generator: Deals the samples out; by default with seed 0.
        unit: Unit of the result.

    Raises:
        ValueError: Shapes, activations or targets that are not finite, too few samples, an unknown family.
    """
    rows = t.detach().flatten(1).double().cpu() if t.dim() > 1 else t.detach().double().cpu()[:, None]
    y = y.detach().cpu()
    _check(rows, y, families, folds)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    if y.is_floating_point():
        return _of_targets(rows, y.double().reshape(len(y), -1), families, folds, generator, per_nat(unit))
    return _of_classes(rows, torch.unique(y, return_inverse=True)[1], families, folds, generator, per_nat(unit))


def _check(rows: Tensor, y: Tensor, families: Sequence[str], folds: int) -> None:
    known = get_args(Family)
    if not families or not set(families) <= set(known):
        raise ValueError(f"usable_information: families={tuple(families)}: choose among {', '.join(map(repr, known))}")
    if len(y) != len(rows) or y.dim() > (2 if y.is_floating_point() else 1):
        raise ValueError(f"usable_information: y of shape {tuple(y.shape)}: expected N = {len(rows)} labels")
    if folds < 3 or len(rows) < 2 * folds:
        raise ValueError(f"usable_information: {len(rows)} samples in {folds} folds; each needs two, and three folds")
    if not rows.isfinite().all() or (y.is_floating_point() and not y.isfinite().all()):
        raise ValueError("usable_information: activations and targets must be finite")


def _of_classes(
    rows: Tensor, y: Tensor, families: Sequence[Family], folds: int, generator: Generator, factor: float
) -> UsableInformation:
    n, classes = len(y), int(y.max()) + 1
    shares = torch.bincount(y).double() / n
    entropy = -(shares * shares.log()).sum().item() + (classes - 1) / (2 * n)
    if classes == 1:
        return UsableInformation(0.0, 0.0, 0.0, ("none",) * folds)
    indicators = torch.nn.functional.one_hot(y, classes).double()

    def fitted(family: Family, x: Standardised, chosen: Tensor) -> list[Predict]:
        return neighbours(x, y[chosen], classes) if family == "knn" else regressions(family, x, indicators[chosen])

    def decoder(family: Family, held_out: Tensor, chosen: Tensor, of: Tensor, predict: Predict) -> Decoder:
        if family == "knn":
            return by_counts(held_out, y[chosen], predict)
        return by_scores(family, held_out, y[chosen], of, predict, classes)

    parts = _dealt(y, folds, generator)
    best = _best(rows, parts, families, fitted, decoder, lambda chosen: by_shares(y[chosen], classes))
    gains = torch.empty(n, dtype=torch.float64)
    for part, one in zip(parts, best, strict=True):
        gains[part] = one.log_probabilities(rows[part], y[part]) - shares.log()[y[part]]
    information = gains.mean().item() + (classes - 1) / (2 * n)
    stderr = math.hypot(_error(gains, parts), math.sqrt((classes - 1) / 2) / n)  # the second of the entropy
    chosen = tuple(one.family for one in best)
    return UsableInformation(information * factor, stderr * factor, entropy * factor, chosen)


def _of_targets(
    rows: Tensor, y: Tensor, families: Sequence[Family], folds: int, generator: Generator, factor: float
) -> UsableInformation:
    linear = [family for family in families if family != "knn"]
    if not linear:
        raise ValueError("usable_information: 'knn' decodes classes only; add 'ridge'")

    def alone(chosen: Tensor) -> Decoder:
        mean = y[chosen].mean(0)
        return by_gaussian("none", mean.expand(len(chosen), -1), y[chosen], lambda t: mean)

    parts = _dealt(torch.zeros(len(y), dtype=torch.int64), folds, generator)
    best = _best(
        rows,
        parts,
        linear,
        lambda family, x, chosen: regressions(family, x, y[chosen]),
        lambda family, held_out, chosen, of, predict: by_gaussian(family, held_out, y[chosen], predict),
        alone,
    )
    gains = torch.empty(len(y), dtype=torch.float64)
    for part, one in zip(parts, best, strict=True):
        without = alone(_without(parts, part))
        gains[part] = one.log_probabilities(rows[part], y[part]) - without.log_probabilities(rows[part], y[part])
    chosen = tuple(one.family for one in best)
    return UsableInformation(gains.mean().item() * factor, _error(gains, parts) * factor, math.nan, chosen)


def _best(
    rows: Tensor,
    parts: Sequence[Tensor],
    families: Sequence[Family],
    fitted: Callable[[Family, Standardised, Tensor], list[Predict]],
    decoder: Callable[[Family, Tensor, Tensor, Tensor, Predict], Decoder],
    alone: Callable[[Tensor], Decoder],
) -> list[Decoder]:
    """For each fold the decoder of the others that is worth most on samples of these that it was not fitted on.

    Args:
        rows: Activations of all samples.
        parts: Indices of the samples of each fold.
        families: Of decoders.
        fitted: Fits a family on some samples: predictions, one a setting.
        decoder: Makes a decoder of predictions for samples that these were not fitted on, the samples, their folds, and
            predictions for others.
        alone: The decoder that does not look.
    """
    fits: dict[tuple[int, ...], dict[Family, list[Predict]]] = {}  # by the folds that are left out

    def fit(*out: int) -> dict[Family, list[Predict]]:
        key = tuple(sorted(out))
        if key not in fits:
            chosen = _without(parts, *(parts[k] for k in out))
            x = Standardised(rows[chosen])
            fits[key] = {family: fitted(family, x, chosen) for family in families}
        return fits[key]

    best = []
    for k in range(len(parts)):
        others = [j for j in range(len(parts)) if j != k]
        chosen = torch.cat([parts[j] for j in others])
        of = torch.cat([torch.full((len(parts[j]),), j) for j in others])
        found = [alone(chosen)]
        for family in families:
            for setting, predict in enumerate(fit(k)[family]):
                made = [fit(k, j)[family] for j in others]
                if all(made):  # none where no activation varies
                    held_out = torch.cat([one[setting](rows[parts[j]]) for one, j in zip(made, others, strict=True)])
                    found.append(decoder(family, held_out, chosen, of, predict))
        best.append(max(found, key=lambda one: one.worth))
    return best


def _dealt(y: Tensor, folds: int, generator: Generator) -> list[Tensor]:
    """Indices of the parts: the samples of each class one after the other, in random order."""
    shuffled = torch.randperm(len(y), generator=generator)
    by_class = shuffled[y[shuffled].argsort(stable=True)]
    return [by_class[first::folds] for first in range(folds)]


def _without(parts: Sequence[Tensor], *out: Tensor) -> Tensor:
    """Indices of the samples of the other parts."""
    return torch.cat([part for part in parts if not any(part is one for one in out)])


def _error(gains: Tensor, parts: Sequence[Tensor]) -> float:
    """Of the mean: that of samples, and that of decoders, as the means of the folds differ."""
    means = torch.stack([gains[part].mean() for part in parts])
    return math.sqrt(gains.var().item() / len(gains) + means.var().item() / len(parts))
