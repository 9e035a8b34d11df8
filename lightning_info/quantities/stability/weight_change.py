r"""The distance of two sets of weights of one module: in the weights, in F, and in the predictions.

With ``δ = w' - w``, ``½ δᵀ F δ`` is to second order the mean over the reference samples of ``KL(p_w ‖ p_w')``. Both are
measured, as they agree only where δ is small: a ReLU network has kinks.

Source: Achille, Paolini & Soatto, section 2.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.functional.output_kl import output_kl
from lightning_info.functional.stability import unique_information
from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import flat
from lightning_info.quantities.weight_information.curvature import fisher_products
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

SEEN = 1e-9
"""Nats above which the ratio of output KL to its second-order form is not due to rounding (of float32 outputs)."""


def flat_weights(module: nn.Module) -> Tensor:
    """Return the trainable weights as one vector, ``(k,)`` float64, on their device; both parts of complex ones."""
    return torch.cat([flat(p.detach()).double() for p in trainable(module).values()])


def weight_change(module: nn.Module, other: nn.Module) -> Tensor:
    """Return ``δ = w' - w`` of the trainable weights, ``(k,)``, at least float32; 0 where two weights are equal.

    Args:
        module: Module with the weights w, on whose device δ is.
        other: Module with the weights w'.
    """
    pairs = zip(trainable(module).values(), trainable(other).values(), strict=True)
    parts = []
    for p, q in pairs:  # one after the other: all of them in double precision would be several times the net
        w, v = flat(p.detach()), flat(q.detach())
        change = (v.double() - w.double().to(v.device)).to(w.device)
        parts.append(change.to(torch.promote_types(w.dtype, torch.float32)))
    return torch.cat(parts)


def length(change: Tensor) -> float:
    """Return ``‖δ‖``, summed in float64."""
    return float(torch.linalg.vector_norm(change, dtype=torch.float64).item())


def prediction_change(
    snapshot: ModelSnapshot,
    other: ModelSnapshot,
    change: Tensor,
    training_samples: float,
    beta: float,
    *,
    has_products: bool,
) -> dict[str, float]:
    """Measure the effect of δ on the predictions, by the names in the tags.

    Args:
        snapshot: Its replica has the weights w.
        other: Its replica has the weights w'.
        change: δ, ``(k,)``.
        training_samples: N of the summed loss.
        beta: Level of the task.
        has_products: Whether the module has second derivatives; without them there is only the output KL.

    Returns:
        ``output_kl``, ``fisher_distance``, ``unique_information``; and ``kl_ratio``, ``output_kl`` divided by
        ``fisher_distance``, unless it is due to rounding errors.

    Raises:
        Unavailable: Outputs are not finite.
    """
    values = {"output_kl": mean_output_kl(snapshot, other)}
    if has_products:
        distance = values["fisher_distance"] = fisher_distance(snapshot, change)
        values["unique_information"] = unique_information(2 * training_samples * distance, beta)
        if distance > 0 and max(values["output_kl"], distance) > SEEN:
            values["kl_ratio"] = values["output_kl"] / distance
    return values


def fisher_distance(snapshot: ModelSnapshot, change: Tensor) -> float:
    """Return ``½ δᵀ F δ``, nats per sample, with F at the weights of the snapshot's replica over the reference samples.

    Args:
        snapshot: A snapshot with the reference samples.
        change: δ, ``(k,)``.

    Raises:
        Unavailable: Outputs are not finite.
        NotCovered: The module has no second derivative.
    """
    return 0.5 * fisher_products(snapshot).gram(change[None].to(snapshot.device)).item()


def mean_output_kl(snapshot: ModelSnapshot, other: ModelSnapshot) -> float:
    """Return the mean of ``KL(p_w ‖ p_w')`` over the reference samples of the first snapshot, nats per sample.

    Args:
        snapshot: Its replica has the weights w.
        other: Its replica has the weights w'.

    Raises:
        Unavailable: The KL is not finite.
    """
    total = 0.0
    for part in snapshot.parts():
        here, there = snapshot.predictor(snapshot.module, part), other.predictor(other.module, part)
        (p, v), (q, u) = here.parameters, there.parameters
        variances = None if v is None or u is None else (v, u)
        total += output_kl(p, q, here.likelihood, here.mask, variances).sum().item()
    if not math.isfinite(total):
        raise Unavailable("some outputs of the reference samples are not finite")
    return total / snapshot.size


def sample_loss(snapshot: ModelSnapshot, batch: Any) -> float:
    """Return the training loss of the samples of a batch at the weights of the snapshot's replica, nats per sample.

    Raises:
        NoPrediction: There are no targets.
    """
    loss = snapshot.predictor(snapshot.module, snapshot.to_device(batch)).summed_loss().item()
    return loss / num_samples(batch)
