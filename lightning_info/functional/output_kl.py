r"""Kullback-Leibler divergence between the predictions of two networks for the same inputs.

For small changes δ of the weights its mean over x tends to ``½ δᵀ F δ``, with F the Fisher information of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_info.functional.fisher import Likelihood


def output_kl(
    outputs: Tensor,
    others: Tensor,
    likelihood: Likelihood,
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
        ValueError: Shapes that differ.
    """
    if outputs.shape != others.shape:
        raise ValueError(f"output_kl: outputs of shapes {tuple(outputs.shape)} and {tuple(others.shape)}; one is meant")
    z, y = outputs.detach().double(), others.detach().double()
    if likelihood == "categorical":
        p, q = z.log_softmax(-1), y.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
    elif likelihood == "bernoulli":
        logsigmoid = torch.nn.functional.logsigmoid
        kl = z.sigmoid() * (logsigmoid(z) - logsigmoid(y)) + (-z).sigmoid() * (logsigmoid(-z) - logsigmoid(-y))
    elif variances is None:
        kl = 0.5 * (z - y).square()
    else:
        v, u = (variance.detach().double() for variance in variances)
        kl = 0.5 * ((v / u - 1) - (v / u).log() + (z - y).square() / u)
    if mask is not None:
        kl = torch.where(mask, kl, 0.0)
    return kl.reshape(len(kl), -1).sum(1)
