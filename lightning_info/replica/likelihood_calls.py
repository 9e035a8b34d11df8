"""Which of the likelihood calls of a ``training_step`` say what the module predicts, and what they say together.

Calls that the trained loss does not depend on do not count (a metric's, a teacher's). Calls on the same outputs have
one predictive distribution, whatever their targets (two labels of a mixed sample). Calls on different outputs are
several predictions; which one is meant is the user's to say (:class:`~.LikelihoodCall`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_info.replica.distribution_calls import parser_of
from lightning_info.replica.loss_recognition import LIKELIHOODS, SYMMETRIC
from lightning_info.replica.predicted import NoPrediction, Prediction, product, together
from lightning_info.replica.returned_loss import ReturnedLoss, TrainedLoss, edge_of


@dataclass
class Call:
    """A likelihood call, as it was seen.

    Attributes:
        function: Of :data:`LIKELIHOODS`, or the class of a distribution whose ``log_prob`` it is.
        arguments: By name.
        value: What it gave, without a graph; with one under ``torch.func``.
        edge: Its place in the graph; None under ``torch.func``.
        place: The line of the user's code, in parentheses; empty if it is not known.
        version: Of the outputs when they were seen.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    value: Tensor
    edge: GradientEdge | None
    place: str = ""
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.outputs._version

    @property
    def is_each(self) -> bool:
        """It has a value for every position."""
        return self.value.dim() > 0 or self.arguments.get("reduction") == "none"

    @property
    def outputs(self) -> Tensor:
        """What depends on the parameters; of two that do, the first."""
        given: Tensor = self.arguments["input"]
        target: Tensor = self.arguments["target"]
        return target if self.is_swapped and not given.requires_grad else given

    @property
    def is_swapped(self) -> bool:
        """The target depends on parameters."""
        return bool(self.arguments["target"].requires_grad)

    def read(self, samples: int, owner: str) -> Prediction:
        """What it says of a batch.

        Args:
            samples: Of the batch.
            owner: Name of the module's class, for messages.

        Raises:
            NoPrediction: It is no likelihood of outputs at targets, or the outputs are no more what they were.
        """
        arguments, name = self.arguments, self.name
        if self.outputs._version != self.version:
            raise NoPrediction(
                f"{owner}.training_step writes to the outputs that it has given to {name}{self.place}; write to a copy"
            )
        if self.is_swapped:
            others = (value for name, value in arguments.items() if name != "target")
            if any(isinstance(value, Tensor) and value.requires_grad for value in others):
                raise NoPrediction(
                    f"{owner}.training_step compares two quantities that both depend on the parameters{self.place}"
                )
            if self.function not in SYMMETRIC:
                raise NoPrediction(f"the targets of {name} in {owner}.training_step depend on parameters{self.place}")
            arguments = {**arguments, "input": arguments["target"], "target": arguments["input"]}
        function = self.function
        parse = parser_of(function) if isinstance(function, type) else LIKELIHOODS[function]
        return parse(arguments, samples)

    @property
    def is_log_prob(self) -> bool:
        """It is one of a distribution, so that a loss has it with a minus."""
        return isinstance(self.function, type)

    @property
    def name(self) -> str:
        """As the user has written it."""
        return f"{self.function.__name__}.log_prob" if self.is_log_prob else self.function.__name__

    def __str__(self) -> str:
        return f"{self.name} of outputs {tuple(self.outputs.shape)}{self.place}"


def listed(calls: list[Call]) -> str:
    """The calls with the numbers by which one is chosen."""
    return "; ".join(f"{number}: {call}" for number, call in enumerate(calls))


def chosen(calls: list[Call], losses: list[Tensor], samples: int, owner: str) -> list[int]:
    """The places of the calls that together say what the module predicts.

    Args:
        calls: All of them, at least one; of an ordinary forward pass.
        losses: See :class:`ReturnedLoss`; empty if they are not known.
        samples: Of the batch.
        owner: Name of the module's class, for messages.

    Raises:
        NoPrediction: There is no one answer; the message has the list.
    """
    is_single = len(calls) == 1 and not calls[0].is_log_prob
    if is_single and not calls[0].is_each:
        return [0]
    gradients = _returned(calls, losses).gradients
    trained = [place for place, gradient in enumerate(gradients) if gradient is not None or is_single or not losses]
    if not trained:
        raise NoPrediction(
            f"{owner}.training_step calls {len(calls)} likelihoods, and its loss depends on none of them "
            f"({listed(calls)})"
        )
    if len(trained) > 1 and not are_one([calls[place] for place in trained], samples, owner):
        raise NoPrediction(
            f"{owner}.training_step calls {len(trained)} likelihoods of different outputs or kinds, and which one is "
            f"meant is not clear ({listed(calls)}). For one of them give adapter=LikelihoodCall({trained[0]}) of "
            f"lightning_info, say, or the name of the submodule that gives its outputs, LikelihoodCall('classifier'), "
            f"and for their product, the heads of one prediction, LikelihoodCall({trained})"
        )
    for place in trained:
        if found := _objection(calls[place], gradients[place]):
            raise NoPrediction(
                f"the loss of {owner}.training_step {found}. If the distribution is what the module predicts all the "
                f"same, give adapter=LikelihoodCall({place}) of lightning_info"
            )
    return trained


