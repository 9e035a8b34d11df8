r"""Draws of weight noise, ``N(0, Σ*)`` with ``Σ* = β (H + (β/λ²) I)⁻¹``, and never a k x k matrix.

With ``H = s·AᵀA`` and R rows, Woodbury's identity gives

.. math:: \Sigma^* = \lambda^2 \bigl[I - s A^\top (cI + s A A^\top)^{-1} A\bigr], \qquad c = \beta / \lambda^2 .

It is the covariance of a prior draw given observations of its R rows, and is drawn like that (Matheron's rule):
``n = λ[z - √s Aᵀ (cI + sK)⁻¹ (√s Az + √c e)]`` with standard normal ``z (k,)`` and ``e (R,)``.

Where the rows are too many and only products with H are at hand, ``n = √β (H + cI)^(-1/2) z`` by Lanczos' method, which
approximates it (:func:`lanczos_posterior_noise`).

Source: Achille, Paolini & Soatto, Proposition 2.5, with its constants corrected.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lightning_info.functional.lanczos import Tridiagonal, function_times
from lightning_info.functional.weight_information import check_level


def posterior_noise(
    gram: Tensor,
    rows: Callable[[Tensor], Tensor],
    rows_transposed: Callable[[Tensor], Tensor],
    weights: int,
    beta: float,
    lambda_: float,
    *,
    scale: float = 1.0,
    draws: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """Draw weight noise with the covariance ``Σ*`` of ``H = scale · AᵀA``.

    Args:
        gram: ``K = A Aᵀ``, ``(R, R)``.
        rows: ``(k,) -> (R,)``, multiplies by A.
        rows_transposed: ``(R,) -> (k,)``, multiplies by Aᵀ.
        weights: k.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.
        scale: Training samples by samples in A, where these stand for all.
        draws: How many.
        generator: Source of the draws; the global generator of the CPU if None.

    Returns:
        ``(draws, k)`` float64.

    Raises:
        ValueError: ``beta``, ``lambda_`` or ``scale`` not positive and finite.
    """
    check_level(beta, lambda_)
    _check_scale(scale)
    c, root = beta / lambda_**2, scale**0.5
    system = scale * gram.detach().double()
    system = system + c * torch.eye(len(gram), dtype=system.dtype, device=system.device)
    factor = torch.linalg.cholesky(system)
    noise = []
    for _ in range(draws):
        z, e = (_normal(size, gram.device, generator) for size in (weights, len(gram)))
        observed = root * rows(z).double() + c**0.5 * e
        explained = torch.cholesky_solve(observed.unsqueeze(1), factor).squeeze(1)
        noise.append(lambda_ * (z - root * rows_transposed(explained).double()))
    return torch.stack(noise)


def lanczos_posterior_noise(tridiagonal: Tridiagonal, beta: float, lambda_: float, *, scale: float = 1.0) -> Tensor:
    """One draw of weight noise with the covariance ``Σ*`` of ``H = scale · F``, from products with F.

    A run serves every β and λ: their noise differs, its start is the same. It is exact from as many steps on as F has
    distinct eigenvalues, 0 included; with fewer, what is missing shows in the difference from the noise of
    ``tridiagonal.first(steps)``. Eigenvectors found beforehand (:func:`~.lanczos.runs`) save
    steps: for a trained MLP with ``β/λ²`` at 1e-4 of the largest eigenvalue of H, 32 steps missed 2 % of the noise, and
    0.04 % beside the eigenvectors of 32 earlier steps (lengths as H measures them; ``tests/benchmarks/lanczos.py``).

    Args:
        tridiagonal: Of a run with F from a standard normal start ``(k,)``.
        beta: Level of the task.
        lambda_: Standard deviation of the prior.
        scale: N for the F of a mean over samples, so that H is that of the summed loss.

    Returns:
        ``(k,)`` float64.

    Raises:
        ValueError: ``beta``, ``lambda_`` or ``scale`` not positive and finite.
    """
    check_level(beta, lambda_)
    _check_scale(scale)
    return function_times(tridiagonal, lambda f: lambda_ * (1 + scale * lambda_**2 / beta * f.clamp_min(0)).rsqrt())


def diagonal_posterior_noise(
    diagonal: Tensor,
    beta: float,
    lambda_: float | Tensor,
    *,
    draws: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """Draw weight noise with the covariance ``Σ*`` of a diagonal H.

    Args:
        diagonal: ``(k,)``, not negative.
        beta: Level of the task.
        lambda_: Standard deviation of the prior, one for all weights or ``(k,)``.
        draws: How many.
        generator: Source of the draws; the global generator of the CPU if None.

    Returns:
        ``(draws, k)`` float64.
    """
    scale = torch.as_tensor(lambda_, dtype=torch.float64, device=diagonal.device)
    for extreme in (scale.min().item(), scale.max().item()):
        check_level(beta, extreme)
    h = diagonal.detach().double()
    if not h.isfinite().all() or (h < 0).any():
        raise ValueError("diagonal_posterior_noise: the diagonal has to be finite and not negative")
    variance = beta / (h + beta / scale.square())
    z = torch.stack([_normal(len(diagonal), diagonal.device, generator) for _ in range(draws)])
    return variance.sqrt() * z


def _check_scale(scale: float) -> None:
    if not (0 < scale < float("inf")):
        raise ValueError(f"weight noise: scale={scale}; it has to be positive and finite")


def _normal(size: int, device: torch.device, generator: Generator | None) -> Tensor:
    source = torch.device("cpu") if generator is None else generator.device
    return torch.randn(size, generator=generator, device=source, dtype=torch.float64).to(device)
