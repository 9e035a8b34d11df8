"""From a likelihood call to canonical outputs: samples on axis 0, and the Fisher information of the outputs known.

Every reader takes the arguments of its function in ``torch.nn.functional`` and gives a :class:`Prediction`. Rows that
hold the tokens of all samples one sample after the other, ``(N * T, C)``, get their sample axis back; whether they
really stand in this order is what the two-sample check of the gradient engines finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_info.functional.likelihoods import LikelihoodName

_EXCLUDED = -1e4
"""Logit in the place of minus infinity, with which a class is excluded: its probability and its gradient are 0."""
_SATURATED = 40.0
"""Logit in the place of a probability that is exactly 0 or 1: its Fisher information, 4e-18, counts nothing."""


class NoPrediction(ValueError):
    """The module's predictive distribution was not found or makes no sense; the message tells what to write."""


class WritesParameters(NoPrediction):
    """The module writes to its parameters when it runs, and the replica shares them: it needs copies."""


@dataclass
class Prediction:
    """What a module predicts for a batch.

    Attributes:
        outputs: Logits, or means in units of their standard deviation, ``(N, ...)``; categorical ones have the classes
            last; Gaussian ones with a predicted variance v a last axis ``(mean / sqrt(v0), v / (sqrt(2) v0))`` with v0
            the present value of v, so that their Fisher information is the identity as for unit variance.
        likelihood: The predictive distribution.
        mask: ``(N, *positions)``, False where a position is ignored; None if there are no class targets.
        targets: Classes ``(N, *positions)``, or what else the loss compares with, in the layout of the outputs (with a
            predicted variance: of the means); None if there are none.
        loss_gradient: Gives ``∂ loss_n / ∂ outputs`` of the training loss (class weights and label smoothing
            included, whatever the reduction; Gaussian: of ½‖z - y‖²), float64 in the layout of ``outputs``; raises
            :class:`NoPrediction` where there are no targets that it could be taken at.
        summed_loss: Gives the sum of that loss over the samples, float64, differentiable in the parameters; raises as
            above.
        extra_loss: What the returned loss holds beyond the likelihood; 0 with an adapter.
        loss: The returned loss.
        writes: The module writes to its parameters when it runs.
        variance: Of Gaussian outputs whose variance is predicted: its present value, in the layout of the means.
    """

    outputs: Tensor
    likelihood: LikelihoodName
    mask: Tensor | None
    targets: Tensor | None
    loss_gradient: Callable[[], Tensor]
    summed_loss: Callable[[], Tensor]
    extra_loss: float = 0.0
    loss: float = 0.0
    writes: bool = False
    variance: Tensor | None = None

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Logits, or means and (where it is predicted) variance, in units that do not depend on the weights."""
        if self.variance is None:
            return self.outputs.detach(), None
        return self.outputs.detach()[..., 0] * self.variance.sqrt(), self.variance


def categorical(arguments: dict[str, Any], samples: int) -> Prediction:
    """``cross_entropy``: logits ``(rows, C, *d)``, targets ``(rows, *d)`` or probabilities like the logits."""
    logits, targets = _rows(arguments["input"], arguments["target"], samples, unbatched=1)
    shape = tuple(logits.shape)
    if len(shape) < 2:
        raise NoPrediction(f"categorical outputs of shape {shape} have no class axis; logits are (N, C) or (N, C, *)")
    logits = logits.masked_fill(logits == -torch.inf, _EXCLUDED)
    classes_last = logits.movedim(1, -1)
    outputs, mask = _unfold(classes_last, samples), None
    if targets is not None and not targets.is_floating_point():
        if targets.shape != (shape[0], *shape[2:]):
            raise NoPrediction(
                f"class targets of shape {tuple(targets.shape)} do not fit logits of shape {shape}; as for "
                f"cross_entropy, classes are on axis 1: (N, C, *positions) and (N, *positions)"
            )
        mask = _unfold(targets != arguments.get("ignore_index", -100), samples)
    options = _options(arguments, "weight", "ignore_index", "label_smoothing")

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.reshape(classes_last.shape).movedim(-1, 1), y, reduction="sum", **options)

    return _prediction(outputs, "categorical", targets, loss, mask)


def log_probabilities(arguments: dict[str, Any], samples: int) -> Prediction:
    """``nll_loss`` on log-probabilities, which serve as logits: ``J^T H J`` is the same for both."""
    prediction = categorical(arguments, samples)
    total = prediction.outputs.detach().double().logsumexp(-1)
    try:
        refused = bool(((total.abs() > 1e-3) & total.isfinite()).any())
    except RuntimeError:  # under vmap values cannot be looked at; they were before
        refused = False
    if refused:
        raise NoPrediction("the input of nll_loss does not consist of log-probabilities; it belongs after log_softmax")
    return prediction


def bernoulli(arguments: dict[str, Any], samples: int) -> Prediction:
    """``binary_cross_entropy_with_logits``: logits and targets ``(rows, *)``, any number of labels."""
    logits, targets = _rows(arguments["input"], arguments["target"], samples)
    options = _options(arguments, "weight", "pos_weight")

    def loss(z: Tensor, y: Tensor) -> Tensor:
        z = z.reshape(logits.shape)
        return F.binary_cross_entropy_with_logits(z, y.double(), reduction="sum", **options)

    return _prediction(_unfold(logits, samples), "bernoulli", targets, loss)


def probabilities(arguments: dict[str, Any], samples: int) -> Prediction:
    """``binary_cross_entropy`` on probabilities, which are turned into logits."""
    p = arguments["input"]
    inside = (p > 0) & (p < 1)
    saturated = torch.where(p > 0.5, _SATURATED, -_SATURATED).to(p)
    logits = torch.where(inside, torch.where(inside, p, 0.5).logit(), saturated)
    return bernoulli({**arguments, "input": logits}, samples)


def gaussian(arguments: dict[str, Any], samples: int) -> Prediction:
    """``mse_loss``: means and targets ``(rows, *)``, unit variance."""
    means, targets = _rows(arguments["input"], arguments["target"], samples)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        z = z.reshape(means.shape)
        if y.shape != z.shape:
            raise NoPrediction(f"targets of shape {tuple(y.shape)} do not match outputs of shape {tuple(z.shape)}")
        return 0.5 * (z - y.double()).square().sum()

    return _prediction(_unfold(means, samples), "gaussian", targets, loss)


def gaussian_with_variance(arguments: dict[str, Any], samples: int) -> Prediction:
    """``gaussian_nll_loss``: means and variances ``(rows, *)``; the Fisher information is diag(1/v, 1/(2v²))."""
    mean, target = _rows(arguments["input"], arguments["target"], samples)
    variance, given = torch.as_tensor(arguments["var"]).to(mean), arguments["input"].dim()
    if mean.dim() > given and variance.dim() == given > 0:
        variance = variance.unsqueeze(0)
    if variance.dim() == mean.dim() - 1 and variance.dim() > 0:  # one for all of the last axis
        variance = variance.unsqueeze(-1)
    variance = variance.expand_as(mean)
    present = variance.detach().clamp_min(arguments.get("eps", 1e-6))
    outputs = mean / present.sqrt()
    if variance.requires_grad:
        outputs = torch.stack([outputs, variance / (math.sqrt(2) * present)], -1)
    options = _options(arguments, "full", "eps")

    def loss(z: Tensor, y: Tensor) -> Tensor:
        v0 = present.double()
        m, v = (z, v0)
        if variance.requires_grad:
            m, v = z.reshape(outputs.shape).unbind(-1)
            v = v * math.sqrt(2) * v0
        m = m.reshape(mean.shape) * v0.sqrt()
        return F.gaussian_nll_loss(m, y.double(), v, reduction="sum", **options)

    prediction = _prediction(_unfold(outputs, samples), "gaussian", target, loss)
    if variance.requires_grad:
        prediction.variance = _unfold(present, samples)
    return prediction


Reader = Callable[[dict[str, Any], int], Prediction]

LIKELIHOODS: dict[Callable[..., Any], Reader] = {
    F.cross_entropy: categorical,
    F.nll_loss: log_probabilities,
    F.binary_cross_entropy_with_logits: bernoulli,
    F.binary_cross_entropy: probabilities,
    F.mse_loss: gaussian,
    F.gaussian_nll_loss: gaussian_with_variance,
}


def _rows(outputs: Tensor, targets: Any, samples: int, unbatched: int = 0) -> tuple[Tensor, Any]:
    """A single sample whose axis was squeezed away gets it back."""
    squeezed = outputs.dim() <= unbatched or (unbatched == 0 and len(outputs) != 1)
    if samples == 1 and squeezed:
        return outputs.unsqueeze(0), None if targets is None else targets.unsqueeze(0)
    return outputs, targets


def _unfold(rows: Tensor, samples: int) -> Tensor:
    if rows.dim() == 0 or len(rows) == 0 or len(rows) % samples:
        shape = tuple(rows.shape)
        raise NoPrediction(f"the outputs have shape {shape} for {samples} samples; axis 0 must be the sample axis")
    return rows if len(rows) == samples else rows.reshape(samples, -1, *rows.shape[1:])


def _targets_by_sample(targets: Tensor | None, likelihood: LikelihoodName, samples: int) -> Tensor | None:
    if targets is None or targets.dim() == 0 or len(targets) == 0 or len(targets) % samples:
        return None
    probabilities = likelihood == "categorical" and targets.is_floating_point() and targets.dim() > 1
    return _unfold((targets.movedim(1, -1) if probabilities else targets).detach(), samples)


def _options(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    given = {name: arguments[name] for name in names if name in arguments}
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


def _prediction(
    outputs: Tensor,
    likelihood: LikelihoodName,
    targets: Tensor | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    mask: Tensor | None = None,
) -> Prediction:
    """Args: ``loss`` gives the summed loss from float64 outputs and targets."""

    def summed_loss(z: Tensor) -> Tensor:
        if targets is None:
            raise NoPrediction("the adapter gives no targets, which the empirical Fisher and the Hessian need")
        at = targets.detach()
        return loss(z, at.double() if at.is_floating_point() else at)

    def loss_gradient() -> Tensor:
        z = outputs.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(summed_loss(z), z)
        return gradient

    y = _targets_by_sample(targets, likelihood, len(outputs))
    return Prediction(outputs, likelihood, mask, y, loss_gradient, lambda: summed_loss(outputs.double()))