def are_one(calls: list[Call], samples: int, owner: str) -> bool:
    """Whether calls have one predictive distribution: the same outputs, read alike."""
    first, *others = calls
    if not all(_is_same(first.outputs, other.outputs) for other in others):
        return False
    kinds = [call.read(samples, owner) for call in calls]
    return all(
        kind.likelihood == kinds[0].likelihood and torch.equal(kind.outputs.detach(), kinds[0].outputs.detach())
        for kind in kinds
    )


def prediction_of(calls: list[Call], losses: list[Tensor], samples: int, owner: str) -> Prediction:
    """What calls say that have one predictive distribution.

    The loss of several is theirs, each with its share in the trained loss; the targets are those of the largest.

    Args:
        calls: At least one.
        losses: See :class:`ReturnedLoss`.
        samples: Of the batch.
        owner: Name of the module's class, for messages.

    Raises:
        NoPrediction: A call is no likelihood of outputs at targets.
    """
    predictions = [call.read(samples, owner) for call in calls]
    if any(call.edge is None for call in calls):  # under torch.func
        return predictions[0]
    returned = _returned(calls, losses)
    if len(calls) == 1:
        prediction = predictions[0]
        prediction.returned = returned
    else:
        prediction = together(predictions, _shares(calls, returned.gradients), returned)
    prediction.trained = _trained(calls, losses)
    return prediction


def product_of(calls: list[Call], losses: list[Tensor], samples: int, owner: str) -> Prediction:
    """What several calls say as heads of one prediction; arguments and refusals are those of :func:`prediction_of`."""
    predictions = [prediction_of([call], losses, samples, owner) for call in calls]
    if len(calls) == 1:
        return predictions[0]
    prediction = product(predictions, replace(_returned(calls, losses), is_each=False))
    prediction.trained = _trained(calls, losses)
    return prediction


def _returned(calls: list[Call], losses: list[Tensor]) -> ReturnedLoss:
    is_each = any(call.is_each for call in calls)
    return ReturnedLoss(losses, [call.value for call in calls], [call.edge for call in calls], is_each)


def _trained(calls: list[Call], losses: list[Tensor]) -> TrainedLoss | None:
    if not losses or any(call.edge is None for call in calls):  # under torch.func
        return None
    edges = [edge for call in calls if (edge := edge_of(call.outputs)) is not None]
    return TrainedLoss(losses, edges) if edges else None


def _objection(call: Call, gradient: Tensor | None) -> str:
    """What of a call's weights in the loss says that it is not trained as a likelihood; empty if nothing does."""
    if gradient is None:
        return ""
    weights = gradient[gradient != 0].double()
    if not call.is_log_prob:
        falls = bool((weights < 0).any())
        return f"falls as {call} rises, at some positions at least, as a policy gradient does" if falls else ""
    if bool((weights < 0).all()) and (not len(weights) or torch.allclose(weights, weights[0], rtol=1e-4, atol=0.0)):
        return ""
    return (
        f"is not the mean of -log_prob ({call}): it takes each with another weight, as a policy gradient, a mixture "
        f"and importance weights do"
    )


def _shares(calls: list[Call], gradients: list[Tensor | None]) -> list[float] | None:
    """By how much each call counts, summing to one; None where it is not one number a call, or not known."""
    first = calls[0].arguments.get("reduction", "mean")
    found = []
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is None or call.arguments.get("reduction", "mean") != first:
            return None
        weights = gradient[gradient != 0].double()
        if len(weights) and not torch.allclose(weights, weights[0], rtol=1e-4, atol=0.0):
            return None
        found.append(weights[0].item() if len(weights) else 0.0)
    total = sum(found)
    return [one / total for one in found] if math.isfinite(total) and total != 0 else None


def _is_same(one: Tensor, other: Tensor) -> bool:
    """The same tensor, or equal views of it."""
    if one is other:
        return True
    if not (one._is_view() and other._is_view()) or one._base is not other._base:
        return False
    mine, theirs = (
        (t.shape, t.stride(), t.storage_offset(), t._version, t.grad_fn and t.grad_fn.name()) for t in (one, other)
    )
    return mine == theirs
