r"""Shannon information in the weights, from an ensemble of trainings.

Training on a data set D ends with the distribution ``Q(w|D)``. Of all priors, the mixture ``Q(w) = E_D Q(w|D)``, the
adapted one, makes the expected information in the weights least:

.. math:: \mathbb{E}_D\, \mathrm{KL}(Q(w|D) \,\|\, Q(w)) = I(w; D)
          = \mathbb{E}_D\, \mathbb{E}_{w \sim Q(w|D)} \log \frac{Q(w|D)}{Q(w)} .

Here M data sets are drawn from their distribution, ``Q(w|D)`` is a Gaussian or, of several trainings on one data set,
their mixture, and ``Q(w)`` is the mixture over the M data sets. With a data set's own part in it, the average is at
most log M and too low in expectation; without that part it is too high. If the part counts α times, the error is

.. math:: \bigl(\tfrac12 - \alpha\bigr) \frac{C}{M} + O(M^{-2}), \qquad
          C = \mathbb{E}_D\, \mathbb{E}_{w \sim Q(w|D)} \frac{Q(w|D)}{Q(w)} - 1 ,

so a part that counts half leaves no error of first order.

Source: Achille, Paolini & Soatto, Proposition 2.3, eq. 5; the two bounds: Poole et al. (2019), section 2.3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lightning_info.functional.draws import normal
from lightning_info.functional.standard_error import standard_error

_BLOCK = 2**22
"""Number of entries of the largest tensor: draws times components times weights."""

_SHARES = (0.5, 1.0, 0.0)
"""What a data set's own part of the mixture counts: of the estimate, of the lower and of the upper bound."""


class ShannonInformation(NamedTuple):
    """Estimate of I(w;D), in nats.

    Attributes:
        information: The estimate, in which each data set's own part of the mixture counts half.
        stderr: Standard error of it, from the scatter over data sets, of which that of the draws is a part. It does not
            know the error of a small ensemble, which ``lower`` and ``upper`` show.
        lower: With each data set's own part in the mixture; at most log M, and in expectation at most I(w;D)
            if the trainings on a data set are all of ``Q(w|D)``.
        upper: Without that part; in expectation at least I(w;D).
    """

    information: float
    stderr: float
    lower: float
    upper: float


