r"""Effective information in the activations: what a layer says about the input under weight noise.

The weights are drawn M times from ``N(w, Σ*)``, each draw shared by all N inputs; z is the layer's output. With
``q(z|x_i)`` the Gaussian of input i's mean and covariance over draws,

.. math:: I(X;Z) = \mathbb{E}_i\, \mathbb{E}_{z \sim p(z|x_i)}
          \log \frac{q(z|x_i)^\tau}{\frac1N \sum_j q(z|x_j)^\tau}, \qquad
          I(Z;Y) = \mathbb{E}_i\, \mathbb{E}_{z \sim p(z|x_i)}
          \log \frac{\frac{1}{N_{y_i}} \sum_{j: y_j = y_i} q(z|x_j)^\tau}{\frac1N \sum_j q(z|x_j)^\tau} .

**Cross-fit.** The draws are dealt into four folds; z comes from one, q from the three others. Either quantity is then a
constant plus the mean log probability that a classifier, fixed beforehand, gives to the true input or class: a **lower
bound** in expectation, whatever p is. On the draws that q was fitted to it would be too large, without limit as d
grows. The temperature τ in ``[0, 1.5]`` keeps a bad q from going below 0, as τ = 0 says nothing and gives 0. A fold
uses the τ that does best on some draws of the other folds; as their q saw its draws, the bound is strict except for
this one number. Values that are still below 0, by chance, are set to 0.

**Covariance.** The covariance is shrunk to its diagonal, see :mod:`~.shrinkage`; for ``d > M / 2`` it is the diagonal
itself. For a layer ``z = W h + b`` with independent noise on its weights the Gaussian of z given h is known,

.. math:: \mathbb{E}[z|h] = \bar W h + \bar b, \qquad \mathrm{Var}[z_i|h] = \sum_j \sigma_{ij}^2 h_j^2 + \sigma_i^2 ,

and then only the noise in h must be estimated from the draws (Rao-Blackwell).

**No noise.** A unit that is constant over draws but not over inputs says exactly to which group of equal values an
input belongs. It has no density: the groups' entropy is added, and the mixtures are taken within groups.

**A part of the inputs.** With many inputs a draw is evaluated at a block of them only, as draws differ more than
inputs: at ``8192 / N`` of them, at least 32, with the blocks in turn. At least eight draws are evaluated at each.

**Error.** The error is over the M evaluated draws, separately for each block
(:func:`~.standard_error.stratified_error`), so differences between blocks do not count. If the level of the noise was
searched for and its variance has a relative error ε (:class:`~.distortion.DistortionLevel`), the information is also
off by ``ε dI/d log s``, with the noise s times as large: by the delta method, the activations and the Gaussians widened
about the means by s at some draws of each fold. :meth:`EffectiveInformation.at_level` adds this in quadrature, as the
search has its own draws.

Everything refers to the N inputs, taken as all existing inputs: nothing exceeds ``log N``.

Source: Achille, Paolini & Soatto, Definition 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_info.functional.code_information import class_labels
from lightning_info.functional.input_classifiers import TEMPERATURES, Classifiers
from lightning_info.functional.noisy_units import separate
from lightning_info.functional.shrinkage import conditional_gaussians_without, gaussians_without
from lightning_info.functional.standard_error import stratified_error

LOOSE = 0.1
"""Nats by which bounds of different looseness may cross."""
_FOLDS = 4
_DRAWS_OF_A_BLOCK = 8
"""Smallest number of draws of a block: fewer say little about their scatter."""

_PAIRS, _FEWEST_INPUTS = 8192, 32
"""Number of pairs of inputs at which a draw is evaluated, and smallest number of inputs."""

_PILOTS = 8
"""Smallest number of draws of a fold on which the others choose their temperature."""

_NEAR_CEILING = 0.05
"""Distance from the ceiling, in nats, within which a value counts as at the ceiling."""

_WIDER = 1.25
"""Factor of the noise's variance on either side, between which a slope is taken."""


