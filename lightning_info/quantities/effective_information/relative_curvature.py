r"""The Fisher information of relative weights, ``v = w / λ``, for a prior with its own deviation for each weight.

With ``Λ = diag(λ)`` the Fisher information in v is ``ΛFΛ``, and the prior has the deviation 1 in all directions:

.. math:: \Sigma^* = \Lambda\,(I + \Lambda H \Lambda / \beta)^{-1} \Lambda .

So the noise of w is λ times the noise that a curvature of v draws at ``(β, 1)``. With ``λ_i = |w_i|``, rescaling the
units of a ReLU network changes neither ``ΛFΛ`` nor a relative change of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Generator, Tensor

from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_noise import low_rank_noise
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.fisher_products import FactorEngineName, factor_matrix
from lightning_info.quantities.weight_information.curvature import (
    FEWEST_SAMPLES,
    MOST_ROWS,
    Curvature,
    CurvaturePlan,
    DiagonalCurvature,
    MatrixCurvature,
    Noise,
    choose_curvature,
    decomposed,
    finite_columns,
    num_weights,
)
from lightning_info.replica.snapshot import ModelSnapshot

NoiseName = Literal["diagonal", "low_rank", "full"]

FULL_WEIGHTS = 2048
"""Largest number of weights for which the whole matrix is decomposed, which takes seconds."""
KEPT = 1 << 27
"""Largest number of elements of the factor A (1 GiB)."""


class TooLarge(NotCovered):
    """The network has too many weights for the requested noise; the message says which one fits."""


@dataclass
class FactorCurvature(Curvature):
    """F by its factor A ``(R, k)``, ``F = AᵀA / N``, and eigenvalues and eigenvectors ``(R, R)`` of ``A Aᵀ``."""

    rows: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    def noise(self, z: Tensor, training_samples: float) -> Noise:  # noqa: D102
        mu, u, scale = self.eigenvalues, self.eigenvectors, training_samples / self.snapshot.size
        z = z.to(mu)
        along = self.rows @ z
        return lambda beta, lambda_: low_rank_noise(z, along, self.rows.T.mv, mu, u, beta, lambda_, scale=scale)


def choose_relative_curvature(snapshot: ModelSnapshot, samples: int, noise: NoiseName) -> CurvaturePlan:
    """Choose how F is measured for a kind of noise.

    Args:
        snapshot: A snapshot with a few samples.
        samples: Expected number of reference samples.
        noise: ``"diagonal"``, ``"low_rank"`` (F of as many samples as fit, by its factor A), or ``"full"`` (all
            elements).

    Raises:
        TooLarge: There are too many weights for ``"low_rank"`` or ``"full"``.
        NotCovered: No engine computes the gradients exactly.
    """
    weights = num_weights(snapshot)
    if noise == "diagonal":
        return choose_curvature(snapshot, samples, "diagonal")
    if noise == "full" and weights > FULL_WEIGHTS:
        raise TooLarge(
            f"noise='full' decomposes a matrix of all pairs of weights, which is done for up to {FULL_WEIGHTS:,}, not "
            f"for {weights:,}; choose noise='low_rank', or noise='diagonal' for any size"
        )
    plan = choose_curvature(snapshot, samples, "matrix")
    if noise == "full":
        return plan
    some = min(samples, min(MOST_ROWS, KEPT // weights) // plan.each)
    if some < min(FEWEST_SAMPLES, samples):
        raise TooLarge(
            f"noise='low_rank' keeps the gradient of each output (a sample has {plan.each}), with {weights:,} numbers "
            f"each: there is memory for {some} samples, and fewer than {FEWEST_SAMPLES} say too "
            f"little; choose noise='diagonal'"
        )
    return replace(plan, name="gram", samples=some)


def measure_relative_curvature(
    plan: CurvaturePlan, snapshot: ModelSnapshot, generator: Generator, prior: Tensor
) -> Curvature:
    """Measure F of the relative weights at the weights of a replica.

    Args:
        plan: Result of :func:`choose_relative_curvature`.
        snapshot: A snapshot with a private replica and the reference samples.
        generator: Generator of random cotangents, if a diagonal uses them.
        prior: λ, ``(k,)`` float64; a weight at which it is 0 has no noise.

    Raises:
        Unavailable: Outputs or gradients are not finite; there are no samples.
        NotCovered: The gradients of the replica can no longer be computed.
    """
    whole = snapshot.on(snapshot.groups)
    if plan.name == "diagonal":
        diagonal = plan.diagonal(whole, generator) * prior.square()
        return DiagonalCurvature(whole, [Spectrum(diagonal, len(prior))], diagonal)
    if plan.name == "matrix":
        values, vectors = decomposed(plan.matrix(whole) / whole.size * prior * prior[:, None])
        return MatrixCurvature(whole, [Spectrum(values, len(prior))], values, vectors)
    some = whole.on([take(max(snapshot.groups, key=num_samples), slice(0, plan.samples))])
    batch = snapshot.to_device(some.groups[0])
    assert plan.rows is not None
    engine = cast(FactorEngineName, plan.rows.engine)
    rows = prior * factor_matrix(snapshot.module, snapshot.outputs, batch, finite_columns(snapshot, batch), engine)
    values, vectors = decomposed(rows @ rows.T)
    return FactorCurvature(some, [Spectrum(values / some.size, len(prior))], rows, values, vectors)