def shannon_information(
    means: Tensor,
    covariances: Tensor,
    *,
    dataset: Tensor | None = None,
    draws: int = 1,
    generator: Generator | None = None,
) -> ShannonInformation:
    """Return the information between weights and data set, of trainings that end as ``N(w_i, Σ_i)``, in nats.

    Args:
        means: Weights at the end of each of R trainings, ``(R, k)``.
        covariances: Their covariances, ``(R, k, k)``, or the diagonals, ``(R, k)``; for example ``β (N F)⁻¹`` at the
            weights, see :func:`~.weight_information.weight_information`.
        dataset: Which data set each was trained on, ``(R,)``, integer. None: each on one of its own, and then what the
            weights tell about the seed of the training counts as well. With few trainings on each some of that remains.
        draws: Number of weights that are drawn for each training.
        generator: Source of the draws; the global generator of the CPU if None.

    Raises:
        ValueError: Invalid shapes, values that are not finite, covariances that are not positive definite, fewer than
            two data sets, no draws.
    """
    w, sets = _checked_means(means), _checked_sets(dataset, means)
    if draws < 1:
        raise ValueError(f"shannon_information: draws={draws}; expected at least 1")
    components = _Gaussians(w - w.mean(0), covariances)
    counts = sets.bincount()
    log_weights = -(counts[sets] * len(counts)).double().log()  # of each training in the mixture
    own_weights = -counts[sets].double().log()
    values = torch.zeros(len(_SHARES), len(counts), dtype=torch.float64, device=w.device)
    for start in range(0, draws * len(w), size := max(1, _BLOCK // w.numel())):
        which = torch.arange(start, min(start + size, draws * len(w)), device=w.device) % len(w)
        noise = normal((len(which), w.shape[1]), w, generator)
        log_densities = components.log_densities(components.draw(which, noise))
        of_own = sets[which, None] == sets
        own = torch.logsumexp((log_densities + own_weights).masked_fill(~of_own, -math.inf), 1)
        rest = torch.logsumexp((log_densities + log_weights).masked_fill(of_own, -math.inf), 1)
        for value, share in zip(values, _SHARES, strict=True):
            part = own + math.log(share / len(counts)) if share else torch.full_like(own, -math.inf)
            whole = 1 - (1 - share) / len(counts)
            value.index_add_(0, sets[which], own - torch.logaddexp(rest, part) + math.log(whole))
    values /= counts * draws
    information, lower, upper = values.mean(1).tolist()
    return ShannonInformation(information, standard_error(values[0]), lower, upper)


class _Gaussians:
    """Normal distributions of k weights, ``N(w_i, Σ_i)``."""

    def __init__(self, means: Tensor, covariances: Tensor) -> None:
        r, k = means.shape
        sigma = covariances.detach().double().to(means.device)
        if sigma.shape not in ((r, k), (r, k, k)):
            raise ValueError(
                f"shannon_information: covariances of shape {tuple(sigma.shape)}; expected ({r}, {k}, {k}), or their "
                f"diagonals ({r}, {k})"
            )
        if sigma.dim() == 2:
            self._root = sigma.sqrt()
            self._inverse_root = self._root.reciprocal()
            diagonal = self._root
        else:
            self._root, failed = torch.linalg.cholesky_ex(sigma)
            if failed.any():
                raise ValueError(
                    f"shannon_information: {int((failed > 0).sum())} covariances are not positive definite"
                )
            identity = torch.eye(k, dtype=sigma.dtype, device=sigma.device).expand_as(sigma)
            self._inverse_root = torch.linalg.solve_triangular(self._root, identity, upper=False)
            diagonal = self._root.diagonal(dim1=1, dim2=2)
        if not (diagonal.isfinite() & (diagonal > 0)).all():
            raise ValueError("shannon_information: some covariances are not finite, or not positive definite")
        self._means = means
        self._log_scale = diagonal.log().sum(1)  # the constant of a normal density cancels in every ratio

    def draw(self, which: Tensor, noise: Tensor) -> Tensor:
        root = self._root[which]
        scaled = root * noise if root.dim() == 2 else (root @ noise[:, :, None])[:, :, 0]
        return self._means[which] + scaled

    def log_densities(self, w: Tensor) -> Tensor:
        """Return the log densities of weights ``(S, k)`` under each distribution, ``(S, R)``, but for a constant."""
        gap = w[:, None] - self._means
        if self._inverse_root.dim() == 2:
            z = gap * self._inverse_root
        else:
            z = torch.einsum("rkl,srl->srk", self._inverse_root, gap)
        return -(z.square().sum(2) / 2 + self._log_scale)


def _checked_means(means: Tensor) -> Tensor:
    if means.dim() != 2 or 0 in means.shape:
        raise ValueError(f"shannon_information: means of shape {tuple(means.shape)}; expected (trainings, weights)")
    if not means.isfinite().all():
        raise ValueError("shannon_information: some means are not finite; leave their trainings out")
    return means.detach().double()


def _checked_sets(dataset: Tensor | None, means: Tensor) -> Tensor:
    """Return the data sets, numbered from 0 without gaps."""
    if dataset is None:
        dataset = torch.arange(len(means))
    if dataset.shape != (len(means),) or dataset.is_floating_point() or dataset.is_complex():
        raise ValueError(
            f"shannon_information: dataset of shape {tuple(dataset.shape)}, {dataset.dtype}; expected integers "
            f"({len(means)},)"
        )
    sets: Tensor = torch.unique(dataset.to(means.device), return_inverse=True)[1]
    if sets.max() < 1:
        raise ValueError("shannon_information: one data set tells no information; train on at least two")
    return sets
