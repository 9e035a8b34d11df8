r"""Stability: the influence of one sample on the weights, and the information that follows from it.

With w the weights, w' those learned with one sample replaced, ``δ = w' - w`` and ``F_N = N·F`` the Fisher information
of the summed loss, the sample's unique information at level β is

.. math:: \mathrm{KL}\bigl(N(w', \beta F_N^{-1}) \,\|\, N(w, \beta F_N^{-1})\bigr)
          = \frac{\delta^\top F_N\, \delta}{2 \beta}.

If the weights ``w*(D)`` depend smoothly on a data set of d parameters, Proposition 2.9 of Achille, Paolini & Soatto
with its constant corrected (β to the power d; printed with β) gives

.. math:: I(w; D) \approx H(D) - \mathbb{E}_D\, \tfrac12 \log
          \frac{(2 \pi e \beta)^d}{\det(\nabla_D w^{*\top} F\, \nabla_D w^*)}.

Everything is in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unique_information(delta_F_delta: float, beta: float) -> float:
    """Return the information that the weights hold only about the replaced sample, ``δᵀF_Nδ / (2β)``, in nats.

    Args:
        delta_F_delta: ``δᵀF_Nδ``, the squared length of the change of weights, measured by the Fisher information of
            the **summed** loss.
        beta: Level of the task.

    Raises:
        ValueError: An argument is out of range.
    """
    if not delta_F_delta >= 0:
        raise ValueError(f"unique_information: delta_F_delta is a squared length, got {delta_F_delta}")
    _check_beta("unique_information", beta)
    return delta_F_delta / (2 * beta)


def shannon_from_stability(entropy: float, jacobian: Tensor, fisher: Tensor, beta: float) -> float:
    """Return the information between weights and data set, from stability (Proposition 2.9, corrected), in nats.

    This is an approximation for data sets that the weights tell apart: with a large ``∇wᵀF∇w / β`` it tends to the
    truth from below, with a small one it is far too low, and may be negative.

    Args:
        entropy: ``H(D)``, the differential entropy of the data set's parameters.
        jacobian: ``∇_D w*``, ``(M, k, d)`` of M data sets drawn from their distribution, or ``(k, d)`` of one.
        fisher: F at the weights that each leads to, ``(M, k, k)`` or ``(k, k)``; symmetric.
        beta: Level of the task.

    Raises:
        ValueError: Arguments out of their range; weights that do not depend on some parameter of the data set, or a
            network that does not depend on those weights, as then the determinant is zero.
    """
    _check_beta("shannon_from_stability", beta)
    jacobian, fisher = jacobian.detach().double(), fisher.detach().double()
    if jacobian.dim() not in (2, 3) or fisher.shape != (*jacobian.shape[:-1], jacobian.shape[-2]):
        raise ValueError(
            f"shannon_from_stability: jacobian must be (M, k, d) and fisher (M, k, k), got "
            f"{tuple(jacobian.shape)} and {tuple(fisher.shape)}"
        )
    signs, log_determinants = torch.linalg.slogdet(jacobian.mT @ fisher @ jacobian)
    if not ((signs > 0) & log_determinants.isfinite()).all():
        raise ValueError("shannon_from_stability: the determinant of ∇wᵀF∇w must be positive")
    d = jacobian.shape[-1]
    log_determinant: float = log_determinants.mean().item()
    return entropy - 0.5 * (d * math.log(2 * math.pi * math.e * beta) - log_determinant)


def _check_beta(owner: str, beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"{owner}: beta must be positive and finite, got {beta}, for example 1.0")
