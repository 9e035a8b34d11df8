r"""Information under a net's own dropout: ``T = t · D``, a factor D of mean 1 drawn for every unit of every sample.

A dropout layer is a channel whose noise is known, so its :math:`p(T|x)` needs no estimator. Of N samples, equally
likely,

.. math:: I(X;T) = \mathbb{E}_i\, \mathbb{E}_{T \sim p(T|x_i)}
          \log \frac{p(T|x_i)}{\frac1N \sum_j p(T|x_j)} \le \log N,

and the outer average is taken over drawn noise. Source: Adilova, Geiger & Fischer (2023), "Information plane analysis
for dropout neural networks", which also says when there is a limit for more and more samples of a continuous input:
with Gaussian or log-normal factors I(X;T) is finite, with masks (Bernoulli factors) it is infinite, as what is kept is
kept to the last digit. Under masks the value of N samples is therefore log N, but for samples that a mask makes equal.

**Combinations** of many units are read as Gaussians with the mean and covariance that the factors give them: exact for
Gaussian factors. For the others it is a lower bound, since any :math:`q(T|x)` in the place of p gives one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from typing_extensions import override

from lightning_info.functional.binning import as_rows
from lightning_info.functional.code_information import class_labels
from lightning_info.functional.codes import hashed, row_hashes
from lightning_info.functional.information_estimator import InformationEstimator, LayerInformation
from lightning_info.functional.standard_error import sampled_mean
from lightning_info.functional.units import Unit, per_nat

NoiseKind = Literal["bernoulli", "gaussian", "lognormal"]
PAIRS = 1 << 18
"""Pairs of samples that are looked at at once."""
LARGEST = 300.0
"""Largest logarithm of a ratio of likelihoods, up or down; beyond it a sum would not exist, or numbers be slow."""
FLOOR = 1e-6
"""Share of the mean variance of combinations that is added to each of them, for samples whose units are 0."""


class DropoutInformation(NamedTuple):
    """Estimates of I(X;T) and I(T;Y) under dropout, in the requested unit.

    Attributes:
        I_XT: Mean over samples and draws.
        I_TY: The same of I(T;Y); NaN without classes.
        I_XT_stderr: Standard error, given the samples; an upper bound of it for one draw.
        I_TY_stderr: The same of I(T;Y).
    """

    I_XT: float
    I_TY: float
    I_XT_stderr: float
    I_TY_stderr: float


@dataclass(frozen=True)
class DropoutNoise:
    """Factors of mean 1, one for each unit of each sample.

    Attributes:
        kind: ``"bernoulli"`` (units are kept or become 0), ``"gaussian"`` or ``"lognormal"``.
        level: Probability that a unit is dropped; standard deviation of the factor; that of its logarithm.

    Raises:
        ValueError: Another kind, or a level that is not positive (a probability of 1 or more).
    """

    kind: NoiseKind
    level: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(NoiseKind):
            raise ValueError(f"DropoutNoise: kind={self.kind!r}; choose among {', '.join(get_args(NoiseKind))}")
        if not 0 < self.level < (1 if self.kind == "bernoulli" else math.inf):
            raise ValueError(f"DropoutNoise: level={self.level} of kind {self.kind!r}; without noise I(X;T) is log N")

    @property
    def variance(self) -> float:
        """Variance of a factor."""
        if self.kind == "bernoulli":
            return self.level / (1 - self.level)
        return self.level**2 if self.kind == "gaussian" else math.expm1(self.level**2)

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Return factors of the shape, type and device of a tensor."""
        device = torch.device("cpu") if generator is None else generator.device
        if self.kind == "bernoulli":
            kept = torch.rand(like.shape, generator=generator, device=device) >= self.level
            return kept.to(like) / (1 - self.level)
        z = self.level * torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
        return 1 + z if self.kind == "gaussian" else (z - self.level**2 / 2).exp()

    def __str__(self) -> str:
        names = {"bernoulli": "masks, p", "gaussian": "Gaussian factors, SD", "lognormal": "log-normal factors, SD"}
        return f"{names[self.kind]} = {self.level:.3g}"


