r"""The information-bottleneck bound of a linear-Gaussian task: the most that any layer can tell about the output.

For ``X ~ N(0, Σ)`` and a teacher ``Y = W_o X + N(0, σ_o² I)``, no T that is made from X alone has more I(T;Y) for its
I(X;T) than the optimal one, which is a Gaussian layer again. With ``λ_i`` the eigenvalues of ``Σ_{X|Y} Σ⁻¹`` that are
below 1, ``ρ_i = (1 - λ_i) / λ_i`` those of ``W_o Σ W_oᵀ / σ_o²``, the largest first, and the trade-off β:

.. math:: I(X;T) = \tfrac12 \sum_{i \le n} \log((\beta - 1) \rho_i), \qquad
          I(T;Y) = I(X;T) - \tfrac12 \sum_{i \le n} \log\frac{\beta \rho_i}{1 + \rho_i} ,

over the n directions with ``ρ_i > 1 / (β - 1)``. The curve is concave, starts at 0 with slope ``ρ_1 / (1 + ρ_1)`` and
ends at I(X;Y). For one output it is ``I(T;Y) = -½ log((1 + ρ exp(-2 I(X;T))) / (1 + ρ))``.

Source: Chechik, Globerson, Tishby & Weiss (2005); named by Saxe et al. (2018), section 3, who do not draw it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_info.functional.linear_gaussian import as_map
from lightning_info.functional.units import Unit, per_nat


def gaussian_bottleneck(
    i_xt: Tensor, input_cov: Tensor, teacher: Tensor, teacher_noise_variance: float, *, unit: Unit = "bits"
) -> Tensor:
    """Return the largest I(T;Y) of all T with a given I(X;T), exactly.

    Args:
        i_xt: Values of I(X;T), any shape.
        input_cov: Σ, ``(D, D)``.
        teacher: W_o, ``(O, D)``.
        teacher_noise_variance: σ_o².
        unit: Unit of ``i_xt`` and of the result.

    Returns:
        I(T;Y), float64, of the shape of ``i_xt``.

    Raises:
        ValueError: Invalid shapes, a noise variance that is not positive, an information that is negative or NaN.
    """
    w_o, cov = as_map("teacher", teacher, input_cov), input_cov.double()
    if not teacher_noise_variance > 0:
        raise ValueError(
            f"teacher_noise_variance={teacher_noise_variance}: expected a positive number; without noise I(X;Y) is "
            f"infinite and the bound is I(X;T) itself"
        )
    if not (i_xt >= 0).all():
        raise ValueError("i_xt: expected numbers that are not negative, in " + unit)
    nats = i_xt.double() / per_nat(unit)
    rho = torch.linalg.eigvalsh(w_o @ cov @ w_o.T / teacher_noise_variance).flip(0)
    rho = rho[rho > rho[0] * len(rho) * torch.finfo(rho.dtype).eps]
    if not len(rho):
        return torch.zeros_like(nats)
    log_rho = rho.log()
    sums, limits = log_rho.cumsum(0), (log_rho - rho.log1p()).cumsum(0)
    count = torch.arange(1, len(rho) + 1, dtype=rho.dtype, device=rho.device)
    begins = (sums - count * log_rho) / 2  # I(X;T) from which on a direction takes part
    last = torch.searchsorted(begins, nats, right=True).clamp_min(1) - 1
    n = count[last]
    log_beta = torch.logaddexp((2 * nats - sums[last]) / n, torch.zeros_like(nats))
    i_ty: Tensor = (nats - (n * log_beta + limits[last]) / 2).clamp_min(0)
    return per_nat(unit) * i_ty
