r"""Spectrum and functions of a positive semi-definite matrix F that is only known by products ``F v``.

m steps of Lanczos' method from a start b give orthonormal ``V (k, m)`` and a tridiagonal ``T = Vᵀ F V``.

**Spectrum.** Seen from b, the spectrum is a measure of mass 1, and T gives a quadrature rule for it with nodes
``θ_i`` and weights ``τ_i`` (squares of the first components of eigenvectors):

.. math:: b^\top f(F)\, b = \|b\|^2 \sum_i \tau_i f(\theta_i) + \text{error} .

For random signs, or a normal b scaled to the length √k, the left side has the expectation ``tr f(F)``, so ``k τ_i`` is
the multiplicity of the node ``θ_i`` (stochastic Lanczos quadrature). Two errors come with it:

- *of the probes*, of variance ``2 (‖A‖² - sum_i A_ii²)`` for signs, ``A = f(F)``: few large eigenvalues make it large.
  Those that earlier runs have found (:func:`converged`) count once each, and a run looks at what is orthogonal to them
  (:class:`Eigenpairs`). The spectra of several starts scatter by what is left, and show it;
- *of the rule*, a bias that no number of probes reduces. T alone gives Gauss' rule, exact for polynomials up to degree
  2m - 1. As no eigenvalue is below 0, m products also give the Gauss-Radau rule with a node at 0, exact up to 2m. It is
  the one used: a Fisher information has zero eigenvalues in plenty, and Gauss' rule puts its least node above them all.
  Its ``log det(F + cI)`` is never too large, that of Gauss' rule never too small (the signs of the derivatives of the
  logarithm). How far it is shows beside :meth:`Tridiagonal.first` of half the steps, whose error is the larger one.

The trace has no bias. Everything is exact once m reaches the number of distinct eigenvalues, 0 included.

**Functions.** ``f(F) b ≈ ‖b‖ V f(T) e_1``, exact from the same m on. For ``(F + cI)^(-1/2)`` the error falls at least
like ``exp(-2 m √(c / λ_max))``, and far faster where few eigenvalues stand out.

Products in single precision leave eigenvalues below 1e-7 of the largest one undetermined. The basis takes ``8 m k``
bytes. Sources: Golub & Meurant, *Matrices, Moments and Quadrature* (1994); Ubaru, Chen & Saad (2017); Gambhir,
Stathopoulos & Orginos, *Deflation as a method of variance reduction* (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from lightning_info.functional.spectrum import Spectrum
from lightning_info.validation import one_of

BREAKDOWN = 1e-13
"""Share of the largest eigenvalue below which a remainder is rounding: the vectors found span all that b reaches."""


class Eigenpairs(NamedTuple):
    """Eigenvalues ``(j,)`` on the CPU and eigenvectors ``(j, k)``, orthonormal rows, that are known of a matrix."""

    values: Tensor
    vectors: Tensor

    def largest(self, count: int) -> Eigenpairs:
        """Return those with the largest eigenvalues, at most ``count``."""
        order = self.values.argsort(descending=True)[:count]
        return Eigenpairs(self.values[order], self.vectors[order.to(self.vectors.device)])


@dataclass(frozen=True)
class Tridiagonal:
    """Result of m steps of Lanczos' method, orthogonal to what was known.

    Attributes:
        alpha: ``(m,)`` float64 on the CPU, the diagonal of T.
        beta: ``(m,)`` likewise, beside the diagonal; the last one would couple the next step, and is 0 where there is
            none, as b reaches no further: all is exact.
        basis: ``(m, k)`` float64, the rows orthonormal: Vᵀ.
        norm: ``‖b‖``, without b's components along the known eigenvectors.
        known: These eigenvectors, with their eigenvalues; j of them.
        components: Components of b along them, ``(j,)``.
    """

    alpha: Tensor
    beta: Tensor
    basis: Tensor
    norm: float
    known: Eigenpairs
    components: Tensor

    def first(self, steps: int) -> Tridiagonal:
        """Return what ``steps`` steps would have found."""
        shorter = self.alpha[:steps], self.beta[:steps], self.basis[:steps]
        return Tridiagonal(*shorter, self.norm, self.known, self.components)

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Ritz values ``(m,)`` in ascending order and eigenvectors ``(m, m)`` of T."""
        return _eigh(self.alpha, self.beta[:-1])


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int, known: Eigenpairs | None = None
) -> Tridiagonal:
    """Lanczos' method with full reorthogonalisation.

    Args:
        product: ``(k,) -> (k,)``, multiplies with a symmetric positive semi-definite matrix; called ``steps`` times.
        start: b, ``(k,)``.
        steps: m, at most the remaining dimensions of k.
        known: Eigenpairs of the matrix that are known already.

    Raises:
        ValueError: A start of length 0 (or with nothing but known eigenvectors), fewer than one step, or a product
            that is not finite.
    """
    b = start.detach().double()
    known = known or Eigenpairs(torch.empty(0, dtype=b.dtype), b.new_empty(0, len(b)))
    components = known.vectors @ b
    rest, length = _without(b, known.vectors), b.norm().item()
    norm = rest.norm().item()
    if not BREAKDOWN * length < norm < torch.inf:
        raise ValueError(f"lanczos: the start has length {norm}, without known eigenvectors; it needs a positive one")
    if steps < 1:
        raise ValueError(f"lanczos: steps={steps}; give at least 1, for example steps=32")
    steps = min(steps, len(b) - len(known.values))
    basis = b.new_empty(steps, len(b))
    alpha, beta = torch.zeros(2, steps, dtype=torch.float64)
    largest = known.values.max().item() if len(known.values) else 0.0
    for j in range(steps):
        basis[j] = rest / norm if j == 0 else rest / beta[j - 1].item()
        image = product(basis[j]).detach().to(b)
        alpha[j] = (image @ basis[j]).item()
        if not alpha[j].isfinite():
            raise ValueError(f"lanczos: the product of step {j + 1} is not finite")
        rest = _without(image, known.vectors, basis[: j + 1])
        beta[j] = rest.norm().item()
        largest = max(largest, alpha[j].item(), beta[j].item())
        if beta[j] <= BREAKDOWN * largest:
            beta[j] = 0
            return Tridiagonal(alpha, beta, basis, norm, known, components).first(j + 1)
    return Tridiagonal(alpha, beta, basis, norm, known, components)