Likelihood = Callable[[Tensor, Tensor], Tensor]
"""T of some samples, and their numbers -> log p(T|x) for all samples, up to a constant for each T, ``(n, N)``."""


def dropout_information(
    t: Tensor,
    y: Tensor | None = None,
    *,
    noise: DropoutNoise,
    directions: Tensor | None = None,
    draws: int = 4,
    generator: Generator | None = None,
    unit: Unit = "bits",
) -> DropoutInformation:
    """Estimate I(X;T) and I(T;Y) of a layer under its own dropout noise.

    Args:
        t: Activations that dropout takes ``(N, d)``, or ``(N,)`` for one unit.
        y: Classes ``(N,)``, integer or bool; None if there are none.
        noise: The noise, for example ``DropoutNoise("bernoulli", 0.5)``.
        directions: ``(d, k)``: T is k combinations of the noisy units; None: all units as they are.
        draws: Draws of the noise for each sample.
        generator: Source of the noise; the global generator of the CPU if None.
        unit: Unit of the result.

    Returns:
        The two with their errors: exact but for these, or lower bounds of combinations under factors that are not
        Gaussian. Samples that are 0 in all units are one T. Neither exceeds log N, and I(T;Y) not H(Y), but by the
        error.

    Raises:
        ValueError: Shapes, activations that are not finite, no draw.
    """
    rows = as_rows(t).detach().double()
    if not rows.isfinite().all():
        raise ValueError("dropout_information: some activations are not finite; leave their samples out")
    if draws < 1:
        raise ValueError(f"dropout_information: draws={draws}; expected at least 1")
    n = len(rows)
    labels = None if y is None else torch.from_numpy(class_labels(y, n)).to(rows.device)
    likelihood = _combined(rows, noise, directions) if directions is not None else _EXACT[noise.kind](rows, noise)
    sampled = []
    for _ in range(draws):
        noisy = rows * noise.draw(rows, generator)
        if directions is not None:
            noisy = noisy @ directions.to(noisy)
        sampled.append(_gains(noisy, labels, likelihood))
    scale = per_nat(unit)
    (xt, xt_stderr), (ty, ty_stderr) = (sampled_mean([one[kind] for one in sampled]) for kind in (0, 1))
    return DropoutInformation(scale * xt, scale * ty, scale * xt_stderr, scale * ty_stderr)


