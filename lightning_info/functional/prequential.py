r"""Prequential code of labels: each is coded by the network that was trained on the labels before it.

.. math:: \sum_t \sum_{i \in \text{batch } t} -\log p_{w_t}(y_i | x_i)

nats, with the weights ``w_t`` before they are trained on batch t. The receiver, who has the inputs, trains the same
network on the labels that it has decoded, so no weights are sent. It is a code of the labels only while each is coded
once, before it is trained on: in the first epoch. For a Bayesian predictor it is minus the log evidence.

Source: Dawid (1984); Blier & Ollivier, *The description length of deep learning models* (2018), section 3.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def prequential_code(losses: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Return the length of the code after each batch, ``(T,)`` float64, nats.

    Args:
        losses: ``(T,)``, mean ``-log p`` of the labels of each batch at the weights before it was trained on, nats.
        sizes: ``(T,)``, number of labels of each batch; by default 1.

    Raises:
        ValueError: The shapes differ.
    """
    losses = losses.detach().double()
    sizes = torch.ones_like(losses) if sizes is None else sizes.to(losses)
    if losses.dim() != 1 or sizes.shape != losses.shape:
        raise ValueError(
            f"prequential_code: losses of shape {tuple(losses.shape)} and sizes of shape {tuple(sizes.shape)}; both "
            f"have one number for each batch, (T,)"
        )
    return (losses * sizes).cumsum(0)


def code_excess(code: float, samples: float, final_loss: float) -> float:
    """Return what a prequential code takes beyond the same labels at the final weights, nats.

    It is the area between the learning curve and its end: what the learner took up from the labels on the way, an
    estimate of the structure in them (Finzi et al., *epiplexity*, 2026). Negative if the final weights do worse.

    Args:
        code: Length of the code of N samples, nats.
        samples: N.
        final_loss: Mean loss of a sample at the final weights, nats.

    Raises:
        ValueError: There are no samples.
    """
    if not (0 < samples < math.inf):
        raise ValueError(f"code_excess: samples={samples}; give the number of samples of the code, at least 1")
    return code - samples * final_loss