def converged(tridiagonal: Tridiagonal, tolerance: float = 1e-3) -> Eigenpairs:
    """Return the eigenpairs that are known after a run: those before it, and its Ritz pairs that have converged.

    Args:
        tridiagonal: Result of the run.
        tolerance: Largest ``‖F u - θ u‖ / θ``. The error of θ is of the order of its square, that of u proportional to
            it.
    """
    values, vectors = tridiagonal.eigh()
    found = tridiagonal.beta[-1] * vectors[-1].abs() <= tolerance * values
    pairs = vectors[:, found].T.to(tridiagonal.basis.device) @ tridiagonal.basis
    known = tridiagonal.known
    return Eigenpairs(torch.cat([known.values, values[found]]), torch.cat([known.vectors, pairs]))


def quadrature(tridiagonal: Tridiagonal, rule: Literal["radau", "gauss"] = "radau") -> Spectrum:
    """Return the spectrum as the start sees it, by the Gauss-Radau rule with a node at 0, or by Gauss' rule.

    Sums over its eigenvalues estimate those over all k of them if the start was drawn from random signs or from a
    normal distribution, whose run serves :func:`~.weight_noise.lanczos_noise` too. The known eigenvalues
    count once each. What the two rules say lies on either side of what the start would say without an error of the
    rule (:mod:`~.spectrum_bracket`).

    Args:
        tridiagonal: Result of the run.
        rule: The quadrature rule.

    Raises:
        ValueError: An eigenvalue is negative beyond rounding; no such rule.
    """
    one_of("quadrature", "rule", rule, ("radau", "gauss"))
    known, weights = tridiagonal.known.values, tridiagonal.basis.shape[1]
    alpha, beta = tridiagonal.alpha, tridiagonal.beta
    pivot = alpha[0]  # of T = L D Lᵀ
    for a, b in zip(alpha[1:], beta[:-1], strict=True):
        pivot = a - b.square() / pivot
    if rule == "radau" and beta[-1] > 0 and pivot > BREAKDOWN * alpha.max():
        nodes, vectors = _eigh(torch.cat([alpha, (beta[-1].square() / pivot).unsqueeze(0)]), beta)
        nodes[0] = 0
    else:  # Gauss' rule; or T is the whole, or has its node at 0 already, so both are the same
        nodes, vectors = tridiagonal.eigh()
    multiplicities = (weights - len(known)) * vectors[0].square()
    return Spectrum(torch.cat([known, nodes]), weights, torch.cat([torch.ones_like(known), multiplicities]))


