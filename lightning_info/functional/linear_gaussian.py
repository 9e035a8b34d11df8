r"""Information of a linear layer with Gaussian noise, exactly; and of any noisy layer as if it were Gaussian.

With inputs ``X ~ N(0, Σ)``, a layer ``T = W X + N(0, σ² I)`` and a teacher ``Y = W_o X + N(0, σ_o² I)``, everything is
jointly Gaussian:

.. math:: I(T;X) = \tfrac12 \log\det(I + W \Sigma W^\top / \sigma^2), \qquad
          I(T;Y) = I(T;X) - \tfrac12 \log\det(I + W \Sigma_{X|Y} W^\top / \sigma^2) .

The inputs of the paper have ``Σ = I / D``. W is the product of the weights up to the layer, ``(H, D)``.

Source: Saxe et al. (2018), eq. 6-11, corrected (``docs/errata.md``); :func:`gaussian_information` is not theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from typing_extensions import override

from lightning_info.functional.binning import Information, as_rows
from lightning_info.functional.code_information import class_labels, code_information
from lightning_info.functional.information_estimator import InformationEstimator, LayerInformation
from lightning_info.functional.units import Unit, per_nat


def linear_information(
    w: Tensor,
    input_cov: Tensor,
    noise_variance: float,
    teacher: Tensor | None = None,
    teacher_noise_variance: float = 0.0,
    *,
    unit: Unit = "bits",
) -> Information:
    """Return I(X;T) and I(T;Y) of a linear layer, its teacher's output being Y.

    Args:
        w: W, ``(H, D)``.
        input_cov: Σ, ``(D, D)``.
        noise_variance: σ².
        teacher: W_o, ``(O, D)``; None if there is none.
        teacher_noise_variance: σ_o².
        unit: Unit of the result.

    Returns:
        ``(I_XT, I_TY)``; I_TY is NaN without a teacher.

    Raises:
        ValueError: Invalid shapes, a noise variance that is not positive, a negative one of the teacher.
    """
    w, cov = as_map("w", w, input_cov), input_cov.double()
    scale, whole = per_nat(unit) / 2, _log_det(w @ cov @ w.T, noise_variance)
    if teacher is None:
        return Information(scale * whole, math.nan)
    w_o = as_map("teacher", teacher, input_cov)
    if teacher_noise_variance < 0:
        raise ValueError(f"teacher_noise_variance={teacher_noise_variance}: expected at least 0")
    y_cov = w_o @ cov @ w_o.T + teacher_noise_variance * torch.eye(len(w_o), dtype=cov.dtype, device=cov.device)
    rest = _log_det(w @ _conditioned(cov, cov @ w_o.T, y_cov) @ w.T, noise_variance)
    return Information(scale * whole, scale * max(0.0, whole - rest))


def linear_subset_information(
    w: Tensor,
    input_cov: Tensor,
    noise_variance: float,
    subset: Sequence[int] | Tensor,
    *,
    conditional: bool = False,
    unit: Unit = "bits",
) -> float:
    """Return the information of a linear layer with some of its inputs, X_S; X_R are the rest.

    Either ``I(T; X_S)``, the rest being noise, or ``I(T; X_S | X_R)``; ``I(T;X) = I(T;X_R) + I(T;X_S|X_R)``.
    Source: Saxe et al. (2018), section 5, which defines neither.

    Args:
        w: W, ``(H, D)``.
        input_cov: Σ, ``(D, D)``.
        noise_variance: σ².
        subset: The inputs, as indices or as a boolean mask ``(D,)``.
        conditional: The second reading.
        unit: Unit of the result.

    Raises:
        ValueError: Invalid shapes, a noise variance that is not positive.
    """
    w, cov = as_map("w", w, input_cov), input_cov.double()
    known = torch.zeros(len(cov), dtype=torch.bool, device=cov.device)
    known[subset if isinstance(subset, Tensor) else list(subset)] = True
    if conditional:
        known = ~known
    rest = _log_det(w @ _conditioned(cov, cov[:, known], cov[known][:, known]) @ w.T, noise_variance)
    whole = 0.0 if conditional else _log_det(w @ cov @ w.T, noise_variance)
    return per_nat(unit) / 2 * (rest if conditional else max(0.0, whole - rest))


def generalisation_error(
    w_total: Tensor, teacher: Tensor, input_cov: Tensor, teacher_noise_variance: float = 0.0
) -> float:
    """Return the expected squared error ``E ‖Y - W_tot X‖²`` on fresh samples of the teacher, summed over its outputs.

    Args:
        w_total: W_tot, the whole student, ``(O, D)``.
        teacher: W_o, ``(O, D)``.
        input_cov: Σ, ``(D, D)``.
        teacher_noise_variance: σ_o².

    Raises:
        ValueError: A shape is wrong.
    """
    w, w_o = as_map("w_total", w_total, input_cov), as_map("teacher", teacher, input_cov)
    if w.shape != w_o.shape:
        raise ValueError(
            f"w_total of shape {tuple(w.shape)} and teacher of shape {tuple(w_o.shape)}: expected the same"
        )
    gap = w_o - w
    return ((gap @ input_cov.double()) * gap).sum().item() + len(gap) * teacher_noise_variance


def gaussian_information(t: Tensor, y: Tensor | None, noise_variance: float, *, unit: Unit = "bits") -> Information:
    """Return I(X;T) and I(T;Y) of a noisy layer ``T = t + N(0, σ² I)``, from covariances alone.

    ``I(X;T) = ½ log det(I + Cov(t) / σ²)``: an upper bound, as the Gaussian has the largest entropy of all
    distributions with one covariance, and exact if ``t`` is Gaussian. ``I(T;Y)`` also treats every class as a Gaussian
    (total minus class-conditional log-determinants) or, with continuous ``y``, ``t`` and ``y`` as jointly Gaussian: an
    approximation that is not a bound. Covariances are those of the N samples; with N below ten times the units (or the
    outputs of ``y``) they make both numbers too large.

    Args:
        t: Activations ``(N, d)`` or ``(N,)``.
        y: Classes ``(N,)``, integer or bool; continuous targets ``(N, k)`` or ``(N,)``, floating; or None.
        noise_variance: σ².
        unit: Unit of the result.

    Returns:
        ``(I_XT, I_TY)``; I_TY is NaN without ``y``, and at most H(Y) for classes.

    Raises:
        ValueError: Invalid shapes, values that are not finite, a noise variance that is not positive.
    """
    scale = per_nat(unit)
    i_xt, i_ty, highest = _in_nats(t, y, noise_variance)
    return Information(scale * i_xt, scale * min(i_ty, highest))


def _in_nats(t: Tensor, y: Tensor | None, noise_variance: float) -> tuple[float, float, float]:
    """I(X;T), I(T;Y) as it comes out, and H(Y), infinite for continuous targets."""
    rows = _finite("t", t)
    whole = _half_log_det(rows, noise_variance)
    if y is None:
        return whole, math.nan, math.inf
    if y.is_floating_point():
        targets = _finite("y", y.to(t.device))
        if len(targets) != len(rows):
            raise ValueError(f"y of shape {tuple(y.shape)}: expected N = {len(rows)} rows")
        rest = _half_log_det(_residual(rows, targets), noise_variance)
        return whole, max(0.0, whole - rest), math.inf
    labels = torch.from_numpy(class_labels(y, len(rows))).to(t.device)
    rest = 0.0
    for members in torch.split(rows[labels.argsort(stable=True)], [n for n in labels.bincount().tolist() if n]):
        rest += len(members) / len(rows) * _half_log_det(members, noise_variance)
    return whole, max(0.0, whole - rest), code_information(labels, unit="nats").I_XT


class GaussianEstimator(InformationEstimator):
    """:func:`gaussian_information`; covariances know no number of samples."""

    has_ceiling = False

    @override
    def __call__(
        self, t: Tensor, y: Tensor | None, noise_variance: float = 0.0, generator: Generator | None = None
    ) -> LayerInformation:
        i_xt, i_ty, highest = (per_nat("bits") * nats for nats in _in_nats(t, y, noise_variance))
        excess = max(0.0, i_ty - highest) if y is not None else 0.0
        return LayerInformation(i_xt, min(i_ty, highest), excess=excess)


def as_map(name: str, w: Tensor, input_cov: Tensor) -> Tensor:
    """Return a linear map of the inputs in float64, checked.

    Args:
        name: Name of the caller's argument.
        w: ``(units, D)``.
        input_cov: ``(D, D)``, covariance of the inputs.

    Raises:
        ValueError: The shapes do not fit; the message names the argument.
    """
    d = len(input_cov)
    if input_cov.shape != (d, d):
        raise ValueError(f"input_cov of shape {tuple(input_cov.shape)}: expected (D, D), for example torch.eye(D) / D")
    if w.dim() != 2 or w.shape[1] != d:
        raise ValueError(f"{name} of shape {tuple(w.shape)}: expected (units, D) with D = {d} inputs of input_cov")
    return w.detach().double()


def _finite(name: str, values: Tensor) -> Tensor:
    rows = as_rows(values).double()
    if not rows.isfinite().all():
        raise ValueError(f"some values of {name} are not finite; leave their samples out")
    return rows


def _conditioned(cov: Tensor, with_known: Tensor, known_cov: Tensor) -> Tensor:
    """Return the covariance given jointly Gaussian knowns, from their covariance with the rest and among themselves."""
    inverse: Tensor = torch.linalg.pinv(known_cov, hermitian=True)
    return cov - with_known @ inverse @ with_known.T


def _residual(rows: Tensor, targets: Tensor) -> Tensor:
    """Return the residuals of a linear regression on the targets."""
    y = targets - targets.mean(0)
    y /= torch.linalg.vector_norm(y, dim=0).clamp_min(torch.finfo(y.dtype).tiny)
    slope: Tensor = torch.linalg.pinv(y.T @ y, hermitian=True) @ (y.T @ rows)
    return rows - y @ slope


def _half_log_det(rows: Tensor, noise_variance: float) -> float:
    """Return ``½ log det(I + Cov / σ²)`` of samples, by the smaller of the covariance and the Gram matrix."""
    x = (rows - rows.mean(0)) / len(rows) ** 0.5
    return _log_det(x.T @ x if len(x) >= x.shape[1] else x @ x.T, noise_variance) / 2


def _log_det(cov: Tensor, noise_variance: float) -> float:
    """Return ``log det(I + cov / σ²)``."""
    if not noise_variance > 0:
        raise ValueError(
            f"noise_variance={noise_variance}: expected a positive number; without noise I(X;T) is infinite"
        )
    ratio, eps = cov / noise_variance, torch.finfo(cov.dtype).eps * len(cov)
    if ratio.diagonal().max() * eps > 0.01:  # directions within the rounding of the largest would count
        values: Tensor = torch.linalg.eigvalsh(ratio)
        return float(values[values > eps * values[-1]].log1p().sum())
    root: Tensor = torch.linalg.cholesky(ratio + torch.eye(len(ratio), dtype=ratio.dtype, device=ratio.device))
    return 2 * float(root.diagonal().log().sum())