class EffectiveInformation(NamedTuple):
    """Effective information of a layer, in nats.

    The standard errors are those of the evaluated draws, given the Gaussians and the level of the noise; that of the
    level is added by :meth:`at_level`. The choice of inputs is not included.

    Attributes:
        I_XZ: Lower bound of I(X;Z).
        I_ZY: Lower bound of I(Z;Y); NaN without classes.
        I_XZ_stderr: Standard error over draws.
        I_ZY_stderr: The same of I(Z;Y).
        temperature: τ, mean over folds.
        ceiling: ``log N``, which I(X;Z) cannot exceed.
        label_entropy: ``H(Y)``, which I(Z;Y) cannot exceed; NaN without classes.
        is_saturated: I(X;Z) is within its error, or 0.05, of the ceiling: how much more the layer holds is not seen.
        label_is_ceiling: I(Z;Y) is within its error of H(Y), which only says that the inputs are told apart.
        num_constant: Number of units left out, as they have one value over all draws and inputs.
        num_noise_free: Number of units that are constant over draws and differ between inputs.
        I_XZ_slope: ``dI(X;Z)/d log s`` where the variance of the noise is s times as large, nats; mostly below 0. NaN
            if it was not requested.
        I_ZY_slope: The same of I(Z;Y).
    """

    I_XZ: float
    I_ZY: float
    I_XZ_stderr: float
    I_ZY_stderr: float
    temperature: float
    ceiling: float
    label_entropy: float
    is_saturated: bool
    label_is_ceiling: bool
    num_constant: int
    num_noise_free: int
    I_XZ_slope: float = math.nan
    I_ZY_slope: float = math.nan

    def at_level(self, relative_error: float) -> EffectiveInformation:
        """Add the error of the noise's level to the standard errors and to what is judged by them.

        Args:
            relative_error: Relative standard error of the variance of the noise; 0 for a given level.
        """
        if relative_error == 0:
            return self
        xz_error = math.hypot(self.I_XZ_stderr, self.I_XZ_slope * relative_error)
        zy_error = math.hypot(self.I_ZY_stderr, self.I_ZY_slope * relative_error)
        return self._replace(
            I_XZ_stderr=xz_error,
            I_ZY_stderr=zy_error,
            is_saturated=_is_saturated(self.I_XZ, self.ceiling, xz_error),
            label_is_ceiling=_is_label(self.I_ZY, self.label_entropy, zy_error),
        )


