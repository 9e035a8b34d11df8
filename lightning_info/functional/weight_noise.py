r"""Draws of weight noise, ``N(0, Σ*)`` with ``Σ* = β (H + cI)⁻¹`` and ``c = β / λ²``.

Noise is ``Σ*^½ z`` with the symmetric root and a standard normal z: one z gives comparable noise for every β, and -z
its opposite. With ``H = s·AᵀA`` and ``A Aᵀ = U diag(μ) Uᵀ`` no k x k matrix is needed,

.. math:: \Sigma^{*\,1/2} = \lambda \bigl[I + A^\top U\, \mathrm{diag}(g)\, U^\top A \bigr], \qquad
          g_i = \frac{(1 + s \mu_i / c)^{-1/2} - 1}{\mu_i} .

If only products with H are available, Lanczos' method approximates the same root; all else is exact.

Source: Achille, Paolini & Soatto, Proposition 2.5, with its constants corrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_info.functional.lanczos import Tridiagonal, function_times
from lightning_info.functional.weight_information import check_level

RESOLVED = 1e-10
"""Eigenvalues of a Gram matrix below this share of the largest are rounding of A; no weight is held there."""


def low_rank_noise(
    z: Tensor,
    rows_z: Tensor,
    rows_transposed: Callable[[Tensor], Tensor],
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    beta: float,
    lambda_: float,
    *,
    scale: float = 1.0,
) -> Tensor:
    """Draw weight noise for ``H = scale · AᵀA``, from the Gram matrix of the R rows of A.

    Args:
        z: ``(k,)``, standard normal.
        rows_z: ``A z``, ``(R,)``; the same for every β.
        rows_transposed: ``(R,) -> (k,)``, multiplies by Aᵀ.
        eigenvalues: Eigenvalues of ``A Aᵀ``, ``(R,)``.
        eigenvectors: Eigenvectors as columns, ``(R, R)``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.
        scale: Number of training samples divided by that of the samples in A, if these represent all.

    Returns:
        ``(k,)`` float64.

    Raises:
        ValueError: ``beta``, ``lambda_`` or ``scale`` not positive and finite.
    """
    check_level(beta, lambda_)
    _check_scale(scale)
    mu = eigenvalues.double()
    held = mu > RESOLVED * mu.amax()
    g = torch.where(held, torch.expm1(-0.5 * torch.log1p(scale * lambda_**2 / beta * mu)) / mu, 0)
    u = eigenvectors.double()
    return lambda_ * (z.double() + rows_transposed(u @ (g * (u.T @ rows_z.double()))).double())


def lanczos_noise(tridiagonal: Tridiagonal, beta: float, lambda_: float, *, scale: float = 1.0) -> Tensor:
    """Draw weight noise for ``H = scale · F``, from products with F.

    A run of :func:`~.lanczos.lanczos` from z serves every β and λ. It is exact from as many steps on as F has distinct
    eigenvalues, 0 included; with fewer, what is missing shows in the difference from ``tridiagonal.first(steps)``.
    Eigenvectors found beforehand (:func:`~.lanczos.runs`) save steps: for a trained MLP with ``β/λ²`` at 1e-4 of the
    largest eigenvalue of H, 32 steps missed 2 % of the noise, and 0.04 % beside the eigenvectors of 32 earlier steps
    (lengths as H measures them; ``tests/benchmarks/lanczos.py``).

    Args:
        tridiagonal: Result of a run with F from a standard normal z ``(k,)``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.
        scale: N for the F of a mean over samples, so H is that of the summed loss.

    Returns:
        ``(k,)`` float64.

    Raises:
        ValueError: ``beta``, ``lambda_`` or ``scale`` not positive and finite.
    """
    check_level(beta, lambda_)
    _check_scale(scale)
    return function_times(tridiagonal, lambda f: lambda_ * (1 + scale * lambda_**2 / beta * f.clamp_min(0)).rsqrt())


def full_noise(z: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, beta: float, lambda_: float) -> Tensor:
    """Draw weight noise for a small H whose eigenvectors are all known.

    Args:
        z: ``(k,)``, standard normal.
        eigenvalues: Eigenvalues of H, ``(k,)``.
        eigenvectors: Eigenvectors as columns, ``(k, k)``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.

    Returns:
        ``(k,)`` float64.
    """
    check_level(beta, lambda_)
    vectors = eigenvectors.double()
    deviation = (beta / (eigenvalues.double().clamp_min(0) + beta / lambda_**2)).sqrt()
    return vectors @ (deviation * (vectors.T @ z.double()))


def diagonal_noise(z: Tensor, diagonal: Tensor, beta: float, lambda_: float | Tensor) -> Tensor:
    """Draw weight noise for a diagonal H.

    Args:
        z: ``(k,)``, standard normal.
        diagonal: ``(k,)``, not negative.
        beta: Level of the task.
        lambda_: Standard deviation of the prior, one for all weights or ``(k,)``; where it is 0 a weight has no noise.

    Returns:
        ``(k,)`` float64.
    """
    variance = torch.as_tensor(lambda_, dtype=torch.float64, device=diagonal.device).square()
    check_level(beta, 1.0)
    h = diagonal.detach().double()
    for name, values in (("diagonal", h), ("lambda_", variance)):
        if not values.isfinite().all() or (values < 0).any():
            raise ValueError(f"diagonal_noise: {name} must be finite and not negative")
    return (variance / (1 + h * variance / beta)).sqrt() * z.double()


def _check_scale(scale: float) -> None:
    if not (0 < scale < math.inf):
        raise ValueError(f"weight noise: scale={scale}; it must be positive and finite")
