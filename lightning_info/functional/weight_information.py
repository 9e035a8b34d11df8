r"""Information in the weights: the nats that they hold at the precision that a level β of the task requires.

With the prior ``P = N(w_ref, λ²I)``, the posterior ``Q = N(w, Σ)`` and the **summed** loss L of curvature H, the
Lagrangian ``E_Q[L] + β KL(Q‖P)``, with ``E_Q[L] ≈ L + ½ tr(HΣ)``, is least at

.. math:: \Sigma^* = \beta\,(H + cI)^{-1}, \quad c = \beta / \lambda^2, \qquad
          \mathrm{KL}(Q^* \| P) = \tfrac12 \sum_i \Bigl[\log(1 + h_i/c) - \frac{h_i}{h_i + c}\Bigr]
          + \frac{\|w - w_\mathrm{ref}\|^2}{2 \lambda^2}

over the eigenvalues ``h_i`` of H: eq. 8 with its constants corrected, in a form in which the terms of size k cancel
beforehand (``½ log det(H + cI) + (k/2) log(λ²/β) - k/2 + (‖w - w_ref‖² + tr Σ*) / 2λ²`` is the same number).
``H = N·F`` of N training samples (Remark 2.6): ``spectrum.scaled(N)``. For a diagonal H the spectrum is its diagonal.

Everything is in nats, the loss being one. Source: Achille, Paolini & Soatto, Definition 2.1, Proposition 2.5, eq. 8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_info.functional.spectrum import Spectrum


class OptimalLambda(NamedTuple):
    """Standard deviation of the prior that minimises the Lagrangian.

    Attributes:
        lambda_: Its value.
        is_floor: Whether it is the given lower bound; without one it would be smaller, and 0 at ``w = w_ref``.
    """

    lambda_: float
    is_floor: bool


def weight_information(spectrum: Spectrum, squared_distance: float, beta: float, lambda_: float) -> float:
    """Return ``KL(Q*‖P)``, the information in the weights at level β (eq. 8, corrected), in nats.

    Args:
        spectrum: Spectrum of the curvature H of the summed loss.
        squared_distance: ``‖w - w_ref‖²``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.

    Raises:
        ValueError: An argument is out of range. ``lambda_ = inf`` has no KL (Remark 2.7): it grows as k log λ, and
            only differences of log-determinants mean anything.
    """
    check_level(beta, lambda_)
    _check_distance(squared_distance)
    h = spectrum.eigenvalues * (lambda_**2 / beta)
    return 0.5 * spectrum.sum_over(h.log1p() - h / (1 + h)) + squared_distance / (2 * lambda_**2)


def diagonal_weight_information(diagonal: Tensor, displacement: Tensor, beta: float, lambda_: float | Tensor) -> float:
    """Return the same for a diagonal H, with a standard deviation of the prior for each weight.

    Args:
        diagonal: ``(k,)``, the diagonal of the curvature H of the summed loss.
        displacement: ``(k,)``, ``w - w_ref``.
        beta: Level of the task.
        lambda_: ``(k,)``, or one number for all weights.
    """
    scale = torch.as_tensor(lambda_, dtype=torch.float64, device=diagonal.device)
    for extreme in (scale.min().item(), scale.max().item()):
        check_level(beta, extreme)
    h = diagonal.detach().double() * scale.square() / beta
    if not h.isfinite().all() or (h < 0).any():
        raise ValueError("diagonal_weight_information: the diagonal must be finite and not negative")
    distance = (displacement.detach().double() / scale).square()
    _check_distance(distance.sum().item())
    return 0.5 * (h.log1p() - h / (1 + h) + distance).sum().item()


def posterior_trace(spectrum: Spectrum, beta: float, lambda_: float) -> float:
    """Return ``tr Σ*``, the expected squared length of the weight noise."""
    check_level(beta, lambda_)
    h = spectrum.eigenvalues * (lambda_**2 / beta)
    return lambda_**2 * (spectrum.sum_over(1 / (1 + h)) + spectrum.unlisted)


def expected_loss_rise(spectrum: Spectrum, beta: float, lambda_: float) -> float:
    """Return ``½ tr(HΣ*)``, the rise of the summed loss under weight noise to second order, nats; at most ``βr/2``.

    The true rise is measured with :func:`~.weight_noise.low_rank_noise`; where the two differ, β is not small.
    """
    check_level(beta, lambda_)
    return 0.5 * beta * effective_dimension(spectrum, beta / lambda_**2)


def effective_dimension(spectrum: Spectrum, damping: float) -> float:
    r"""Return ``sum h / (h + c)``, the number of directions that the curvature fixes against a damping c.

    A direction counts 1 if ``h >> c`` and 0 if ``h << c``, so the sum is between 0 and the rank of H. Half of it is the
    local learning coefficient of the quadratic model ``½ wᵀHw`` under a prior of precision c,
    and MacKay (1992) calls it the number of well-determined parameters.

    Args:
        spectrum: Spectrum of the curvature H of the summed loss.
        damping: c, in the unit of the eigenvalues; ``β/λ²`` for the noise ``Σ* = β (H + cI)⁻¹``.

    Raises:
        ValueError: A damping that is not positive and finite.
    """
    if not (0 < damping < math.inf):
        raise ValueError(f"effective_dimension: damping={damping}; give a finite c > 0, such as beta / lambda_**2")
    return spectrum.sum_over(spectrum.eigenvalues / (spectrum.eigenvalues + damping))


def complexity(expected_loss: float, information: float, beta: float) -> float:
    """Return ``C_β = E_Q[L] + β KL(Q‖P)`` (eq. 2), from the expected *summed* loss; nats.

    The information is that of :func:`weight_information`, or of any other Q and P.
    """
    check_level(beta, 1.0)
    return expected_loss + beta * information


def optimal_lambda(spectrum: Spectrum, squared_distance: float, beta: float, *, floor: float = 1e-3) -> OptimalLambda:
    """Return the λ that minimises the Lagrangian ``L + ½ tr(HΣ*) + β KL(Q*‖P)``, each λ with its own Σ*.

    It is the fixed point ``λ² = (‖w - w_ref‖² + tr Σ*) / k``, and not the minimiser of the KL alone. With
    ``½ tr(HΣ*)`` put in, what depends on λ is ``β/2 [sum log(1 + h λ²/β) + ‖w - w_ref‖² / λ²]``, convex in log λ: the
    root of its derivative is bracketed and halved. At ``w = w_ref`` it is 0, which is not a prior.

    Args:
        spectrum: Spectrum of the curvature H of the summed loss.
        squared_distance: ``‖w - w_ref‖²``.
        beta: Level of the task.
        floor: Least λ to return.

    Raises:
        ValueError: Arguments out of their range; there is no curvature, so λ would grow without bound.
    """
    check_level(beta, floor)
    _check_distance(squared_distance)
    h = spectrum.eigenvalues

    def too_large(lambda_: float) -> bool:
        s = lambda_**2
        return spectrum.sum_over(h * s**2 / (h * s + beta)) >= squared_distance

    if too_large(floor):
        return OptimalLambda(floor, is_floor=True)
    high = 2 * floor
    while not too_large(high):
        high *= 2
        if high > 1e50:
            raise ValueError("optimal_lambda: the curvature is 0, so every larger lambda is better")
    low = high / 2
    while high / low - 1 > 1e-14:
        middle = math.sqrt(low * high)
        if middle in (low, high):
            break
        low, high = (low, middle) if too_large(middle) else (middle, high)
    return OptimalLambda(high, is_floor=False)


def check_level(beta: float, lambda_: float) -> None:
    """Raise ValueError unless β and λ are positive and finite."""
    if not (0 < beta < math.inf):
        raise ValueError(f"beta={beta} must be positive and finite, for example beta=1.0")
    if lambda_ == math.inf:
        raise ValueError(
            "lambda_=inf has no KL, which grows as k log lambda (Remark 2.7); compare Spectrum.log_det of two networks"
        )
    if not (0 < lambda_ < math.inf):
        raise ValueError(f"lambda_={lambda_} must be positive and finite, for example lambda_=0.1")


def _check_distance(squared_distance: float) -> None:
    if not (0 <= squared_distance < math.inf):
        raise ValueError(f"the squared distance of the weights, {squared_distance}, must be finite and not negative")
