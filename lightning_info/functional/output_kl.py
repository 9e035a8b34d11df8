r"""Kullback-Leibler divergence between the predictions of two networks for the same inputs.

For small changes δ of the weights its mean over x tends to ``½ δᵀ F δ``, with F the Fisher information of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_info.functional.likelihoods import LikelihoodLike, likelihood_named


def output_kl(
    outputs: Tensor,
    others: Tensor,
    likelihood: LikelihoodLike,
    mask: Tensor | None = None,
    variances: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Return ``KL(p(y | x_n) ‖ q(y | x_n))`` of each sample, in nats; independent positions of a sample are summed.

    Args:
        outputs: Outputs of p: logits ``(N, *positions, C)``, Bernoulli logits ``(N, *)``, or Gaussian means ``(N, *)``.
        others: Outputs of q, of the same shape.
        likelihood: The predictive distribution.
        mask: Optional boolean ``(N, *positions)``; positions that are False count zero.
        variances: Variances of the Gaussians of p and q, both ``(N, *)``; None if all are 1.

    Returns:
        ``(N,)`` float64, not negative except for rounding.

    Raises:
        ValueError: The shapes differ, or there is no likelihood of that name.
    """
    if outputs.shape != others.shape:
        raise ValueError(
            f"output_kl: outputs must have the same shape, got {tuple(outputs.shape)} and {tuple(others.shape)}"
        )
    of_both = None if variances is None else (variances[0].detach().double(), variances[1].detach().double())
    distribution = likelihood_named(likelihood, "output_kl")
    kl = distribution.kl(outputs.detach().double(), others.detach().double(), of_both)
    if mask is not None:
        kl = torch.where(mask, kl, 0.0)
    return kl.reshape(len(kl), -1).sum(1)
