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
    r"""``KL(p(y | x_n) ‖ q(y | x_n))`` of each sample, in nats; independent positions of a sample are summed.

    Args:
        outputs: Of p: logits ``(N, *positions, C)`` of classes, Bernoulli logits ``(N, *)``, Gaussian means ``(N, *)``.
        others: Of q, of the same shape.
        likelihood: The predictive distribution.
        mask: Optional boolean ``(N, *positions)``; positions that are False count nothing.
        variances: Of Gaussian means, of p and q, both ``(N, *)``; None: all are 1.

    Returns:
        ``(N,)`` float64, not negative but for rounding.

    Raises:
        ValueError: Shapes that differ; there is no likelihood of that name.
    """
    if outputs.shape != others.shape:
        raise ValueError(f"output_kl: outputs of shapes {tuple(outputs.shape)} and {tuple(others.shape)}; one is meant")
    of_both = None if variances is None else (variances[0].detach().double(), variances[1].detach().double())
    distribution = likelihood_named(likelihood, "output_kl")
    kl = distribution.kl(outputs.detach().double(), others.detach().double(), of_both)
    if mask is not None:
        kl = torch.where(mask, kl, 0.0)
    return kl.reshape(len(kl), -1).sum(1)