def runs(product: Callable[[Tensor], Tensor], starts: Iterable[Tensor], steps: int) -> Iterator[Tridiagonal]:
    """Yield one run for each start but the first, deflated by the eigenvectors that the earlier runs found.

    The first run only finds eigenvectors. With normal starts z, every further one gives an estimate of the spectrum
    (:func:`quadrature`) and a draw of weight noise at any level (:func:`~.weight_noise.lanczos_noise`).

    Args:
        product: Product as for :func:`lanczos`; called ``steps`` times for each start.
        starts: b, ``(k,)`` each.
        steps: m. Up to m eigenvectors, those with the largest eigenvalues, are kept beside a run's basis: ``16 m k``
            bytes.
    """
    known: Eigenpairs | None = None
    for start in starts:
        run = lanczos(product, start, steps, known)
        if known is not None:
            yield run
        known = converged(run).largest(min(steps, len(start) - 1))


def spectra(
    product: Callable[[Tensor], Tensor],
    weights: int,
    steps: int,
    probes: int,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[Spectrum]:
    """Estimates of one spectrum, from :func:`runs` from random signs.

    The mean of a sum over eigenvalues estimates it (:meth:`~.spectrum.Spectrum.average` gives all such means at once),
    with the standard error ``sd / √probes``: later estimates scatter less, and are uncorrelated with earlier ones.
    Signs, as their variance is at most that of a normal start, and 0 for any diagonal matrix.

    Args:
        product: Product as for :func:`lanczos`; called ``steps · (probes + 1)`` times.
        weights: k.
        steps: m, of each run.
        probes: Number of estimates.
        generator: Source of the signs; the global generator of the CPU if None.
        device: Device of the vectors.
    """
    source = torch.device("cpu") if generator is None else generator.device
    bits = (torch.randint(0, 2, (weights,), generator=generator, device=source) for _ in range(probes + 1))
    starts = ((2 * some - 1).to(device, torch.float64) for some in bits)
    return [quadrature(run) for run in runs(product, starts, steps)]


def function_times(tridiagonal: Tridiagonal, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``f(F) b``, ``(k,)`` float64, as ``‖b‖ V f(T) e_1`` beside ``U f(Θ) Uᵀb`` of the known eigenvectors U.

    The difference from that of :meth:`Tridiagonal.first` shows how far it has converged.

    Args:
        tridiagonal: Result of a run from b.
        f: Elementwise; takes Ritz values, which may be negative by rounding.
    """
    basis, known = tridiagonal.basis, tridiagonal.known
    values, vectors = tridiagonal.eigh()
    coefficients = tridiagonal.norm * (vectors @ (f(values) * vectors[0]))
    along = f(known.values).to(basis.device) * tridiagonal.components
    return coefficients.to(basis.device) @ basis + along @ known.vectors


def _eigh(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(beside, -1))  # reads the lower triangle
    return values, vectors


def _without(vector: Tensor, *rows: Tensor) -> Tensor:
    """Return the part of a vector orthogonal to orthonormal rows; the second pass removes what rounding leaves."""
    for some in (*rows, *rows):
        vector = vector - (some @ vector) @ some
    return vector
