"""The Fisher information of the weights, as needed for the information in them: its spectrum, and noise with ``Σ*``.

There are four methods, chosen by size before the first step and shown to the user:

- ``"matrix"``: all k x k elements, for few weights;
- ``"gram"``: the Gram matrix ``A Aᵀ`` of the factor A, ``F = AᵀA / N``, of some samples: its rows are the gradients of
  every output of each sample (C - 1 for C classes), exact;
- ``"lanczos"``: products with F only, for more outputs than gradients can be computed; random probes, with an error;
- ``"diagonal"``: the diagonal of F in place of F, if nothing else fits, or on request; also for modules without second
  derivatives, which drawing the noise needs in the previous two methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.functional.fisher import exact_cotangents, fisher_cotangent
from lightning_info.functional.lanczos import Eigenpairs, converged, lanczos, quadrature, runs
from lightning_info.functional.likelihoods import LikelihoodLike, likelihood_named
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.spectrum_bracket import SpectrumBracket
from lightning_info.functional.weight_noise import diagonal_noise, full_noise, lanczos_noise, low_rank_noise
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.fisher_products import (
    FactorEngineName,
    FisherProducts,
    RowProducts,
    outer_products,
    with_all_outputs,
)
from lightning_info.gradients.gram import GramPlan, choose_gram_engine
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.real import sizes
from lightning_info.replica.prediction import Prediction
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

CurvatureName = Literal["matrix", "gram", "lanczos", "diagonal"]

MATRIX_WEIGHTS = 1024
"""Largest number of weights for which the whole matrix is formed: it decomposes faster than the Gram matrix."""
MOST_ROWS = 1280
"""Most rows of a Gram matrix: 128 samples of ten classes, decomposed in half a second; twice as many take four."""
PRODUCTS = 5e12
"""Largest number of multiply-adds, k R² for R rows, for a Gram matrix."""
FEWEST_SAMPLES = 16
"""Fewest samples of a Gram matrix; with fewer, Lanczos over all of them says more."""
EXACT_OUTPUTS = 32
"""Largest number of outputs of a sample of which the diagonal uses all."""
STEPS, PROBES = 32, 4
"""Settings of Lanczos: 1-3 % error in the KL of small trained nets, 640 forward and backward passes (benchmarks)."""
BASIS = 1 << 33
"""Largest size of its vectors in bytes (8 GiB, 16 million weights); beyond that the diagonal is used."""

Noise = Callable[[float, float], Tensor]
"""Function ``(β, λ) -> (k,)``: the noise from one z, on the device of the weights, float64."""


@dataclass
class Curvature(ABC):
    """F as a mean over some samples.

    Attributes:
        snapshot: A snapshot with exactly these samples, and a private replica.
        spectra: Spectra of F; several if they are random estimates, whose mean counts.
    """

    snapshot: ModelSnapshot
    spectra: list[Spectrum]

    @property
    def spectrum(self) -> Spectrum:
        """All spectra as one."""
        return Spectrum.average(self.spectra) if len(self.spectra) > 1 else self.spectra[0]

    @abstractmethod
    def noise(self, z: Tensor, training_samples: float) -> Noise:
        """Return weight noise for the summed loss of N training samples, which these samples represent.

        Args:
            z: ``(k,)``, standard normal, on the CPU.
            training_samples: N.
        """


@dataclass
class MatrixCurvature(Curvature):
    """F by all its eigenvalues and eigenvectors ``(k, k)``."""

    eigenvalues: Tensor
    eigenvectors: Tensor

    def noise(self, z: Tensor, training_samples: float) -> Noise:  # noqa: D102
        h, z = training_samples * self.eigenvalues, z.to(self.eigenvalues)
        return lambda beta, lambda_: full_noise(z, h, self.eigenvectors, beta, lambda_)


@dataclass
class GramCurvature(Curvature):
    """F by eigenvalues and eigenvectors ``(R, R)`` of the Gram matrix ``A Aᵀ``, for sample outputs of this shape."""

    eigenvalues: Tensor
    eigenvectors: Tensor
    outputs: tuple[int, ...]

    def noise(self, z: Tensor, training_samples: float) -> Noise:  # noqa: D102
        mu, u, scale = self.eigenvalues, self.eigenvectors, training_samples / self.snapshot.size
        z = z.to(mu)
        along = torch.cat([products(z) for products in self._products()])
        return lambda beta, lambda_: low_rank_noise(z, along, self._transposed, mu, u, beta, lambda_, scale=scale)

    def _products(self) -> Iterator[RowProducts]:
        for batch in self.snapshot.parts():
            columns = _columns(self.snapshot.predictor(self.snapshot.module, batch))
            columns = with_all_outputs(columns, len(self.eigenvalues) // self.snapshot.size, self.outputs)
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                products = RowProducts(self.snapshot.module, self.snapshot.outputs, batch, columns)
            yield products

    def _transposed(self, v: Tensor) -> Tensor:
        total, first = torch.zeros(self.spectrum.weights, dtype=torch.float64, device=v.device), 0
        for products in self._products():
            count = products.columns.shape[0] * products.columns.shape[1]
            total += products.transposed(v[first : first + count])
            first += count
        return total


@dataclass
class LanczosCurvature(Curvature):
    """F by products with it, and the eigenvectors found on the way.

    Attributes:
        bracket: The mean of the spectra by the rule in use and by Gauss' rule, between which the truth lies.
    """

    product: FisherProducts
    known: Eigenpairs
    bracket: SpectrumBracket

    def noise(self, z: Tensor, training_samples: float) -> Noise:  # noqa: D102
        run = lanczos(self.product, z.to(self.known.vectors), STEPS, self.known)
        return lambda beta, lambda_: lanczos_noise(run, beta, lambda_, scale=training_samples)


@dataclass
class DiagonalCurvature(Curvature):
    """F by its diagonal ``(k,)``."""

    diagonal: Tensor

    def noise(self, z: Tensor, training_samples: float) -> Noise:  # noqa: D102
        z = z.to(self.diagonal)
        return lambda beta, lambda_: diagonal_noise(z, training_samples * self.diagonal, beta, lambda_)


@dataclass
class CurvaturePlan:
    """Plan of how F will be measured.

    Attributes:
        name: One of the four methods.
        samples: Number of samples; for ``"gram"`` the first of the largest group of equal shapes.
        each: Rows of A for a sample: one for each output, C - 1 for C classes.
        weights: k, when the plan was made.
        rows: The engine of the per-output gradients; None for ``"lanczos"``.
    """

    name: CurvatureName
    samples: int
    each: int
    weights: int
    rows: GramPlan | None

    @property
    def size(self) -> int:
        """Size of the matrix whose eigenvectors are computed; 0 if there is none."""
        return {"gram": self.samples * self.each, "matrix": self.weights}.get(self.name, 0)

    def describe(self) -> str:
        """Describe the plan for the user."""
        of = f"F of {self.samples} samples"
        return {
            "matrix": f"all elements of {of}, exact",
            "gram": f"spectrum of {of} by their {self.samples * self.each} per-output gradients, exact",
            "lanczos": f"spectrum of {of} by {PROBES} random probes and {STEPS} Lanczos steps each, with its error",
            "diagonal": f"the diagonal of {of} in place of F: everything refers to the diagonal",
        }[self.name]

    def measure(self, snapshot: ModelSnapshot, generator: Generator) -> Curvature:
        """Measure F at the weights of a replica.

        Args:
            snapshot: A snapshot with a private replica and the reference samples.
            generator: Generator of the random probes.

        Raises:
            Unavailable: Outputs or gradients are not finite; there are no samples.
            NotCovered: The gradients of the replica can no longer be computed.
        """
        if not snapshot.groups:
            raise Unavailable("no reference samples could be kept")
        whole = snapshot.on(snapshot.groups)
        if self.name == "lanczos":
            return self._by_products(whole, generator)
        weights = num_weights(snapshot)
        if self.name == "gram":
            some = whole.on([take(max(snapshot.groups, key=num_samples), slice(0, self.samples))])
            batch = snapshot.to_device(some.groups[0])
            columns = finite_columns(snapshot, batch)
            values, vectors = decomposed(self._rows.gram(snapshot.module, snapshot.outputs, batch, columns).matrix)
            spectrum = Spectrum(values / some.size, weights)
            return GramCurvature(some, [spectrum], values, vectors, tuple(columns.shape[2:]))
        if self.name == "matrix":
            values, vectors = decomposed(self.matrix(whole) / whole.size)
            return MatrixCurvature(whole, [Spectrum(values, weights)], values, vectors)
        diagonal = self.diagonal(whole, generator)
        return DiagonalCurvature(whole, [Spectrum(diagonal, weights)], diagonal)

    @property
    def _rows(self) -> GramPlan:
        assert self.rows is not None
        return self.rows

    def matrix(self, snapshot: ModelSnapshot) -> Tensor:
        """Return N times F, ``(k, k)`` float64, for the method ``"matrix"``. Raises as :meth:`measure`."""
        engine = cast(FactorEngineName, self._rows.engine)
        total = torch.zeros(num_weights(snapshot), num_weights(snapshot), dtype=torch.float64, device=snapshot.device)
        for batch in snapshot.parts():
            total += outer_products(snapshot.module, snapshot.outputs, batch, finite_columns(snapshot, batch), engine)
        return total

    def _by_products(self, snapshot: ModelSnapshot, generator: Generator) -> LanczosCurvature:
        product = fisher_products(snapshot)
        product.check()
        normal = (torch.randn(product.weights, generator=generator) for _ in range(PROBES + 1))
        found, gauss = [], []
        try:
            for run in runs(product, (z.to(snapshot.device).double() for z in normal), STEPS):
                found.append(quadrature(run))
                gauss.append(quadrature(run, "gauss"))
                known = converged(run).largest(min(STEPS, product.weights - 1))
        except ValueError as error:
            raise Unavailable(f"the spectrum of F is not finite ({error})") from error
        bracket = SpectrumBracket(Spectrum.average(found), Spectrum.average(gauss))
        return LanczosCurvature(snapshot, found, product, known, bracket)

    def diagonal(self, snapshot: ModelSnapshot, generator: Generator) -> Tensor:
        """Return the diagonal of F, ``(k,)`` float64, for the method ``"diagonal"``.

        It is exact for few outputs, otherwise from one random cotangent per sample, which is unbiased. Raises as
        :meth:`measure`.
        """
        total = torch.zeros(num_weights(snapshot), dtype=torch.float64, device=snapshot.device)
        for batch in snapshot.parts():
            prediction = _finite(snapshot.predictor(snapshot.module, batch))
            columns = _columns(prediction) if self.each <= EXACT_OUTPUTS else _random_column(prediction, generator)
            squares = self._rows.diagonal(snapshot.module, snapshot.outputs, batch, columns)
            total += torch.cat([squares[name].flatten() for name in trainable(snapshot.module)])
        diagonal = total / snapshot.size
        if not diagonal.isfinite().all():
            raise Unavailable("gradients of some reference samples are not finite")
        return diagonal


def choose_curvature(
    snapshot: ModelSnapshot, samples: int, name: CurvatureName | Literal["auto"] = "auto", max_rows: int | None = None
) -> CurvaturePlan:
    """Choose by size how F is measured, and which engine computes the gradients.

    Args:
        snapshot: A snapshot with a few samples.
        samples: Expected number of reference samples.
        name: ``"auto"``, or the method to use.
        max_rows: Largest number of rows of a Gram matrix; the default is :data:`MOST_ROWS`, and fewer for many weights.

    Raises:
        NotCovered: No engine computes the gradients exactly, there are too many outputs for the requested method, or an
            operator lacks the second derivative that drawing the noise needs.
    """
    few = snapshot.first(min(CHECK_SAMPLES, snapshot.chunk))
    batch = snapshot.to_device(few.groups[0])
    prediction = snapshot.predictor(snapshot.module, batch)
    each = likelihood_named(prediction.likelihood, "choose_curvature").root_columns(prediction.outputs)
    weights = num_weights(snapshot)
    most = max_rows or int(min(MOST_ROWS, math.sqrt(PRODUCTS / max(1, weights))))
    some = min(samples, most // each)
    if name == "auto":
        name = _by_size(weights, samples, each, some)
        if name in ("gram", "lanczos") and not _is_twice_differentiable(few):
            name = "diagonal"
    elif name in ("gram", "lanczos"):
        fisher_products(few).check()
    if name == "matrix":
        return CurvaturePlan(name, samples, each, weights, _row_engine(snapshot, batch))
    if name == "lanczos":
        return CurvaturePlan(name, samples, each, weights, None)
    if name == "gram" and some < 1:
        raise NotCovered(
            f"a sample has {each} gradients, one for each output or class but one, and a Gram matrix "
            f"takes {most} here; choose curvature='lanczos', which needs none"
        )
    size = some if name == "gram" else samples
    rows = snapshot.once("gram engine", lambda: choose_gram_engine(snapshot.module, snapshot.outputs, batch))
    return CurvaturePlan(name, size, each, weights, rows)


def _by_size(weights: int, samples: int, each: int, in_gram: int) -> CurvatureName:
    if weights <= min(MATRIX_WEIGHTS, samples * each):
        return "matrix"
    if in_gram >= min(FEWEST_SAMPLES, samples):
        return "gram"
    return "lanczos" if 16 * STEPS * weights <= BASIS else "diagonal"


def _is_twice_differentiable(snapshot: ModelSnapshot) -> bool:
    def is_it() -> bool:
        try:
            fisher_products(snapshot).check()
        except NotCovered:
            return False
        return True

    return snapshot.once("twice differentiable", is_it)


def num_weights(snapshot: ModelSnapshot) -> int:
    """Return k, the number of trainable weights, with both parts of complex ones."""
    return sum(sizes(trainable(snapshot.module).values()))


def _row_engine(snapshot: ModelSnapshot, batch: Any) -> GramPlan:
    def choose() -> GramPlan:
        try:
            return choose_gram_engine(snapshot.module, snapshot.outputs, batch, "func")
        except NotCovered:
            return choose_gram_engine(snapshot.module, snapshot.outputs, batch, "loop")

    return snapshot.once("row engine", choose)


def fisher_products(snapshot: ModelSnapshot) -> FisherProducts:
    """Return products with F over all reference samples; they raise Unavailable if outputs are not finite."""

    def predict(module: nn.Module, batch: Any) -> tuple[Tensor, LikelihoodLike, Tensor | None]:
        prediction = _finite(snapshot.predictor(module, batch))
        return prediction.outputs, prediction.likelihood, prediction.mask

    return FisherProducts(snapshot.module, predict, snapshot.parts)


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues ``(k,)`` and eigenvectors ``(k, k)``.

    Raises:
        Unavailable: The matrix is not finite.
    """
    if not matrix.isfinite().all():
        raise Unavailable("gradients of some reference samples are not finite")
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _finite(prediction: Prediction) -> Prediction:
    if not prediction.outputs.isfinite().all():
        raise Unavailable("some outputs of the reference samples are not finite")
    return prediction


def finite_columns(snapshot: ModelSnapshot, batch: Any) -> Tensor:
    """Return exact cotangents ``(C, N, ...)`` float64 of a batch.

    Raises:
        Unavailable: Some outputs are not finite.
    """
    return _columns(_finite(snapshot.predictor(snapshot.module, batch)))


def _columns(prediction: Prediction) -> Tensor:
    """Return exact cotangents ``(C, N, ...)`` float64."""
    return torch.stack(list(exact_cotangents(prediction.outputs, prediction.likelihood, prediction.mask)))


def _random_column(prediction: Prediction, generator: Generator) -> Tensor:
    outputs, likelihood, mask = prediction.outputs, prediction.likelihood, prediction.mask
    return fisher_cotangent(outputs, likelihood, "rademacher", generator=generator, mask=mask).unsqueeze(0)
