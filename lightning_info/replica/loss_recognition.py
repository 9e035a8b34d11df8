"""From a likelihood call to canonical outputs: samples on axis 0, and the Fisher information of the outputs known.

Every reader takes the arguments of its function in ``torch.nn.functional`` and gives a :class:`Prediction`. Rows that
hold the tokens of all samples one sample after the other, ``(N * T, C)``, get their sample axis back; whether they
really stand in this order is what the two-sample check of the gradient engines finds out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_info.functional.likelihoods import Huber, LikelihoodLike, LikelihoodName, OfParameters, likelihood_named
from lightning_info.replica.predicted import NoPrediction, Prediction, assembled, unfolded
from lightning_info.replica.summed_by_rows import summed_by_rows

_EXCLUDED = -1e4
"""Logit in the place of minus infinity, with which a class is excluded: its probability and its gradient are 0."""
_SATURATED = 40.0
"""Logit in the place of a probability that is exactly 0 or 1: its Fisher information, 4e-18, counts nothing."""


def categorical(arguments: dict[str, Any], samples: int) -> Prediction:
    """``cross_entropy``: logits ``(rows, C, *d)``, targets ``(rows, *d)`` or probabilities like the logits."""
    logits, targets = _rows(arguments["input"], arguments["target"], samples, unbatched=1)
    shape = tuple(logits.shape)
    if len(shape) < 2:
        raise NoPrediction(f"categorical outputs of shape {shape} have no class axis; logits are (N, C) or (N, C, *)")
    if is_functorch_wrapped_tensor(logits) or bool(logits.detach().amin() == -torch.inf):
        logits = logits.masked_fill(logits == -torch.inf, _EXCLUDED)
    outputs = unfolded(logits.movedim(1, -1), samples)
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
            return None if smoothing > 0 or bool(classes.all()) else unfolded(classes, samples)
        trained = targets != arguments.get("ignore_index", -100)
        if weight is not None and smoothing == 0:
            trained = trained & (weight[targets.clamp(0, len(weight) - 1)] != 0)
        return unfolded(trained, samples)

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        axes = outputs.dim() - 2  # with the samples, those of the positions
        z, y = (part.flatten(0, axes) if mask is None else part[mask] for part in (z, y))
        return summed_by_rows(partial(F.cross_entropy, reduction="sum", **options), z, y)

    return assembled(outputs, "categorical", targets, loss, kept, by_rows=True)


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


def class_probabilities(arguments: dict[str, Any], samples: int) -> Prediction:
    """``kl_div``: log-probabilities, and their targets or the logarithms, ``(rows, *)``; classes on axis 1 or last."""
    logits, targets = _rows(arguments["input"], arguments["target"], samples, unbatched=1)
    if arguments.get("log_target", False):
        targets = targets.exp()
    axis = _class_axis(logits)
    layout = {"input": logits.movedim(axis, 1), "target": targets.movedim(axis, 1)}
    prediction = categorical(layout, samples)

    def weights(each: Tensor) -> Tensor:
        return unfolded(each.reshape(logits.shape).movedim(axis, 1).abs().amax(1), samples)

    prediction.weights_of = weights
    return prediction


def _class_axis(log_p: Tensor) -> int:
    if log_p.dim() < 2:
        raise NoPrediction(f"the input of kl_div has shape {tuple(log_p.shape)} and no class axis; it is (N, C, *)")
    axes = {log_p.dim() - 1, 1}
    try:
        found = [axis for axis in axes if bool((log_p.detach().double().logsumexp(axis).abs() < 1e-3).all())]
    except RuntimeError:  # under vmap values cannot be looked at; a wrong axis is found out by the two-sample check
        return log_p.dim() - 1
    if len(found) != 1:
        where = "none of its axes 1 and -1" if not found else "both of its axes 1 and -1"
        raise NoPrediction(
            f"the input of kl_div, of shape {tuple(log_p.shape)}, has log-probabilities along {where}, so that its "
            f"classes are not known; it belongs after log_softmax over one of them"
        )
    return found[0]


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
        return unfolded(there, samples)

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        w, p = (None if each is None else _some(unfolded(each, samples), mask).double() for each in (weight, positive))
        z, y = _some(z, mask), _some(y.double(), mask)
        return F.binary_cross_entropy_with_logits(z, y, w, reduction="sum", pos_weight=p)

    return assembled(unfolded(logits, samples), "bernoulli", targets, loss, kept)


def probabilities(arguments: dict[str, Any], samples: int) -> Prediction:
    """``binary_cross_entropy`` on probabilities, which are turned into logits."""
    p = arguments["input"]
    inside = (p > 0) & (p < 1)
    saturated = torch.where(p > 0.5, _SATURATED, -_SATURATED).to(p)
    logits = torch.where(inside, torch.where(inside, p, 0.5).logit(), saturated)
    return bernoulli({**arguments, "input": logits}, samples)


def signs(arguments: dict[str, Any], samples: int) -> Prediction:
    """``soft_margin_loss``: logits and targets -1 or 1 ``(rows, *)``."""
    return bernoulli({"input": arguments["input"], "target": (arguments["target"] + 1) / 2}, samples)


def labels(arguments: dict[str, Any], samples: int) -> Prediction:
    """``multilabel_soft_margin_loss``: logits and targets ``(rows, C)``, of which it takes the mean over the labels."""
    prediction = bernoulli({name: arguments.get(name) for name in ("input", "target", "weight")}, samples)
    shape = arguments["input"].shape
    prediction.weights_of = lambda each: unfolded(each.reshape(shape[:-1]).unsqueeze(-1).expand(shape), samples)
    return prediction


def values(arguments: dict[str, Any], samples: int, likelihood: LikelihoodLike) -> Prediction:
    """``mse_loss`` and other functions of residuals: outputs and targets ``(rows, *)``, every output by itself.

    Args:
        arguments: ``input``, ``target`` and perhaps a ``weight`` of the loss of every output.
        samples: N.
        likelihood: Whose outputs they are as they stand.
    """
    outputs, targets = _rows(arguments["input"], arguments["target"], samples)
    weight, distribution = _each(arguments.get("weight"), outputs), likelihood_named(likelihood, "values")

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        if y.shape != z.shape:
            raise NoPrediction(f"targets of shape {tuple(y.shape)} do not match outputs of shape {tuple(z.shape)}")
        each = distribution.loss(_some(z, mask), _some(y.double(), mask))
        return (each if weight is None else each * _some(unfolded(weight, samples), mask)).sum()

    kept = (lambda: None) if weight is None else lambda: unfolded(weight != 0, samples)
    prediction = assembled(unfolded(outputs, samples), likelihood, targets, loss, kept)
    prediction.convention = distribution.convention
    return prediction


gaussian = partial(values, likelihood="gaussian")
laplace = partial(values, likelihood="laplace")


def huber(arguments: dict[str, Any], samples: int) -> Prediction:
    """``huber_loss``: locations and targets ``(rows, *)`` in their own units."""
    return values(arguments, samples, Huber(arguments.get("delta", 1.0)))


def smooth_l1(arguments: dict[str, Any], samples: int) -> Prediction:
    """``smooth_l1_loss``: the Huber loss of residuals in units of ``sqrt(beta)``; the absolute error at ``beta=0``."""
    unit = math.sqrt(arguments.get("beta", 1.0))
    if unit == 0:
        return laplace(arguments, samples)
    outputs, targets = arguments["input"] / unit, arguments["target"] / unit
    prediction = values({"input": outputs, "target": targets}, samples, Huber(unit))
    prediction.convention += f" in units of sqrt(beta) = {unit:g}"
    return prediction


def poisson(arguments: dict[str, Any], samples: int) -> Prediction:
    """``poisson_nll_loss``: rates, or their logarithms, and counts ``(rows, *)``."""
    outputs = arguments["input"]
    if not arguments.get("log_input", True):
        outputs = (outputs + arguments.get("eps", 1e-8)).log()
    return values({"input": outputs, "target": arguments["target"]}, samples, "poisson")


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
        v0 = unfolded(present, samples).double()
        m, v = (z, v0)
        if variance.requires_grad:
            m, v = z.unbind(-1)
            v = v * math.sqrt(2) * v0
        m, y, v = (_some(part, mask) for part in (m * v0.sqrt(), y.double().expand(v0.shape), v))
        return F.gaussian_nll_loss(m, y, v, reduction="sum", **options)

    prediction = assembled(unfolded(outputs, samples), "gaussian", target, loss)
    if variance.requires_grad:
        prediction.variance = unfolded(present, samples)
    return prediction


def of_parameters(likelihood: OfParameters, outputs: Tensor, targets: Tensor | None, samples: int) -> Prediction:
    """Parameters of distributions ``(rows, *positions, P)``, and targets ``(rows, *positions, *event)``."""
    outputs, targets = _rows(outputs, targets, samples, unbatched=1)

    def loss(z: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        y = y.double()
        if mask is not None:  # what is left out may be anything: samples in its place
            event = y.dim() - z.dim() + 1
            y = torch.where(mask.reshape(*mask.shape, *(1,) * event), y, likelihood.sample(z.detach(), _fixed()).to(y))
        each = likelihood.loss(z, y)
        return (each if mask is None else each[mask]).sum()

    prediction = assembled(unfolded(outputs, samples), likelihood, targets, loss)
    prediction.convention = likelihood.convention
    return prediction


LossParser = Callable[[dict[str, Any], int], Prediction]

LIKELIHOODS: dict[Callable[..., Any], LossParser] = {
    F.cross_entropy: categorical,
    F.nll_loss: log_probabilities,
    F.kl_div: class_probabilities,
    F.binary_cross_entropy_with_logits: bernoulli,
    F.binary_cross_entropy: probabilities,
    F.soft_margin_loss: signs,
    F.multilabel_soft_margin_loss: labels,
    F.mse_loss: gaussian,
    F.gaussian_nll_loss: gaussian_with_variance,
    F.l1_loss: laplace,
    F.huber_loss: huber,
    F.smooth_l1_loss: smooth_l1,
    F.poisson_nll_loss: poisson,
}
NO_LIKELIHOODS: dict[Callable[..., Any], str] = {
    F.ctc_loss: "it sums over alignments, so that its positions are not independent",
    F.triplet_margin_loss: "it compares samples with one another",
    F.triplet_margin_with_distance_loss: "it compares samples with one another",
    F.cosine_embedding_loss: "it compares embeddings",
    F.margin_ranking_loss: "it compares two predictions",
    F.hinge_embedding_loss: "a margin belongs to no density",
    F.multi_margin_loss: "a margin belongs to no density",
    F.multilabel_margin_loss: "a margin belongs to no density",
}
"""Losses that give their targets no probability, and why."""
SYMMETRIC = (F.mse_loss, F.gaussian_nll_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss)
"""Functions whose outputs and targets may change places."""

BY_NAME: dict[str, LossParser] = {
    **{name: partial(values, likelihood=name) for name in get_args(LikelihoodName)},
    "categorical": categorical,
    "bernoulli": bernoulli,
}
"""Readers of what an adapter gives."""


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _rows(outputs: Tensor, targets: Any, samples: int, unbatched: int = 0) -> tuple[Tensor, Any]:
    """A single sample whose axis was squeezed away gets it back."""
    squeezed = outputs.dim() <= unbatched or (unbatched == 0 and len(outputs) != 1)
    if samples == 1 and squeezed:
        return outputs.unsqueeze(0), None if targets is None else targets.unsqueeze(0)
    return outputs, targets


def _options(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    given = {name: arguments[name] for name in names if name in arguments}
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


def _each(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """A weight that is broadcast, for every output."""
    return None if weight is None else torch.broadcast_to(weight, like.shape)


def _some(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values[mask]
