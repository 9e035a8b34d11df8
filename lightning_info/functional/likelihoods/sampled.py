"""Any distribution of ``torch.distributions`` whose parameters are outputs: its Fisher information from samples of it.

For mixtures, transforms with predicted parameters, and whatever has no closed form here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Transform

from lightning_info.functional import draws
from lightning_info.functional.likelihoods.base import CotangentEstimator, NotRegular
from lightning_info.functional.likelihoods.parameters import LABELS, OfParameters


class Sampled(OfParameters):
    """H of a position is the mean of ``s sᵀ`` over scores s at :data:`~.parameters.LABELS` labels from the model.

    The labels are the same at every call. Every cotangent is the score at a fresh label, so the reported error of a
    trace includes that of the labels. The outputs are all tensors with a gradient from which the density is computed,
    in the order in which they are found.

    Args:
        given: A distribution with one member per position; its tensors that have a gradient are the parameters.
        value: Value at which its density was evaluated.

    Raises:
        NotRegular: It depends on weights besides its parameters, or these have no place for each position.
    """

    name: ClassVar[str] = "sampled"
    is_exact: bool = False
    convention: ClassVar[str] = f"its Fisher information from {LABELS} labels that are sampled from it"

    def __init__(self, given: Distribution, value: Tensor) -> None:
        self._given = given
        self._places = tuple(given.batch_shape)
        self._leaves = _used(given, value)
        if not self._leaves:
            raise NotRegular(f"{type(given).__name__} has no predicted parameters that can be told from its weights")
        rows = [self._row(leaf) for leaf in self._leaves]
        self.outputs = torch.cat(rows, -1)
        self._sizes = [row.shape[-1] for row in rows]
        super().__init__((True,) * sum(self._sizes))

    def __str__(self) -> str:
        return type(self._given).__name__

    def _row(self, leaf: Tensor) -> Tensor:
        """Return the numbers of one parameter for each position, ``(*positions, p)``."""
        return self._expanded(leaf).reshape(*self._places, -1)

    def _expanded(self, leaf: Tensor) -> Tensor:
        shape, whole = tuple(leaf.shape), (*self._places, *self._given.event_shape)
        if shape[: len(self._places)] == self._places:
            return leaf
        try:
            return torch.broadcast_to(leaf, whole)
        except RuntimeError:
            return leaf.expand(*self._places, *shape)

    def distribution(self, z: Tensor) -> Distribution:
        """Return the distribution with other parameters, in the precision of z."""
        parts = torch.split(z.reshape(*self._places, -1), self._sizes, -1)
        pairs = zip(self._leaves, parts, strict=True)
        new = {id(leaf): part.reshape(self._expanded(leaf).shape) for leaf, part in pairs}
        made: Distribution = _replaced(self._given, new, z.dtype)
        return made

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ``-log p(y | θ)``."""
        value = y.reshape(*self._places, *self._given.event_shape)
        return -self.distribution(z).log_prob(value).reshape(z.shape[:-1])

    def kl(self, z: Tensor, other: Tensor, variances: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return a mean over samples of p, see :class:`~.OfParameters`."""
        return self._sampled_kl(z, other)

    def information(self, z: Tensor) -> Tensor:
        """See the class."""
        generator, total = torch.Generator().manual_seed(0), torch.zeros((), dtype=z.dtype, device=z.device)
        for _ in range(LABELS):
            score = self.score(z, self.sample(z, generator))
            total = total + score.unsqueeze(-1) * score.unsqueeze(-2)
        return total / LABELS

    def cotangent(self, z: Tensor, estimator: CotangentEstimator, generator: Generator | None) -> Tensor:
        """Return the score at a fresh label, whatever the estimator."""
        return super().cotangent(z, "sampled", generator)

    def sample(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Targets.

        Raises:
            NotRegular: The outputs are not those with which the distribution was found, or it has no samples.
        """
        own = self.outputs.detach().to(z)
        if z.numel() != own.numel() or not torch.allclose(z.reshape(own.shape), own, 1e-12, 0.0, equal_nan=True):
            raise NotRegular(f"only the outputs of {self} itself can be sampled from")
        with draws.seeding(z.device, generator), torch.no_grad():
            try:
                return self._given.sample().reshape(*z.shape[:-1], *self._given.event_shape)
            except NotImplementedError as error:
                raise NotRegular(f"{self} has no samples, which its Fisher information needs") from error

    def check(self, z: Tensor) -> None:
        """Check the mean of the scores, which is 0 if the support does not depend on the parameters.

        Raises:
            NotRegular: The mean is more than eight standard errors from 0 at some position.
        """
        generator = torch.Generator().manual_seed(1)
        scores = torch.stack([self.score(z, self.sample(z, generator)) for _ in range(LABELS)])
        if not scores.isfinite().all():
            return  # as are then the outputs, or the labels
        error = scores.std(0) / math.sqrt(LABELS)
        if bool((scores.mean(0).abs() > 8 * error + 1e-9 * scores.abs().amax(0)).any()):
            raise NotRegular(
                f"the mean score of {self} is not 0 at its own samples, as where the support depends on the "
                f"parameters: it has no Fisher information"
            )


def predicted_tensors(given: Any) -> list[Tensor]:
    """Return the tensors with a gradient that a distribution keeps, its parts' and transforms' included, each once."""
    return list({id(leaf): leaf for leaf in _tensors(given)}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, (Distribution, Transform)) and not isinstance(value, nn.Module):
        yield from _tensors(list(_parts(value).values()))


def _parts(value: Distribution | Transform) -> dict[str, Any]:
    """Return its attributes, except the cached inverse of a transform, which leads back to it."""
    goes_back = "_inv" in vars(value) and type(value).__name__ != "_InverseTransform"
    return {name: one for name, one in vars(value).items() if not (goes_back and name == "_inv")}


def _replaced(value: Any, new: dict[int, Tensor], dtype: torch.dtype | None = None) -> Any:
    """Return a copy with other tensors in the places of some, and all real ones of one precision."""
    if isinstance(value, Tensor):
        other = new.get(id(value), value)
        return other.to(dtype) if dtype is not None and other.is_floating_point() else other
    if type(value) in (list, tuple):
        return type(value)(_replaced(one, new, dtype) for one in value)
    if isinstance(value, (Distribution, Transform)) and not isinstance(value, nn.Module):
        copied = copy.copy(value)
        copied.__dict__.update({name: _replaced(one, new, dtype) for name, one in _parts(value).items()})
        if isinstance(copied, Distribution):
            copied._validate_args = False
        else:
            copied._cached_x_y = (None, None)
            if "_inv" not in _parts(value):
                copied._inv = None
        return copied
    return value


def _used(given: Distribution, value: Tensor) -> list[Tensor]:
    """Return the tensors from which the density is computed, not those from which they were computed."""
    leaves = predicted_tensors(given)
    fresh = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        again = _replaced(given, {id(leaf): one for leaf, one in zip(leaves, fresh, strict=True)})
        try:
            density = again.log_prob(value).sum()
            found = torch.autograd.grad(density, fresh, allow_unused=True, retain_graph=True)
            fixed = _replaced(given, {id(leaf): leaf.detach() for leaf in leaves})
            if fixed.log_prob(value).requires_grad:
                raise NotRegular(
                    f"the density of {type(given).__name__} depends on weights that are not its parameters (for "
                    f"example, of a transform that is a module)"
                )
        except RuntimeError:  # under torch.func
            return leaves
    return [leaf for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None]
