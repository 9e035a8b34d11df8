"""From a likelihood call to canonical outputs: samples on axis 0, and the Fisher information of the outputs known.

Every reader takes the arguments of its function in ``torch.nn.functional`` and gives a :class:`Prediction`. Rows that
hold the tokens of all samples one sample after the other, ``(N * T, C)``, get their sample axis back; whether they
really stand in this order is what the two-sample check of the gradient engines finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_info.functional.likelihoods import LikelihoodName
from lightning_info.replica.padding import Padding
from lightning_info.replica.returned_loss import ReturnedLoss

_EXCLUDED = -1e4
"""Logit in the place of minus infinity, with which a class is excluded: its probability and its gradient are 0."""
_SATURATED = 40.0
"""Logit in the place of a probability that is exactly 0 or 1: its Fisher information, 4e-18, counts nothing."""


class NoPrediction(ValueError):
    """The module's predictive distribution was not found or makes no sense; the message tells what to write."""


class Skipped(NoPrediction):
    """The ``training_step`` returns None for a batch: Lightning does not train on it."""


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
        targets: Classes ``(N, *positions)``, or what else the loss compares with, in the layout of the outputs (with a
            predicted variance: of the means); None if there are none.
        variance: Of Gaussian outputs whose variance is predicted: its present value, in the layout of the means.
        returned: The loss that is trained; None with an adapter, and where it cannot be looked at.
        padding: Gives masks of positions that the batch or the module's calls tell, see :mod:`~.padding`.
        writes: The module writes to its parameters when it runs.
        unknown: Why no likelihood is known, see :mod:`~.outputs_only`; to ask for :attr:`likelihood` then fails.
    """

    outputs: Tensor
    likelihood: LikelihoodName
    targets: Tensor | None = None
    variance: Tensor | None = None
    returned: ReturnedLoss | None = None
    padding: Callable[[], list[Padding]] = list
    writes: bool = False
    unknown: str = ""
    _loss: Callable[[Tensor, Tensor | None], Tensor] | None = None
    _kept: Callable[[], Tensor | None] = lambda: None

    @property
    def positions(self) -> tuple[int, ...]:
        """``(N, *positions)``: what a mask has; every output of its own where they are not classes."""
        if self.variance is not None:
            return tuple(self.variance.shape)
        return tuple(self.outputs.shape[:-1] if self.likelihood == "categorical" else self.outputs.shape)

    @property
    def extra_loss(self) -> float:
        """What the loss holds beyond the likelihood (penalties); 0 with an adapter."""
        return 0.0 if self.returned is None else self.returned.beyond

    @cached_property
    def weights(self) -> Tensor | None:
        """By how much the loss weighs each position, ``(N, *positions)``.

        None where the likelihood was reduced at once, or where they are not known (:attr:`has_unknown_weights`).
        """
        found = self.returned.gradient if self.returned is not None and self.returned.is_each else None
        if found is None or found.numel() != math.prod(self.positions):
            return None
        return found.reshape(self.positions)

    @property
    def has_unknown_weights(self) -> bool:
        """The likelihood was computed for each position, and what the loss makes of them cannot be seen."""
        return self.returned is not None and self.returned.is_each and self.weights is None

    @cached_property
    def mask(self) -> Tensor | None:
        """``(N, *positions)``, False where the loss leaves a position out, which counts 0; None if it leaves out none.

        These are ignored targets, classes and positions of weight 0, and what is masked behind the likelihood.
        """
        kept = self._kept()
        if self.weights is None:
            return kept
        trained = self.weights.nan_to_num(0.0) != 0  # 0 / 0 where a mask leaves out all
        return trained if kept is None else kept & trained

    def loss_gradient(self) -> Tensor:
        """``∂ loss_n / ∂ outputs`` of the training loss, float64 in the layout of the outputs.

        Class weights and label smoothing enter, whatever the reduction; what is masked does not. Of a Gaussian it is
        that of ½‖z - y‖².

        Raises:
            NoPrediction: There are no targets that it could be taken at.
        """
        z = self.outputs.detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(self._summed(z), z)
        return gradient

    def summed_loss(self) -> Tensor:
        """The sum of that loss over the samples, float64, differentiable in the parameters; raises as above."""
        return self._summed(self.outputs.double())

    def _summed(self, z: Tensor) -> Tensor:
        if self._loss is None:
            raise NoPrediction("the adapter gives no targets, which the empirical Fisher and the Hessian need")
        mask = self.mask
        return self._loss(z, None if mask is None or bool(mask.all()) else mask)

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
    outputs = _unfold(logits.masked_fill(logits == -torch.inf, _EXCLUDED).movedim(1, -1), samples)
    if targets is not None and not targets.is_floating_point() and targets.shape != (shape[0], *shape[2:]):
        raise NoPrediction(
            f"class targets of shape {tuple(targets.shape)} do not fit logits of shape {shape}; as for "
            f"cross_entropy, classes are on axis 1: (N, C, *positions) and (N, *positions)"
        )
    options = _options(arguments, "weight", "ignore_index", "label_smoothing")
    weight, smoothing = arguments.get("weight"), arguments.get("label_smoothing", 0.0)

    def kept() -> Tensor | None:
        if targets is None:
            return None
        if targets.is_floating_point():
            there = targets if weight is None else targets.movedim(1, -1) * weight
            classes = (there != 0).any(1 if weight is None else -1)
            return None if smoothing > 0 or bool(classes.all()) else _unfold(classes, samples)
        trained = targets != arguments.get("ignore_index", -100)
        if weight is not None and smoothing == 0:
            trained = trained & (weight[targets.clamp(0, len(weight) - 1)] != 0)
        return _unfold(trained, samples)

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        axes = outputs.dim() - 2  # with the samples, those of the positions
        z, y = (part.flatten(0, axes) if mask is None else part[mask] for part in (z, y))
        return F.cross_entropy(z, y, reduction="sum", **options)

    return _prediction(outputs, "categorical", targets, loss, kept)


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
    weight, positive = (_each(arguments.get(name), logits) for name in ("weight", "pos_weight"))

    def kept() -> Tensor | None:
        if targets is None or (weight is None and positive is None):
            return None
        there = torch.ones_like(logits, dtype=torch.bool) if weight is None else weight != 0
        if positive is not None:  # of weight 0, a positive label trains nothing
            there = there & ((targets != 1) | (positive != 0))
        return _unfold(there, samples)

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        w, p = (None if each is None else _some(_unfold(each, samples), mask).double() for each in (weight, positive))
        z, y = _some(z, mask), _some(y.double(), mask)
        return F.binary_cross_entropy_with_logits(z, y, w, reduction="sum", pos_weight=p)

    return _prediction(_unfold(logits, samples), "bernoulli", targets, loss, kept)


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
    weight = _each(arguments.get("weight"), means)

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        if y.shape != z.shape:
            raise NoPrediction(f"targets of shape {tuple(y.shape)} do not match outputs of shape {tuple(z.shape)}")
        squares = (_some(z, mask) - _some(y.double(), mask)).square()
        return 0.5 * (squares if weight is None else squares * _some(_unfold(weight, samples), mask)).sum()

    kept = (lambda: None) if weight is None else lambda: _unfold(weight != 0, samples)
    return _prediction(_unfold(means, samples), "gaussian", targets, loss, kept)


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

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        v0 = _unfold(present, samples).double()
        m, v = (z, v0)
        if variance.requires_grad:
            m, v = z.unbind(-1)
            v = v * math.sqrt(2) * v0
        m, y, v = (_some(part, mask) for part in (m * v0.sqrt(), y.double().expand(v0.shape), v))
        return F.gaussian_nll_loss(m, y, v, reduction="sum", **options)

    prediction = _prediction(_unfold(outputs, samples), "gaussian", target, loss)
    if variance.requires_grad:
        prediction.variance = _unfold(present, samples)
    return prediction


LossParser = Callable[[dict[str, Any], int], Prediction]

LIKELIHOODS: dict[Callable[..., Any], LossParser] = {
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


def _each(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """A weight that is broadcast, for every output."""
    return None if weight is None else torch.broadcast_to(weight, like.shape)


def _some(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values[mask]


def _prediction(
    outputs: Tensor,
    likelihood: LikelihoodName,
    targets: Tensor | None,
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    kept: Callable[[], Tensor | None] = lambda: None,
) -> Prediction:
    """From parts in the layout of the outputs.

    Args:
        outputs: See :class:`Prediction`.
        likelihood: See :class:`Prediction`.
        targets: As the call has them.
        loss: Gives the summed loss from float64 outputs, targets and a mask that leaves something out (else None); what
            is left out may be anything, and is not computed with.
        kept: Gives the mask of what the call itself leaves out.
    """
    y = _targets_by_sample(targets, likelihood, len(outputs))

    def summed(z: Tensor, mask: Tensor | None) -> Tensor:
        if y is None:
            assert targets is not None
            raise NoPrediction(
                f"targets of shape {tuple(targets.shape)} do not match outputs of shape {tuple(outputs.shape)}"
            )
        return loss(z, y.double() if y.is_floating_point() else y, mask)

    return Prediction(outputs, likelihood, y, _loss=None if targets is None else summed, _kept=kept)
