"""``log_prob`` of ``torch.distributions`` whose parameters a module predicts, seen as the likelihood calls are.

Only while a replica runs, and only for the thread that it runs in, the methods show what they were given; their values
stay what they are. ``Independent`` and transforms without parameters call the methods of what they are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from threading import Lock
from typing import Any, ClassVar

from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Laplace, Normal, Poisson
from torch.overrides import handle_torch_function, has_torch_function

from lightning_info.replica.loss_recognition import (
    LossParser,
    bernoulli,
    categorical,
    gaussian_with_variance,
    values,
)
from lightning_info.replica.predicted import NoPrediction, Prediction


def _normal(given: Normal, value: Tensor, samples: int) -> Prediction:
    arguments = {"input": given.loc, "target": value, "var": given.scale.square(), "eps": _SMALLEST}
    return gaussian_with_variance(arguments, samples)


def _laplace(given: Laplace, value: Tensor, samples: int) -> Prediction:
    if given.scale.requires_grad:
        raise NoPrediction("the scale of a Laplace distribution is predicted, and only its location can be measured")
    prediction = values({"input": given.loc / given.scale, "target": value / given.scale}, samples, "laplace")
    prediction.convention = ""
    return prediction


def _categorical(given: Categorical, value: Tensor, samples: int) -> Prediction:
    return categorical({"input": given.logits.movedim(-1, 1), "target": value.long()}, samples)


def _bernoulli(given: Bernoulli, value: Tensor, samples: int) -> Prediction:
    return bernoulli({"input": given.logits, "target": value}, samples)


def _poisson(given: Poisson, value: Tensor, samples: int) -> Prediction:
    return values({"input": given.rate.log(), "target": value}, samples, "poisson")


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
        kind: Among :data:`DISTRIBUTIONS`.
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


def arguments_of(kind: type[Distribution], given: Any, value: Tensor) -> dict[str, Any]:
    """In the form of the arguments of a loss, with all parameters of the distribution."""
    parameters = {name: getattr(given, name) for name in _PARAMETERS[kind]}
    first = parameters.pop(_PARAMETERS[kind][0])
    return {"input": first, "target": value, "distribution": given, **parameters}


def _parser(kind: type[Distribution]) -> LossParser:
    def read(arguments: dict[str, Any], samples: int) -> Prediction:
        given, value = arguments["distribution"], arguments["target"]
        if value.shape != given.batch_shape:
            raise NoPrediction(
                f"{kind.__name__}.log_prob takes values of shape {tuple(value.shape)} in the training_step, of "
                f"{tuple(given.batch_shape)} distributions; with one value for each it would be the likelihood"
            )
        return DISTRIBUTIONS[kind](given, value, samples)

    return read


LOG_PROBS: dict[Callable[..., Any], LossParser] = {kind: _parser(kind) for kind in DISTRIBUTIONS}
"""What reads the calls, as the parsers of losses do."""


class ShownLogProbs(AbstractContextManager[None]):
    """As long as one is open, the methods of :data:`DISTRIBUTIONS` show their calls."""

    _lock = Lock()
    _open = 0
    _methods: ClassVar[dict[type[Distribution], Any]] = {}

    def __enter__(self) -> None:
        with self._lock:
            if ShownLogProbs._open == 0:
                for kind in DISTRIBUTIONS:
                    self._methods[kind] = kind.__dict__["log_prob"]
                    kind.log_prob = _showing(kind, self._methods[kind])  # type: ignore[method-assign, assignment]
            ShownLogProbs._open += 1

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            ShownLogProbs._open -= 1
            if ShownLogProbs._open == 0:
                for kind in DISTRIBUTIONS:
                    kind.log_prob = self._methods.pop(kind)  # type: ignore[method-assign]


def _showing(kind: type[Distribution], method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @wraps(method)
    def shown(self: Any, value: Tensor) -> Tensor:
        return log_prob(kind, self, value, method)

    return shown