def effective_information(
    z: Tensor,
    y: Tensor | None = None,
    given_below: tuple[Tensor, Tensor] | None = None,
    *,
    with_slopes: bool = False,
) -> EffectiveInformation:
    """I(X;Z) and I(Z;Y) of a layer under noisy weights: cross-fitted lower bounds, see the module.

    Best taken before an invertible nonlinearity: the information is the same, and units that saturate or are off are
    far from Gaussian. The time is that of ``M`` products of ``32 x d`` by ``d x N``, times d / 2 with full covariances.

    Args:
        z: Activations ``(M, N, d)`` of N inputs under M independent draws of the weights.
        y: Classes ``(N,)``, integer or bool; None if there are none.
        given_below: Mean and variance of z given all noise but that of the layer's own weights, which makes its units
            independent Gaussians; both like z, with the same draws of the other weights. Left out where ``d > M / 2``.
        with_slopes: Whether to compute the slopes in the level of the noise too, with half as many evaluations more.

    Raises:
        ValueError: A shape is wrong, there are fewer than four draws or two inputs, activations are not finite, or
            ``y`` is floating or of another length.
    """
    _check(z)
    if given_below is not None and any(part.shape != z.shape for part in given_below):
        shapes = " and ".join(str(tuple(part.shape)) for part in given_below)
        raise ValueError(f"given_below has the shapes {shapes}; expected twice that of z, {tuple(z.shape)}")
    n = z.shape[1]
    labels = None if y is None else torch.from_numpy(class_labels(y, n)).to(z.device)
    separated = separate(z.detach())
    points, groups, deal = separated.points, separated.groups, _Deal.of(z.shape[0], n, z.device)
    full = 2 * points.shape[2] <= z.shape[0]
    if given_below is not None and full and separated.scale is not None:
        gaussians = conditional_gaussians_without(*separated.brought(*given_below), deal.fold)
    else:
        gaussians = gaussians_without(points, deal.fold, full=full)
    classifiers = Classifiers(gaussians, points, groups, labels)
    folds = [(deal.fold == k).nonzero()[:, 0] for k in range(deal.folds)]
    curves = points.new_zeros(len(points), 2, TEMPERATURES)
    for k, draws in enumerate(folds):
        some = draws[deal.is_pilot[draws]]
        curves[some] = classifiers.by_draw(k, some, deal.inputs_of(some))
    weighted = curves[:, 0] * deal.weights[:, None]
    chosen = [int(weighted[deal.fold != k].sum(0).argmax()) for k in range(deal.folds)]
    values, ends = points.new_empty(len(points), 2), []
    for k, draws in enumerate(folds):
        values[draws] = curves[draws][:, :, chosen[k]]
        others, first = draws[~deal.is_pilot[draws]], draws[deal.is_first[draws]]
        if len(others):
            values[others] = classifiers.by_draw(k, others, deal.inputs_of(others), temperature=chosen[k])[:, :, 0]
        for factor in (1 / _WIDER, _WIDER) if with_slopes else ():
            moved = classifiers.by_draw(k, first, deal.inputs_of(first), factor, chosen[k])
            ends.append(moved[:, :, 0].mean(0))
    slopes = [math.nan, math.nan]
    if with_slopes:
        less, more = torch.stack(ends).view(deal.folds, 2, 2).mean(0)
        slopes = ((more - less) / (2 * math.log(_WIDER))).tolist()
    (xz, zy), (xz_error, zy_error) = (deal.weights @ values).tolist(), map(deal.error, values.T)
    ceiling = math.log(n)
    h_y = math.nan if labels is None else ceiling - labels.bincount()[labels].double().log().mean().item()
    xz = min(max(xz, 0.0), ceiling)
    zy = math.nan if labels is None else min(max(zy, 0.0), h_y)
    return EffectiveInformation(
        I_XZ=xz,
        I_ZY=zy,
        I_XZ_stderr=xz_error,
        I_ZY_stderr=zy_error,
        temperature=sum(chosen[k] for k in deal.fold.tolist()) / len(points) / 10,
        ceiling=ceiling,
        label_entropy=h_y,
        is_saturated=_is_saturated(xz, ceiling, xz_error),
        label_is_ceiling=_is_label(zy, h_y, zy_error),
        num_constant=separated.num_constant,
        num_noise_free=separated.num_noise_free,
        I_XZ_slope=slopes[0],
        I_ZY_slope=slopes[1],
    )


def _is_saturated(xz: float, ceiling: float, error: float) -> bool:
    return ceiling - xz <= max(error, _NEAR_CEILING)


def _is_label(zy: float, h_y: float, error: float) -> bool:
    return h_y - zy <= max(error, 1e-9)


def crossed(values: Sequence[float], errors: Sequence[float]) -> list[bool]:
    """Tell whether a lower bound of I(X;Z) lies so far below a later one that it is not informative.

    This means by more than three standard errors of the difference, and by more than :data:`LOOSE`.

    Args:
        values: Lower bounds in the order of the layers, the one nearest the output last; one that is NaN crosses none.
        errors: Their standard errors.
    """
    pairs = list(zip(values, errors, strict=True))
    return [
        any(later - value > max(LOOSE, 3 * math.hypot(error, other)) for later, other in pairs[i + 1 :])
        for i, (value, error) in enumerate(pairs)
    ]