def _gains(noisy: Tensor, labels: Tensor | None, likelihood: Likelihood) -> Tensor:
    """Log ratios of one draw for each sample, of I(X;T) and I(T;Y), nats, ``(2, N)``; the latter NaN without labels."""
    n = len(noisy)
    found = torch.full((2, n), math.nan, dtype=torch.float64, device=noisy.device)
    members = None if labels is None else torch.nn.functional.one_hot(labels).double()
    for some in torch.split(torch.arange(n, device=noisy.device), max(1, PAIRS // n)):
        logs = likelihood(noisy[some], some)
        ratios = logs.sub_(logs.gather(1, some[:, None])).clamp_(-LARGEST, LARGEST).exp_()  # to the own, 1
        whole = ratios.sum(1).log() - math.log(n)
        found[0, some] = -whole
        if labels is not None and members is not None:
            own = labels[some, None]
            found[1, some] = ((ratios @ members).gather(1, own) / members.sum(0)[own])[:, 0].log() - whole
    return found


def _masked(t: Tensor, noise: DropoutNoise) -> Likelihood:
    """Under masks: T excludes the samples that differ in a unit that is kept, told by sums of hashes of these.

    A unit that is 0 has no noise. Of T with m units other than 0, a sample that has l of them and those m among them
    gives it the probability ``(1 - p)^m p^(l - m)``.
    """
    bits = 51 - t.shape[1].bit_length()  # the sums are exact in float64
    columns = hashed(torch.arange(t.shape[1], device=t.device)[:, None])
    keys = (t + 0.0).contiguous().view(torch.int64) ^ columns
    values = (hashed(keys.reshape(-1, 1)) & ((1 << bits) - 1)).reshape(t.shape).double()
    others = (t != 0).sum(1)

    def logs(noisy: Tensor, numbers: Tensor) -> Tensor:
        kept = (noisy != 0).double()
        agree = kept @ values.T == (kept * values[numbers]).sum(1)[:, None]
        return ((others - kept.sum(1)[:, None]) * math.log(noise.level)).masked_fill(~agree, -math.inf)

    return logs


def _gaussian(t: Tensor, noise: DropoutNoise) -> Likelihood:
    """Under Gaussian factors; a unit that is 0 has no noise, so T shows which ones are."""
    patterns, inverse = row_hashes(t != 0), torch.where(t != 0, 1 / t, 0.0)
    sizes, scale = torch.where(t != 0, t.abs().log(), 0.0).sum(1), 2 * noise.level**2

    def logs(noisy: Tensor, numbers: Tensor) -> Tensor:
        squares = noisy.square() @ inverse.square().T - 2 * noisy @ inverse.T + (t != 0).sum(1)
        found: Tensor = -squares / scale - sizes
        return found.masked_fill(patterns[numbers, None] != patterns, -math.inf)

    return logs


def _lognormal(t: Tensor, noise: DropoutNoise) -> Likelihood:
    """Under log-normal factors, which leave the signs: additive Gaussian noise on the logarithms."""
    patterns, sizes = row_hashes(t.sign().long()), torch.where(t != 0, t.abs().log(), 0.0)
    scale = 2 * noise.level**2

    def logs(noisy: Tensor, numbers: Tensor) -> Tensor:
        seen = torch.where(noisy != 0, noisy.abs().log() + noise.level**2 / 2, 0.0)
        squares = seen.square().sum(1)[:, None] - 2 * seen @ sizes.T + sizes.square().sum(1)
        found: Tensor = -squares / scale
        return found.masked_fill(patterns[numbers, None] != patterns, -math.inf)

    return logs


_EXACT: dict[str, Callable[[Tensor, DropoutNoise], Likelihood]] = {
    "bernoulli": _masked,
    "gaussian": _gaussian,
    "lognormal": _lognormal,
}


def _combined(t: Tensor, noise: DropoutNoise, directions: Tensor) -> Likelihood:
    """Of combinations, as Gaussians with the mean and covariance of each sample's."""
    if directions.dim() != 2 or len(directions) != t.shape[1]:
        raise ValueError(
            f"dropout_information: directions of shape {tuple(directions.shape)}; expected (d, k) with d = {t.shape[1]}"
        )
    directions = directions.to(t)
    k = directions.shape[1]
    products = (directions[:, :, None] * directions[:, None]).flatten(1)  # (d, k k)
    covariances = noise.variance * (t.square() @ products).reshape(-1, k, k)
    floor = FLOOR * covariances.diagonal(dim1=1, dim2=2).mean().clamp_min(torch.finfo(torch.float32).tiny)
    factors = torch.linalg.cholesky(covariances + floor * torch.eye(k).to(t))
    white = torch.linalg.solve_triangular(factors, torch.eye(k).to(t), upper=False)  # (N, k, k)
    means = (white @ (t @ directions)[:, :, None])[:, :, 0]
    sizes = factors.diagonal(dim1=1, dim2=2).log().sum(1)

    def logs(noisy: Tensor, numbers: Tensor) -> Tensor:
        total: Tensor = -sizes
        for row in range(k):
            total = total - (noisy @ white[:, row].T - means[:, row]).square() / 2
        return total

    return logs


class DropoutEstimator(InformationEstimator):
    """:func:`dropout_information`, of layers whose noise is known; see :class:`DropoutNoise`."""

    has_own_noise = True
    has_stderr = True

    @override
    def __call__(
        self, t: Tensor, y: Tensor | None, noise_variance: float = 0.0, generator: Generator | None = None
    ) -> LayerInformation:
        raise ValueError("estimator='dropout' needs the noise of a dropout layer: call dropout_information(t, y, ...)")
