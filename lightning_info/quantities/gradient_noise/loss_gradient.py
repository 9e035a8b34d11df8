"""Gradient of the trained loss in the outputs: the likelihood's, in the scale and with the weights of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import num_samples, spread, take
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.replica.predicted import NoPrediction, Prediction
from lightning_info.replica.returned_loss import AGREES
from lightning_info.replica.snapshot import ModelSnapshot

Reduction = Literal["mean", "sum"]


class OtherLoss(NoPrediction):
    """The trained loss is not that of the likelihood, so it must be taken as it is; the message says how it differs."""


@dataclass(frozen=True)
class LossForm:
    """How the loss of a batch is made of those of its samples.

    Attributes:
        reduction: Whether it is their mean or their sum.
        has_rest: It holds a further part that depends on the weights alone, such as a penalty.
        is_known: Its scale is known; not with an adapter, whose likelihood is then taken as it is.
    """

    reduction: Reduction = "mean"
    has_rest: bool = False
    is_known: bool = True


def sample_gradients(prediction: Prediction, reduction: Reduction) -> Tensor:
    """Return ``∂ℓ_n/∂ outputs`` of the trained losses ``ℓ_n`` of the samples, in the layout of the outputs.

    Weights of positions, classes and of the whole loss enter. If the loss divides by what depends on the batch (counted
    positions, the sum of class weights), the batch is that of the prediction.

    Args:
        prediction: For N samples.
        reduction: Whether the loss of the batch is the mean or the sum of theirs.

    Raises:
        OtherLoss: The trained loss has another gradient.
    """
    u, weights = prediction.loss_gradient(), prediction.weights
    if weights is not None:
        u = u * weights.nan_to_num(0.0).to(u).reshape(*weights.shape, *(1,) * (u.dim() - weights.dim()))
    if prediction.trained is None:
        return u
    factor = prediction.trained.factor(prediction.outputs, u)
    if factor is None:
        raise OtherLoss("the gradient of the trained loss in the outputs is not that of the likelihood")
    return factor * u * (len(u) if reduction == "mean" else 1)


def loss_form(snapshot: ModelSnapshot) -> LossForm:
    """Find the form of the loss, on a few samples and on half of them.

    Raises:
        OtherLoss: Its gradient is not the likelihood's, or what else it holds depends on the batch.
    """
    few = snapshot.to_device(spread(snapshot.groups[0], min(CHECK_SAMPLES, snapshot.chunk)))
    size = num_samples(few)
    half = max(1, size // 2)
    parts = [few, take(few, slice(0, half))] if size > 1 else [few]
    predictions = [snapshot.predictor(snapshot.module, part) for part in parts]
    if predictions[0].trained is None:
        sample_gradients(predictions[0], "sum")
        return LossForm(is_known=False)
    found = [sample_gradients(prediction, "sum") for prediction in predictions]
    whole, alone = found[0][:half].norm().item(), found[-1].norm().item()
    reduction: Reduction = "sum" if size > 1 and alone < math.sqrt(size / half) * whole else "mean"
    has_rest = any(prediction.extra_loss for prediction in predictions)
    if has_rest:
        _check_rest(snapshot.module, predictions, reduction)
    return LossForm(reduction, has_rest)


def rest_gradient(module: nn.Module, prediction: Prediction) -> dict[str, Tensor]:
    """Return the gradient of what the trained loss holds beyond the likelihood, by parameter."""
    assert prediction.trained is not None
    parameters, u = trainable(module), sample_gradients(prediction, "sum")
    weights = list(parameters.values())
    whole = torch.autograd.grad(prediction.trained.losses, weights, retain_graph=True, allow_unused=True)
    own = torch.autograd.grad(
        prediction.outputs, weights, u.to(prediction.outputs), retain_graph=True, allow_unused=True
    )
    pairs = zip(parameters, whole, own, strict=True)
    return {name: a if b is None else a - b for name, a, b in pairs if a is not None}


def _check_rest(module: nn.Module, predictions: list[Prediction], reduction: Reduction) -> None:
    rests = [rest_gradient(module, prediction) for prediction in predictions]
    if reduction == "sum":
        raise OtherLoss("the loss is a sum over samples and holds more than the likelihood")
    wrong, size = 0.0, 0.0
    for name, first in rests[0].items():
        wrong += (rests[-1][name] - first).abs().square().sum().item()
        size += max(first.abs().square().sum().item(), rests[-1][name].abs().square().sum().item())
    if wrong > AGREES**2 * size:
        raise OtherLoss("what the loss holds beyond the likelihood depends on the samples")