def running_maximum(values: Sequence[float]) -> tuple[list[float], float]:
    """Bring lower bounds of I(X;Z) into the order of data processing: no layer holds less than one above it.

    What a layer is known to hold at least, every layer below holds too. So the maximum of a layer's bound and of all
    those above it is a lower bound of that layer. Bounds of different looseness cross without it. The maximum of noisy
    numbers is a little too large, by about their standard error where several are equal.

    Args:
        values: Lower bounds in the order of the layers, the one nearest the output last. NaN stays and raises no other.

    Returns:
        The values, and by how much the most raised one was raised; 0 where they were in order.
    """
    raised: list[float] = []
    highest, most = -math.inf, 0.0
    for value in reversed(values):
        if not math.isnan(value):
            highest = max(highest, value)
            most = max(most, highest - value)
        raised.append(value if math.isnan(value) else highest)
    return raised[::-1], most


class _Deal(NamedTuple):
    """Assignment of draws to folds, and of inputs to draws.

    Attributes:
        fold: Fold of each draw, ``(M,)``.
        block: Block of inputs of each draw, ``(M,)``.
        inputs: The inputs of each block.
        weights: Weight of each draw in the mean over inputs and draws, ``(M,)`` float64.
    """

    fold: Tensor
    block: Tensor
    inputs: list[Tensor]
    weights: Tensor

    @classmethod
    def of(cls, m: int, n: int, device: torch.device) -> _Deal:
        blocks = max(1, min(m // _DRAWS_OF_A_BLOCK, n // max(_FEWEST_INPUTS, _PAIRS // n)))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(device)
        inputs = list(order.tensor_split(blocks))
        number = torch.arange(m, device=device)
        block = number // _FOLDS % blocks
        size = torch.tensor([len(some) for some in inputs], dtype=torch.float64, device=device)
        weights = (size / n / block.bincount(minlength=blocks))[block]
        return cls(number % min(_FOLDS, m), block, inputs, weights)

    @property
    def folds(self) -> int:
        return min(_FOLDS, len(self.fold))

    @property
    def is_pilot(self) -> Tensor:
        """Mask of the draws for the temperatures, ``(M,)``: enough of every fold, all blocks equally often."""
        blocks = len(self.inputs)
        return torch.arange(len(self.fold), device=self.fold.device) < _FOLDS * blocks * math.ceil(_PILOTS / blocks)

    @property
    def is_first(self) -> Tensor:
        """Mask of the draws for the slopes, ``(M,)``: the first four of every fold, or those at half of the blocks."""
        number, blocks = torch.arange(len(self.fold), device=self.fold.device), len(self.inputs)
        chosen = (self.block - self.fold) % 2 == 0 if blocks > 4 else number >= 0
        return chosen & (number < _FOLDS * max(4, blocks))

    def inputs_of(self, draws: Tensor) -> list[Tensor]:
        """Return the inputs at which each of some draws is evaluated."""
        return [self.inputs[block] for block in self.block[draws].tolist()]

    def error(self, values: Tensor) -> float:
        """Return the standard error of the mean of values ``(M,)``, one for each draw."""
        shares = torch.tensor([len(some) for some in self.inputs], dtype=torch.float64)
        return stratified_error(values, self.block, shares / shares.sum())


def _check(z: Tensor) -> None:
    if z.ndim != 3 or z.shape[2] == 0:
        raise ValueError(f"z of shape {tuple(z.shape)}: expected (draws, inputs, units); flatten the units of an input")
    if z.shape[0] < 4 or z.shape[1] < 2:
        raise ValueError(f"z has {z.shape[0]} draws of {z.shape[1]} inputs: expected at least 4 draws and 2 inputs")
    if not z.is_floating_point():
        raise ValueError(f"z of dtype {z.dtype}: expected real activations, for example z.float()")
    if not z.isfinite().all():
        raise ValueError("z has values that are not finite; leave their draws out, or take a smaller beta")
