"""``log_prob`` of ``torch.distributions`` whose parameters a module predicts, seen as the likelihood calls are.

Only while a replica runs, and only for the thread that it runs in, the methods show what they were given; their values
stay what they are. ``Independent`` and transforms without parameters call the methods of what they are made of. What is
neither a likelihood with a file of its own nor a family of torch (:data:`~..likelihoods.FAMILIES`) is measured by
samples of it (:class:`~..likelihoods.Sampled`): mixtures, transforms with predicted parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, wraps
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    Normal,
    Poisson,
    TransformedDistribution,
)
from torch.overrides import handle_torch_function, has_torch_function

from lightning_info.functional.likelihoods import FAMILIES, NotRegular, Sampled
from lightning_info.functional.likelihoods.sampled import predicted_tensors
from lightning_info.replica.loss_recognition import (
    LossParser,
    bernoulli,
    categorical,
    gaussian_with_variance,
    of_parameters,
    values,
)
from lightning_info.replica.predicted import NoPrediction, Prediction


def _normal(given: Normal, value: Tensor, samples: int) -> Prediction:
    arguments = {"input": given.loc, "target": value, "var": given.scale.square(), "eps": _SMALLEST}
    return gaussian_with_variance(arguments, samples)


def _laplace(given: Laplace, value: Tensor, samples: int) -> Prediction:
    if given.scale.requires_grad:
        return _family(Laplace, given, value, samples)
    prediction = values({"input": given.loc / given.scale, "target": value / given.scale}, samples, "laplace")
    prediction.convention = ""
    return prediction


def _categorical(given: Categorical, value: Tensor, samples: int) -> Prediction:
    return categorical({"input": given.logits.movedim(-1, 1), "target": value.long()}, samples)


def _bernoulli(given: Bernoulli, value: Tensor, samples: int) -> Prediction:
    return bernoulli({"input": given.logits, "target": value}, samples)


def _poisson(given: Poisson, value: Tensor, samples: int) -> Prediction:
    return values({"input": given.rate.log(), "target": value}, samples, "poisson")


def _family(kind: type[Distribution], given: Distribution, value: Tensor, samples: int) -> Prediction:
    names, make = FAMILIES[kind]
    places = tuple(given.batch_shape)
    parameters = [getattr(given, name) for name in names]
    shapes = tuple(tuple(parameter.shape[len(places) :]) for parameter in parameters)
    rows = [one.expand(*places, *shape).reshape(*places, -1) for one, shape in zip(parameters, shapes, strict=True)]
    predicted = [one.requires_grad for one, row in zip(parameters, rows, strict=True) for _ in range(row.shape[-1])]
    z = torch.cat([row.to(torch.promote_types(row.dtype, torch.float32)) for row in rows], -1)
    return of_parameters(make(tuple(predicted), shapes), z, value, samples)


def _sampled(given: Distribution, value: Tensor, samples: int) -> Prediction:
    try:
        one = Sampled(given, value)
    except NotRegular as error:
        raise NoPrediction(str(error)) from error
    return of_parameters(one, one.outputs, value, samples)


_SMALLEST = 1e-30
"""Of a variance; a distribution has no other limit."""
DISTRIBUTIONS: dict[type[Distribution], Callable[[Any, Tensor, int], Prediction]] = {
    Normal: _normal,
    Laplace: _laplace,
    Categorical: _categorical,
    Bernoulli: _bernoulli,
    Poisson: _poisson,
}
_PARAMETERS: dict[type[Distribution], tuple[str, ...]] = {
    Normal: ("loc", "scale"),
    Laplace: ("loc", "scale"),
    Categorical: ("logits",),
    Bernoulli: ("logits",),
    Poisson: ("rate",),
}


def log_prob(kind: type[Distribution], given: Any, value: Any, method: Callable[[Any, Any], Tensor]) -> Tensor:
    """``method(given, value)``, shown to whoever watches the torch functions of this thread.

    Args:
        kind: The class of the distribution.
        given: The distribution.
        value: What its density is wanted at.
        method: Of torch.

    Returns:
        The log-probabilities.
    """
    if has_torch_function((value,)):
        shown: Tensor = handle_torch_function(log_prob, (value,), kind, given, value, method)
        return shown
    return method(given, value)


def arguments_of(given: Any, value: Tensor) -> dict[str, Any]:
    """In the form of the arguments of a loss, with all parameters of the distribution; the first is one predicted."""
    kind = kind_of(given)
    names = _PARAMETERS[kind] if kind in _PARAMETERS else FAMILIES[kind][0] if kind in FAMILIES else ()
    parameters = {name: getattr(given, name) for name in names}
    if not names:
        parameters = {f"parameter {place}": leaf for place, leaf in enumerate(predicted_tensors(given))}
    first = next((name for name, one in parameters.items() if one.requires_grad), next(iter(parameters), None))
    outputs = value.new_zeros(()) if first is None else parameters.pop(first)
    return {"input": outputs, "target": value, "distribution": given, **parameters}


def kind_of(given: Any) -> type[Distribution]:
    """The class by which a distribution is read: the nearest of its bases that is known, else its own."""
    known = (base for base in type(given).__mro__ if base in DISTRIBUTIONS or base in FAMILIES)
    return next(known, type(given))


def parser_of(kind: type[Distribution]) -> LossParser:
    """What reads the calls of a class of :func:`kind_of`, as the parsers of losses do."""

    def read(arguments: dict[str, Any], samples: int) -> Prediction:
        given, value = arguments["distribution"], arguments["target"]
        if value.shape != given.batch_shape + given.event_shape:
            raise NoPrediction(
                f"{kind.__name__}.log_prob takes values of shape {tuple(value.shape)} in the training_step, of "
                f"{tuple(given.batch_shape)} distributions; with one value for each it would be the likelihood"
            )
        if kind in DISTRIBUTIONS:
            return DISTRIBUTIONS[kind](given, value, samples)
        return _family(kind, given, value, samples) if kind in FAMILIES else _sampled(given, value, samples)

    return read


def _classes(kind: type[Distribution] = Distribution) -> Iterator[type[Distribution]]:
    """All that have a density of their own, the user's included."""
    for one in kind.__subclasses__():
        if "log_prob" in one.__dict__ and one is not Independent:
            yield one
        yield from _classes(one)


def _is_transparent(given: Any) -> bool:
    """Its density is that of its base at other values, which says all of its parameters."""
    if not isinstance(given, TransformedDistribution) or kind_of(given) in FAMILIES:
        return False
    return not predicted_tensors(given.transforms)


class ShownLogProbs(AbstractContextManager[None]):
    """As long as one is open, the methods of all distributions show their calls."""

    _lock = Lock()
    _open = 0
    _methods: ClassVar[dict[type[Distribution], Any]] = {}

    def __enter__(self) -> None:
        with self._lock:
            if ShownLogProbs._open == 0:
                for kind in dict.fromkeys(_classes()):
                    self._methods[kind] = kind.__dict__["log_prob"]
                    kind.log_prob = _showing(self._methods[kind])  # type: ignore[method-assign, assignment]
            ShownLogProbs._open += 1

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            ShownLogProbs._open -= 1
            if ShownLogProbs._open == 0:
                for kind in list(self._methods):
                    kind.log_prob = self._methods.pop(kind)  # type: ignore[method-assign]


@cache
def _showing(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @wraps(method)
    def shown(self: Any, value: Tensor) -> Tensor:
        if isinstance(value, Tensor) and not _is_transparent(self):
            return log_prob(kind_of(self), self, value, method)
        return method(self, value)

    return shown
