"""A PAC-Bayes bound of what the network has learned: the choice of Q, and the conditions under which it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_info.functional.diagonal_gaussian import DiagonalGaussian
from lightning_info.functional.pac_bayes import (
    PRIOR_STDS,
    binomial_tail_inverse,
    kl_inverse,
    seeger_bound,
)
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import flat, sizes
from lightning_info.quantities.weight_information.classification import constant_error, errors, labels_of
from lightning_info.quantities.weight_information.gibbs_error import DRAWS, NoisyErrors, gibbs_error
from lightning_info.quantities.weight_information.initial_weights import InitialWeights
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.random_subset import SampledSet
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

SAMPLES = 4096
"""Most samples of the training set, and of the validation data, on which errors are measured."""
SEARCH_DRAWS, SEARCH_NUMBERS = 16, 1 << 26
BETAS = tuple(10.0 ** (i / 4) for i in range(-8, 13))
WIDTHS = tuple(10.0 ** (i / 8) for i in range(-12, 7))
"""Levels β of the Q that are tried, and their largest noise, in units of the best λ. Any Q may be taken, so this costs
nothing."""
ROUNDS = 30
SHARE = 0.2
"""Part of ``delta`` that the measurement of the Gibbs error may use up."""


class NoCertificate(Exception):
    """There is no bound, for this reason."""


class Certificate:
    """The bound of a run, at one point after the other.

    Q is ``N(w, diag(β / (N f_i + β / (c λ_t)²)))`` with the diagonal f of F and, for each parameter tensor t, the
    ``λ_t`` that is best for a quadratic loss. β and the width c are those with the smallest bound by the errors of the
    reference samples. P is ``N(w_ref, diag λ_t²)`` with every ``λ_t`` among :data:`PRIOR_STDS`, whose choice is paid
    for. The error of Q is then measured with new draws, on samples whose choice does not depend on the network.

    Args:
        delta: Probability that a bound fails.
    """

    def __init__(self, delta: float) -> None:
        self.delta = delta
        self.draws = DRAWS
        self.place = BETAS.index(1.0), WIDTHS.index(1.0)
        self._known_start: str | None = None  # why the initial weights are no prior; empty if they may be one

    def bound(
        self,
        snapshot: ModelSnapshot,
        diagonal: Tensor,
        initial: InitialWeights,
        from_zero: bool,
        data: SampledSet,
        generator: Generator,
    ) -> dict[str, float]:
        """Return the bound, and the Gibbs error with its standard error, by tag.

        Args:
            snapshot: A snapshot with a private replica and the reference samples.
            diagonal: The diagonal of F, ``(k,)``.
            initial: The weights at the start.
            from_zero: Whether the mean of the prior is 0, not the weights at the start.
            data: Random samples of the training set.
            generator: Source of all draws.

        Raises:
            NoCertificate: There is no bound.
        """
        if data.missing:
            raise NoCertificate(data.missing)
        if reason := refusal(snapshot):
            raise NoCertificate(reason)
        if initial.rest is None:
            raise NoCertificate("the weights at the start of training are not known")
        if name := initial.changed(snapshot.module):
            raise NoCertificate(f"{name} has changed since the start and is no trainable weight, so Q does not hold it")
        w = _flat(snapshot.module)
        w_ref = torch.zeros_like(w) if from_zero else _initial(snapshot.module, initial).to(w.device)
        training, total = snapshot.on(data.groups), float(data.total)
        try:
            if not from_zero:
                self._check_start(training, w_ref - w)
            posterior = self._choose(snapshot, w, w_ref, total * diagonal.to(w.device), total, generator)
            found = gibbs_error(training, posterior, self.draws, total, SHARE * self.delta, generator)
        except (NoPrediction, Unavailable, NotCovered) as error:
            raise NoCertificate(str(error)) from error
        prior = posterior.nearest_prior(w_ref, _sizes(snapshot.module), PRIOR_STDS)
        return {
            "weight_info/pac_bayes_bound": seeger_bound(
                found.upper, [prior.information], data.total, (1 - SHARE) * self.delta, prior.log_choices
            ).value,
            "weight_info/gibbs_error": found.mean,
            "weight_info/gibbs_error_stderr": found.stderr,
        }

    def _check_start(self, training: ModelSnapshot, back: Tensor) -> None:
        """Refuse initial weights that classify the training samples already, as those loaded from a file do."""
        if self._known_start is None:
            error = NoisyErrors(training).whole(back).mean().item()
            labels, kind, classes = _labels(training)
            constant = constant_error(labels, kind)
            is_binary = kind == "bernoulli" or classes == 2
            self._known_start = ""
            if error < constant / (10 if is_binary else 2):  # two classes may be told apart by chance
                self._known_start = (
                    f"the weights at the start classify the training samples already (error {error:.2g}, where the "
                    f"commonest label has {constant:.2g}): loaded weights, or a second fit? A prior must not depend on "
                    f"these samples. prior='zero' does not"
                )
        if self._known_start:
            raise NoCertificate(self._known_start)

    def _choose(
        self, snapshot: ModelSnapshot, w: Tensor, w_ref: Tensor, curvature: Tensor, total: float, generator: Generator
    ) -> DiagonalGaussian:
        """Return the Q with the smallest bound by the errors of the reference samples, from one that may be near."""
        draws = max(1, min(SEARCH_DRAWS, SEARCH_NUMBERS // len(w)))
        z = torch.randn(draws, len(w), generator=generator, dtype=torch.float64).to(w.device)
        seen = dict[tuple[int, int], float]()
        groups, distance = _sizes(snapshot.module), (w - w_ref).square()
        searched = SearchedError(snapshot, draws)

        def at(place: tuple[int, int]) -> DiagonalGaussian:
            beta, width = BETAS[place[0]], WIDTHS[place[1]]
            scale = width * best_scale(curvature, distance, groups, beta)
            return DiagonalGaussian(w, (beta / (curvature + beta / scale.square())).sqrt())

        def score(place: tuple[int, int]) -> float:
            if place not in seen:
                q = at(place)
                error = searched(z * q.std)
                rate = q.nearest_prior(w_ref, groups, PRIOR_STDS).information / total
                bound = kl_inverse(error, rate)
                seen[place] = bound if bound < 0.99 else bound + rate  # it differs where every bound is vacuous too
            return seen[place]

        while (best := min(_around(self.place), key=score)) != self.place:
            self.place = best
        return at(self.place)


class SearchedError:
    """Mean error of the samples of a snapshot at some draws: of each sample at each draw, where many draws run as one.

    Otherwise each draw is on its own share of the samples.

    Args:
        snapshot: A snapshot with a private replica.
        draws: Number of draws.
    """

    def __init__(self, snapshot: ModelSnapshot, draws: int) -> None:
        self._whole = NoisyErrors(snapshot)
        shares = min(draws, snapshot.size)
        self._shares = [NoisyErrors(snapshot, torch.arange(n, snapshot.size, shares)) for n in range(shares)]
        self._size, self._is_known = snapshot.size, False

    def __call__(self, noises: Tensor) -> float:
        """Return the error at noise ``(draws, k)``."""
        if not self._is_known:
            self._is_known = True
            self._whole.at(noises[:1])
        if self._whole.runs_many:
            return self._whole.at(noises).mean().item()
        parts = zip(self._shares, noises, strict=False)
        return sum(part.at(noise[None]).sum().item() for part, noise in parts) / self._size


def validation_bound(snapshot: ModelSnapshot, data: SampledSet, delta: float) -> float:
    """Return the test-set bound of the network itself, by the validation samples.

    With one label a sample it is the binomial tail inversion; with several, whose mean error is between 0 and 1, the
    inverse of the relative entropy.

    Args:
        snapshot: A snapshot with a replica.
        data: Random samples of the validation data.
        delta: Probability that it fails.

    Raises:
        NoCertificate: There is no bound.
    """
    if data.missing:
        raise NoCertificate(data.missing)
    found = []
    try:
        for batch in snapshot.on(data.groups).parts():
            prediction = snapshot.predictor(snapshot.module, batch)
            found.append(errors(prediction.outputs.detach(), prediction, prediction.mask).cpu())
    except Exception as error:  # validation batches may have a form of their own
        if is_out_of_memory(error):
            raise
        raise NoCertificate(f"the validation batches are not such as training_step takes ({error})") from error
    each = torch.cat(found)
    if ((each == 0) | (each == 1)).all():
        return binomial_tail_inverse(int(each.sum().item()), len(each), delta)
    return kl_inverse(each.mean().item(), math.log(1 / delta) / len(each))


def refusal(snapshot: ModelSnapshot) -> str:
    """Return why a module has no bound; empty if it may have one."""
    alone = (part for part in snapshot.module.modules() if isinstance(part, _BatchNorm) and part.running_mean is None)
    if snapshot.batch_norms or next(alone, None) is not None:
        return "BatchNorm puts statistics of the training samples into the network, beside the weights that Q holds"
    return ""


def best_scale(curvature: Tensor, distance: Tensor, groups: list[int], beta: float) -> Tensor:
    """Return for each weight the λ of its group that minimises ``E_Q[L] + β KL(Q‖P)`` of a quadratic loss, ``(k,)``.

    It is the fixed point of ``λ² = (‖w - w_ref‖² + tr Σ) / k`` of the group; no λ is below that of the narrowest prior.

    Args:
        curvature: Diagonal of the curvature of the summed loss, ``(k,)``.
        distance: Squared distances from the mean of the prior, ``(k,)``.
        groups: Number of weights in each group.
        beta: Level of the task.
    """
    scales = []
    for h, moved in zip(torch.split(curvature, groups), torch.split(distance, groups), strict=True):
        square = torch.full((), PRIOR_STDS[-1] ** 2, dtype=torch.float64, device=h.device)
        for _ in range(ROUNDS):
            square = (moved + beta / (h + beta / square)).mean().clamp(PRIOR_STDS[0] ** 2, PRIOR_STDS[-1] ** 2)
        scales.append(square.sqrt().expand(len(h)))
    return torch.cat(scales)


def _around(place: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for row, column in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        here = place[0] + row, place[1] + column
        if 0 <= here[0] < len(BETAS) and 0 <= here[1] < len(WIDTHS):
            yield here


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([flat(p.detach()).double() for p in trainable(module).values()])


def _sizes(module: nn.Module) -> list[int]:
    return sizes(trainable(module).values())


def _initial(module: nn.Module, initial: InitialWeights) -> Tensor:
    if initial.squared_distance(module) is None:
        raise NoCertificate("the weights at the start of training are not known for all trainable weights")
    assert initial.weights is not None
    return torch.cat([flat(initial.weights[name]).double() for name in trainable(module)])


def _labels(snapshot: ModelSnapshot) -> tuple[Tensor, str, int]:
    """Return the labels of all samples, flat, the kind of likelihood, and the number of classes."""
    found, kind, classes = [], "", 2
    for batch in snapshot.parts():
        prediction = snapshot.predictor(snapshot.module, batch)
        labels = labels_of(prediction)
        if labels is None:
            raise NoPrediction("the targets are no labels")
        kind = str(getattr(prediction.likelihood, "name", prediction.likelihood))
        classes = prediction.outputs.shape[-1]
        if kind == "categorical" and prediction.mask is not None:
            labels = labels[prediction.mask.to(labels.device)]
        found.append(labels.reshape(-1) if kind == "categorical" else labels.reshape(len(labels), -1))
    if len({labels.shape[1:] for labels in found}) > 1:  # of samples of several lengths
        found = [labels.reshape(-1, 1) for labels in found]
    return torch.cat(found), kind, classes
