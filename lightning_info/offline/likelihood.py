"""The prediction of a module for batches ``(x, y)``, given by the name of a likelihood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.functional.likelihoods import LIKELIHOODS, LikelihoodLike, OfParameters, likelihood_named
from lightning_info.gradients.contract import first_line
from lightning_info.replica.prediction import Adapter


class Predicts:
    """The adapter of a module that maps the x of batches ``(x, y)`` to the outputs of a likelihood."""

    def __init__(self, likelihood: LikelihoodLike) -> None:
        self.likelihood = likelihood

    def __call__(self, module: Any, batch: Any) -> tuple[Any, Any, LikelihoodLike]:
        """Return outputs ``(N, *)``, targets and the likelihood of a batch.

        Raises:
            ValueError: The batch is not a pair.
        """
        if not _is_pair(batch):
            raise ValueError(self._refusal(batch))
        return module(batch[0]), batch[1], self.likelihood

    @torch.no_grad()
    def check(self, owner: str, module: nn.Module, batch: Any) -> None:
        """Refuse a batch that the module does not take, or whose targets do not fit the likelihood.

        Args:
            owner: Name of the caller, for messages.
            module: A module in eval mode that may be run.
            batch: The first batch.

        Raises:
            ValueError: It is refused; the message has the shapes, and what to type instead.
        """
        name, likelihood = type(module).__name__, self.likelihood
        if not _is_pair(batch):
            raise ValueError(f"{owner}: {self._refusal(batch)}")
        x, y = batch
        try:
            outputs = module(x)
        except Exception as error:
            raise ValueError(
                f"{owner}: {name} fails on the first batch of data, with x = {described(x)} ({first_line(error)}); "
                f"give x as {name} takes it, or adapter=lambda module, batch: (outputs, targets, {likelihood!r})"
            ) from error
        wrong = (
            f"{name} returns {described(outputs)}; give adapter=lambda module, batch: (outputs, targets, "
            f"{likelihood!r}) that takes the tensor of outputs out of it"
            if not isinstance(outputs, Tensor)
            else ""
            if isinstance(likelihood, OfParameters)
            else _classes_wrong(outputs, y)
            if likelihood_named(likelihood, owner).has_class_axis
            else _values_wrong(outputs, y, likelihood)
        )
        if wrong:
            raise ValueError(f"{owner}: {wrong}")

    def _refusal(self, batch: Any) -> str:
        return (
            f"with likelihood={self.likelihood!r} a batch is (x, y), and the first one is {described(batch)}; "
            f"give adapter=lambda module, batch: (outputs, targets, {self.likelihood!r}) instead"
        )


def adapter_of(
    owner: str, module: nn.Module, likelihood: LikelihoodLike | None, adapter: Adapter | None
) -> Adapter | None:
    """Return the adapter between a module and its callbacks; None if the ``training_step`` needs none.

    Raises:
        ValueError: Both are given, or one is missing or invalid.
    """
    if adapter is not None and not callable(adapter):
        raise ValueError(f"{owner}: adapter={adapter!r} is not a function (module, batch) -> (outputs, targets)")
    if likelihood is not None:
        if adapter is not None:
            raise ValueError(f"{owner}: likelihood and adapter exclude each other; the adapter may return a likelihood")
        likelihood_named(likelihood, owner)
        return Predicts(likelihood)
    if adapter is None and not hasattr(module, "training_step"):
        others = ", ".join(map(repr, list(LIKELIHOODS)[1:]))
        raise ValueError(
            f"{owner}: what {type(module).__name__} predicts is not known; give likelihood='categorical' (or "
            f"{others}) for batches (x, y), or adapter=lambda module, batch: (outputs, targets, likelihood)"
        )
    return adapter


def described(value: Any) -> str:
    """Describe a batch or a part of it in a few words: shapes and dtypes of its tensors."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)) and 0 < len(value) <= 4:
        return f"a {type(value).__name__} of {', '.join(map(described, value))}"
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(repr, list(value)[:6]))}"
    return f"a {type(value).__name__}"


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)


def _classes_wrong(outputs: Tensor, y: Tensor) -> str:
    """Return what is wrong with the targets of logits ``(N, C, *)``; empty if nothing is."""
    if outputs.shape == y.shape and y.is_floating_point():  # probabilities of the classes
        return ""
    places = (*outputs.shape[:1], *outputs.shape[2:])
    if outputs.dim() >= 2 and y.shape == places and not y.is_floating_point():
        known = y[y != -100]  # what cross_entropy ignores
        if known.numel() and (known.min() < 0 or known.max() >= outputs.shape[1]):
            return (
                f"y has classes from {int(known.min())} to {int(known.max())}, and logits of {outputs.shape[1]} "
                f"classes take those from 0 to {outputs.shape[1] - 1}; number the classes from 0"
            )
        return ""
    if y.shape == outputs.shape[:-1] and not y.is_floating_point():
        fix = "give adapter=lambda module, batch: (module(batch[0]).movedim(-1, 1), batch[1], 'categorical')"
    elif y.shape == places:
        fix = "give y.long(), or likelihood='gaussian' or 'bernoulli' if y are not classes"
    elif y.numel() == len(y) == len(outputs) and outputs.dim() == 2:
        fix = "give y.flatten()"
    else:
        fix = "give another likelihood, or an adapter"
    return (
        f"likelihood='categorical' takes logits (N, C, *) and integer classes (N, *); the module gives "
        f"{described(outputs)} and y is {described(y)}; {fix}"
    )


def _values_wrong(outputs: Tensor, y: Tensor, likelihood: LikelihoodLike) -> str:
    """Return what is wrong with targets that have the shape of the outputs; empty if nothing is."""
    if outputs.shape != y.shape:
        fix = "give likelihood='categorical' if y are classes"
        if outputs.numel() == y.numel():
            fix = f"give y.reshape({', '.join(map(str, (-1, *outputs.shape[1:])))})"
        return (
            f"likelihood={str(likelihood)!r} takes targets of the shape of the outputs; the module gives "
            f"{described(outputs)} and y is {described(y)}; {fix}"
        )
    low, high = likelihood_named(likelihood, "measure").support
    if y.min() < low or y.max() > high:
        return (
            f"likelihood={str(likelihood)!r} takes targets from {low:g} to {high:g}, and y goes from "
            f"{float(y.min()):.3g} to {float(y.max()):.3g}; scale y, or give likelihood='gaussian'"
        )
    return ""
