r"""Spectrum and functions of a positive semi-definite matrix F of which only products ``F v`` are at hand.

m steps of Lanczos' method from a start b give orthonormal ``V (k, m)`` and a tridiagonal ``T = Vᵀ F V``.

**Spectrum.** Seen from b, the spectrum is a measure of mass 1, and what T knows of it is a quadrature rule with nodes
``θ_i`` and weights ``τ_i`` (squares of the first components of eigenvectors):

.. math:: b^\top f(F)\, b = \|b\|^2 \sum_i \tau_i f(\theta_i) + \text{error} .

For random signs, or a normal b scaled to the length √k, the left side has the expectation ``tr f(F)``, so ``k τ_i`` is
the multiplicity of the node ``θ_i`` (stochastic Lanczos quadrature). Two errors come with it:

- *of the probes*, ``sd / √probes``: the spectra of several independent starts scatter, and show it;
- *of the rule*, a bias that no number of probes reduces. T alone gives Gauss' rule, exact for polynomials up to degree
  2m - 1. As no eigenvalue is below 0, m products also give the Gauss-Radau rule with a node at 0, exact up to 2m. It is
  the one used: a Fisher information has zero eigenvalues in plenty, and Gauss' rule puts its least node above them all.
  Its ``log det(F + cI)`` is never too large, that of Gauss' rule never too small (the signs of the derivatives of the
  logarithm). How far it is shows beside :meth:`Tridiagonal.first` of half the steps, whose error is the larger one.

The trace has no bias. Everything is exact once m reaches the number of distinct eigenvalues, 0 included.

**Functions.** ``f(F) b ≈ ‖b‖ V f(T) e_1``, exact from the same m on. For ``(F + cI)^(-1/2)`` the error falls at least
like ``exp(-2 m √(c / λ_max))``, and far faster where few eigenvalues stand out.

Products in single precision leave eigenvalues below 1e-7 of the largest one undetermined. The basis takes ``8 m k``
bytes. Sources: Golub & Meurant, *Matrices, Moments and Quadrature* (1994); Ubaru, Chen & Saad (2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_info.functional.spectrum import Spectrum

BREAKDOWN = 1e-13
"""A remainder of this share of the largest entry of T is rounding: the vectors found span all that b reaches."""


@dataclass(frozen=True)
class Tridiagonal:
    """What m steps of Lanczos' method found.

    Attributes:
        alpha: ``(m,)`` float64 on the CPU, the diagonal of T.
        beta: ``(m,)`` likewise, beside the diagonal; the last one would couple the next step, and is 0 where there is
            none, as b reaches no further: all is exact.
        basis: ``(m, k)`` float64, the rows orthonormal: Vᵀ.
        norm: ``‖b‖``.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor
    norm: float

    def first(self, steps: int) -> Tridiagonal:
        """What that many steps would have found."""
        return Tridiagonal(self.alpha[:steps], self.beta[:steps], self.basis[:steps], self.norm)

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Ritz values ``(m,)`` in ascending order and eigenvectors ``(m, m)`` of T."""
        return _eigh(self.alpha, self.beta[:-1])


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tridiagonal:
    """Lanczos' method with full reorthogonalisation.

    Args:
        product: ``(k,) -> (k,)``, multiplies with a symmetric positive semi-definite matrix; called ``steps`` times.
        start: b, ``(k,)``.
        steps: m; k at most are made.

    Raises:
        ValueError: A start of length 0, fewer than one step, or a product that is not finite.
    """
    b = start.detach().double()
    norm = b.norm().item()
    if not 0 < norm < torch.inf:
        raise ValueError(f"lanczos: the start has length {norm}; it has to be positive and finite")
    if steps < 1:
        raise ValueError(f"lanczos: steps={steps}; give at least 1, for example steps=32")
    steps = min(steps, len(b))
    basis = torch.empty(steps, len(b), dtype=b.dtype, device=b.device)
    alpha, beta = torch.zeros(2, steps, dtype=torch.float64)
    basis[0] = b / norm
    for j in range(steps):
        known = basis[: j + 1]
        w = product(known[j]).detach().to(b)
        alpha[j] = w @ known[j]
        if not alpha[j].isfinite():
            raise ValueError(f"lanczos: the product of step {j + 1} is not finite")
        for _ in range(2):  # what rounding leaves of the first pass, the second removes
            w = w - known.T @ (known @ w)
        rest = w.norm()
        if rest <= BREAKDOWN * max(alpha.max(), beta.max()):
            return Tridiagonal(alpha[: j + 1], beta[: j + 1], known, norm)
        beta[j] = rest
        if j + 1 < steps:
            basis[j + 1] = w / rest
    return Tridiagonal(alpha, beta, basis, norm)


def quadrature(tridiagonal: Tridiagonal) -> Spectrum:
    """The spectrum as the start sees it, by the Gauss-Radau rule with a node at 0.

    Sums over its eigenvalues estimate those over all k of them if the start was drawn from random signs or from a
    normal distribution, whose run serves :func:`~.weight_noise.lanczos_posterior_noise` too.

    Raises:
        ValueError: An eigenvalue is negative beyond rounding.
    """
    weights = tridiagonal.basis.shape[1]
    alpha, beta = tridiagonal.alpha, tridiagonal.beta
    pivot = alpha[0]  # of T = L D Lᵀ
    for a, b in zip(alpha[1:], beta[:-1], strict=True):
        pivot = a - b.square() / pivot
    if beta[-1] > 0 and pivot > BREAKDOWN * alpha.max():
        nodes, vectors = _eigh(torch.cat([alpha, (beta[-1].square() / pivot).unsqueeze(0)]), beta)
        nodes[0] = 0
    else:  # T is the whole, or has its node at 0 already
        nodes, vectors = tridiagonal.eigh()
    return Spectrum(nodes, weights, weights * vectors[0].square())


def spectra(
    product: Callable[[Tensor], Tensor],
    weights: int,
    steps: int,
    probes: int,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[Spectrum]:
    """Independent estimates of one spectrum, each from a start of random signs.

    The mean of a sum over eigenvalues estimates it (:meth:`~.spectrum.Spectrum.average` gives all such means at once),
    with the standard error ``sd / √probes``. Signs, as their variance ``2 (‖A‖² - sum_i A_ii²)`` of ``A = f(F)`` is at
    most that of a normal start, and 0 for any diagonal matrix.

    Args:
        product: As for :func:`lanczos`.
        weights: k.
        steps: m, products for each probe.
        probes: How many.
        generator: Source of the signs; the global generator of the CPU if None.
        device: Where the basis is kept.
    """
    source = torch.device("cpu") if generator is None else generator.device
    found = []
    for _ in range(probes):
        bits = torch.randint(0, 2, (weights,), generator=generator, device=source)
        found.append(quadrature(lanczos(product, (2.0 * bits - 1.0).to(device), steps)))
    return found


def function_times(tridiagonal: Tridiagonal, f: Callable[[Tensor], Tensor]) -> Tensor:
    """``f(F) b``, ``(k,)`` float64, as ``‖b‖ V f(T) e_1``.

    The difference from that of :meth:`Tridiagonal.first` tells how far it has converged.

    Args:
        tridiagonal: Of a run from b.
        f: Elementwise; takes Ritz values, which may be negative by rounding.
    """
    values, vectors = tridiagonal.eigh()
    coefficients = tridiagonal.norm * (vectors @ (f(values) * vectors[0]))
    return coefficients.to(tridiagonal.basis.device) @ tridiagonal.basis


def _eigh(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(beside, -1))  # reads the lower triangle
    return values, vectors
