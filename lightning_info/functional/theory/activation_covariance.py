r"""Covariance of a layer's activations when its weights are noisy, to first order: ``Σ_z = J Σ* Jᵀ``.

J is the Jacobian of the layer at one input in all k weights, ``(d, k)``, and ``Σ* = β (H + (β/λ²) I)⁻¹`` the weight
noise of level β. Three forms of the curvature H of the summed loss: a matrix, a diagonal, and a factor, ``H = s·AᵀA``:

.. math:: \Sigma_z = \lambda^2 \bigl[J J^\top - J A^\top (cI/s + A A^\top)^{-1} A J^\top\bigr],
          \qquad c = \beta / \lambda^2 ,

which needs no more of the k weights than the products ``J Jᵀ``, ``J Aᵀ`` and ``A Aᵀ``.

With a standard deviation ``λ_i`` for each weight (0: this weight has no noise), ``Σ* = Λ (I + ΛHΛ/β)⁻¹ Λ``, Λ being
their diagonal matrix. ``λ_i = |w_i|`` makes Σ_z follow a rescaling of the layers of a ReLU network as z does.

Everything is float64. Source: Achille, Paolini & Soatto, Proposition 3.2 and its proof, with Σ* of Proposition 2.5,
corrected (``docs/errata.md``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_info.functional.weight_information import check_level

FOUR_DIGITS = 1e4
"""Smallest eigenvalue that counts, in units of rounding: below it, fewer than four digits of its inverse are right."""


def activation_covariance(jacobian: Tensor, curvature: Tensor, beta: float, lambda_: float | Tensor) -> Tensor:
    """Return ``Σ_z`` for a curvature that is a matrix.

    Args:
        jacobian: J, ``(..., d, k)``.
        curvature: H of the summed loss, ``(k, k)``, positive semi-definite.
        beta: Level of the task.
        lambda_: Standard deviation of the prior, one for all weights or ``(k,)``.

    Returns:
        ``(..., d, d)``.

    Raises:
        ValueError: Invalid shapes; ``beta`` or ``lambda_`` out of range; a curvature for which Σ* is not a covariance.
    """
    k = jacobian.shape[-1]
    prior = _prior(lambda_, beta, jacobian)
    if curvature.shape != (k, k):
        raise ValueError(f"curvature of shape {tuple(curvature.shape)}: expected (k, k) with k = {k} of the Jacobian")
    system = curvature.detach().double() * prior * prior.expand(k)[:, None] / beta
    factor, fault = torch.linalg.cholesky_ex(system + torch.eye(k, dtype=system.dtype, device=system.device))
    if fault or not factor.isfinite().all():
        raise ValueError("the curvature is not positive semi-definite; take the Fisher information, not the Hessian")
    root = torch.linalg.solve_triangular(factor, (jacobian.double() * prior).mT, upper=False)
    sigma: Tensor = root.mT @ root
    return sigma


def diagonal_activation_covariance(jacobian: Tensor, diagonal: Tensor, beta: float, lambda_: float | Tensor) -> Tensor:
    """Return ``Σ_z`` for a curvature that is diagonal.

    Args:
        jacobian: J, ``(..., d, k)``.
        diagonal: Diagonal of H of the summed loss, ``(k,)``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior, one for all weights or ``(k,)``.

    Returns:
        ``(..., d, d)``.

    Raises:
        ValueError: Invalid shapes; ``beta`` or ``lambda_`` out of their range; a diagonal with negative elements.
    """
    k = jacobian.shape[-1]
    prior = _prior(lambda_, beta, jacobian)
    h = diagonal.detach().double()
    if h.shape != (k,):
        raise ValueError(f"diagonal of shape {tuple(h.shape)}: expected (k,) with k = {k} of the Jacobian")
    if not h.isfinite().all() or (h < 0).any():
        raise ValueError("the diagonal of the curvature must be finite and not negative")
    root = jacobian.double() * prior / (1 + h * prior.square() / beta).sqrt()
    return root @ root.mT


def low_rank_activation_covariance(
    jacobian_gram: Tensor, cross: Tensor, gram: Tensor, beta: float, lambda_: float, *, scale: float = 1.0
) -> Tensor:
    """Return ``Σ_z`` for a curvature ``H = scale · AᵀA``, from products of J and A alone.

    It is a difference: about ``log10(hλ²/β)`` digits are lost in a direction whose curvature is h. With a standard
    deviation for each weight, scale the columns of J and A by them and put ``lambda_=1``.

    Args:
        jacobian_gram: ``J Jᵀ``, ``(..., d, d)``.
        cross: ``J Aᵀ``, ``(..., d, R)``.
        gram: ``A Aᵀ``, ``(R, R)``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.
        scale: Number of training samples divided by that of the samples in A, if these represent all.

    Returns:
        ``(..., d, d)``.

    Raises:
        ValueError: ``beta``, ``lambda_`` or ``scale`` not positive and finite; a difference that rounding leaves with
            fewer than four digits, for example if a unit does not depend on the weights.
    """
    check_level(beta, 1.0)
    for name, value in (("lambda_", lambda_), ("scale", scale)):
        if not (0 < value < math.inf):
            raise ValueError(f"low_rank_activation_covariance: {name}={value}; it must be positive and finite")
    system = gram.detach().double()
    system = system + beta / lambda_**2 / scale * torch.eye(len(system), dtype=system.dtype, device=system.device)
    factor, fault = torch.linalg.cholesky_ex(system)
    whole, j_a = jacobian_gram.double(), cross.double()
    root = torch.linalg.solve_triangular(factor, j_a.mT, upper=False)
    rest = whole - root.mT @ root
    least = FOUR_DIGITS * torch.finfo(jacobian_gram.dtype).eps * rest.shape[-1]
    if fault or not (scaled_eigenvalues(rest, whole) > least).all():
        raise ValueError(
            f"low_rank_activation_covariance: rounding leaves fewer than four digits of the covariance at beta={beta}, "
            f"lambda_={lambda_}; take a larger beta or a smaller lambda_, products in float64, or "
            "activation_covariance. If units do not depend on the weights (a ReLU that is off), leave them out"
        )
    sigma: Tensor = lambda_**2 * rest
    return sigma


def scaled_eigenvalues(matrix: Tensor, reference: Tensor) -> Tensor:
    """Return eigenvalues ``(..., d)``, ascending, of symmetric matrices scaled to a diagonal of 1 of the reference.

    A unit with small activations is then not mistaken for one without. NaN where an entry is not finite.
    """
    unit = reference.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(reference.dtype).tiny).rsqrt()
    scaled = matrix.detach() * unit[..., None] * unit[..., None, :]
    finite = scaled.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    values: Tensor = torch.linalg.eigvalsh(scaled.where(finite, 0))
    return values.where(finite[..., 0], math.nan)


def _prior(lambda_: float | Tensor, beta: float, jacobian: Tensor) -> Tensor:
    """Return the standard deviations of the prior, ``(1,)`` or ``(k,)``."""
    check_level(beta, 1.0)
    prior = torch.as_tensor(lambda_, dtype=torch.float64, device=jacobian.device).detach()
    if prior.shape not in ((), jacobian.shape[-1:]):
        raise ValueError(
            f"lambda_ of shape {tuple(prior.shape)}: expected one number, or (k,) with k = {jacobian.shape[-1]}"
        )
    if not prior.isfinite().all() or (prior < 0).any():
        raise ValueError("lambda_ must be finite and not negative; 0 is a weight without noise, 1e6 hardly a prior")
    return prior.reshape(-1)
