r"""How far two sets of weights of one module are apart: in the weights, in F, and in what the module predicts.

With ``δ = w' - w``, ``½ δᵀ F δ`` is to second order the mean over the reference samples of ``KL(p_w ‖ p_w')``. Both are
measured, as the first is the second only where δ is small: a ReLU network has kinks.

Source: Achille, Paolini & Soatto, section 2.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.functional.output_kl import output_kl
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.samples import num_samples
from lightning_info.probing.curvature import fisher_products
from lightning_info.probing.probe import Probe, Unavailable


def flat_weights(module: nn.Module) -> Tensor:
    """The trainable weights one after the other, ``(k,)`` float64, on their device."""
    return torch.cat([p.detach().flatten().double() for p in trainable(module).values()])


def fisher_distance(probe: Probe, change: Tensor) -> float:
    """``½ δᵀ F δ``, nats a sample: F at the weights of the probe's replica, over the reference samples.

    Args:
        probe: With the reference samples.
        change: δ, ``(k,)``.

    Raises:
        Unavailable: Outputs are not finite.
        NotCovered: The module has no second derivative.
    """
    return 0.5 * fisher_products(probe).gram(change[None].to(probe.device)).item()


def mean_output_kl(probe: Probe, other: Probe) -> float:
    """``KL(p_w ‖ p_w')``, nats a sample: its mean over the reference samples of the first probe.

    Args:
        probe: Its replica has the weights w.
        other: Its replica has the weights w'.

    Raises:
        Unavailable: It is not finite.
    """
    total = 0.0
    for part in probe.parts():
        here, there = probe.predictor(probe.module, part), other.predictor(other.module, part)
        (p, v), (q, u) = here.parameters, there.parameters
        variances = None if v is None or u is None else (v, u)
        total += output_kl(p, q, here.likelihood, here.mask, variances).sum().item()
    if not math.isfinite(total):
        raise Unavailable("some outputs of the reference samples are not finite")
    return total / probe.size


def sample_loss(probe: Probe, batch: Any) -> float:
    """Training loss of the samples of a batch at the weights of the probe's replica, nats a sample.

    Raises:
        NoPrediction: There are no targets.
    """
    loss = probe.predictor(probe.module, probe.to_device(batch)).summed_loss().item()
    return loss / num_samples(batch)
