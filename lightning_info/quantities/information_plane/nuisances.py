"""Nuisances of a user's samples, and the information I(T;N) that layers keep of them.

A nuisance is what moves the input and says nothing of the label: a rotation, the camera. A layer that holds little of
it is invariant to it. Source: Achille, Paolini & Soatto, section 3: minimality and invariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import Batch, bare
from lightning_info.quantities.checks import WrongQuantity
from lightning_info.quantities.information_plane.decoded import CLASSES
from lightning_info.quantities.information_plane.features import LayerFeatures
from lightning_info.quantities.information_plane.label_information import LabelDecoders, decoded, tags_of, views_read
from lightning_info.quantities.quantity import Warn
from lightning_info.replica.isolation import seeded
from lightning_info.replica.snapshot import Audit, ModelSnapshot
from lightning_info.replica.timing import trial

Transform = Callable[[Any], tuple[Any, Any]]
"""A sample -> the sample with a nuisance, and the label of the nuisance."""
Nuisances = Mapping[str, Transform | str | int]


def check_nuisances(owner: str, nuisances: Nuisances) -> None:
    """Refuse what names no nuisances.

    Raises:
        ValueError: It is refused; the message has an example.
    """
    for name, nuisance in nuisances.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"{owner}: nuisances holds {name!r}; name each by a word, for example 'rotation'")
        if isinstance(nuisance, bool) or not (callable(nuisance) or isinstance(nuisance, (str, int))):
            raise ValueError(
                f"{owner}: nuisances={{{name!r}: {nuisance!r}}}; give a function of a sample that returns a sample and "
                f"a label, or the entry of the batch with the label, for example 'camera' or 2"
            )


def kind_of(name: str) -> str:
    """Return the kind of information about a nuisance in tags."""
    return f"I_TN_{name}"


class NuisanceDecoders:
    """Decoders of nuisances, for the layers of a plane.

    Args:
        nuisances: A function of a sample, or the entry of the batch that holds the label, by name.
        seed: Seed of the random numbers that the functions draw, the same at every point.

    Attributes:
        tags: Tags of the information and of its errors.
    """

    def __init__(self, nuisances: Nuisances, seed: int) -> None:
        self._nuisances, self._seed = nuisances, seed
        self._layers: list[str] = []
        self.tags: tuple[str, ...] = ()

    def prepare(self, snapshot: ModelSnapshot, layers: Sequence[str]) -> None:
        """Try every nuisance on a few samples.

        Args:
            snapshot: A few samples.
            layers: The layers.

        Raises:
            WrongQuantity: A nuisance cannot be had of them.
        """
        for name, nuisance in self._nuisances.items():
            try:
                self._with(nuisance, snapshot.groups)
            except Exception as error:
                raise WrongQuantity(f"nuisances={{{name!r}: ...}}: {_said(error)}") from error
        self._layers = list(layers)
        self.tags = tuple(tag for name in self._nuisances for tag in tags_of(kind_of(name), layers))

    def measure(
        self, snapshot: ModelSnapshot, features: LayerFeatures, components: int, warn: Warn
    ) -> dict[str, float]:
        """Return the values by tag; NaN of a nuisance that fails.

        Args:
            snapshot: The samples.
            features: What is read of them.
            components: Largest number of principal components.
            warn: Warns the user once.
        """
        values = dict.fromkeys(self.tags, math.nan)
        features = replace(features, decoded=0)
        for name, nuisance in self._nuisances.items():
            try:
                groups, labels = self._with(nuisance, snapshot.groups)
            except Exception as error:
                warn(f"I(T;N) of the nuisance {name!r} is NaN: {_said(error)}", f"nuisance {name}")
                continue
            of = snapshot if groups is snapshot.groups else snapshot.on(groups, Audit(done=True))
            read = of.read(features)
            for layer in self._layers:
                views = views_read(read, layer)
                if views:
                    values |= decoded(views, labels, None, components, kind_of(name), layer, warn)
        return values

    def seconds(self, snapshot: ModelSnapshot, features: LayerFeatures, samples: int) -> float:
        """Return the seconds of a point, by a trial.

        Args:
            snapshot: A few samples.
            features: What is read of them.
            samples: Number of samples of a point.
        """
        if not self._nuisances:
            return 0.0
        features = replace(features, decoded=0)
        of_one = LabelDecoders(snapshot.read(features), features.most).seconds(samples, CLASSES)
        total = 0.0
        for nuisance in self._nuisances.values():

            def read(nuisance: Transform | str | int = nuisance) -> None:
                groups, _ = self._with(nuisance, snapshot.groups)
                snapshot.on(groups, Audit(done=True)).read(features)

            total += trial(read, snapshot.device) * samples / snapshot.size + of_one
        return total

    def _with(self, nuisance: Transform | str | int, groups: list[Any]) -> tuple[list[Any], Tensor]:
        """Return the samples with a nuisance, and its labels ``(N,)``."""
        if not callable(nuisance):
            labels = [_entry(batch, nuisance) for batch in groups]
            return groups, _labels(label for part in labels for label in part)
        with seeded(torch.device("cpu"), self._seed):
            pairs = [_transformed(batch, nuisance) for batch in groups]
        return [batch for batch, _ in pairs], _labels(label for _, part in pairs for label in part)


def _entry(batch: Any, name: str | int) -> Sequence[Any]:
    given = bare(batch)
    try:
        column: Any = getattr(given, name) if isinstance(name, str) and hasattr(given, name) else given[name]
    except (KeyError, IndexError, TypeError):
        there = ", ".join(map(repr, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"the batch has no entry {name!r}; it is {there}") from None
    if len(column) != num_samples(batch):
        raise ValueError(f"the entry {name!r} of the batch has {len(column)} values for {num_samples(batch)} samples")
    return list(column)


def _transformed(batch: Any, transform: Transform) -> tuple[Any, list[Any]]:
    """Return a batch with every sample transformed, and the labels."""
    given, samples = bare(batch), num_samples(batch)
    if isinstance(given, Tensor):
        inputs, labels = _each(transform, given, samples)
        made: Any = inputs
    elif isinstance(given, Mapping):
        columns = {key: value for key, value in given.items() if isinstance(value, Tensor) and len(value) == samples}
        pairs = [_pair(transform({key: value[i] for key, value in columns.items()})) for i in range(samples)]
        labels = [label for _, label in pairs]
        made = dict(given) | {key: _stacked([one[key] for one, _ in pairs], columns[key]) for key in columns}
    elif isinstance(given, (tuple, list)) and given and isinstance(given[0], Tensor):
        inputs, labels = _each(transform, given[0], samples)
        parts = (inputs, *given[1:])
        made = type(given)(*parts) if hasattr(given, "_fields") else type(given)(parts)
    else:
        raise ValueError(f"of a batch that is a {type(given).__name__} no sample can be given to a function")
    return (replace(batch, bare=made) if isinstance(batch, Batch) else made), labels


def _each(transform: Transform, inputs: Tensor, samples: int) -> tuple[Tensor, list[Any]]:
    pairs = [_pair(transform(inputs[i].clone())) for i in range(samples)]
    return _stacked([one for one, _ in pairs], inputs), [label for _, label in pairs]


def _pair(given: Any) -> tuple[Any, Any]:
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError("the function returns no pair; return the sample with the nuisance, and the nuisance's label")
    return given


def _stacked(samples: list[Any], like: Tensor) -> Tensor:
    made = [torch.as_tensor(sample) for sample in samples]
    for sample in made:
        if sample.shape != like.shape[1:]:
            raise ValueError(
                f"the function returns a sample of shape {tuple(sample.shape)}; one of shape {tuple(like.shape[1:])} "
                f"was given to it"
            )
    return torch.stack(made).to(like)


def _labels(given: Iterable[Any]) -> Tensor:
    """Integers ``(N,)``, or floating ``(N, 1)``; texts are numbered."""
    values = [value.item() if isinstance(value, Tensor) else value for value in given]
    if any(isinstance(value, float) for value in values):
        return torch.tensor(values, dtype=torch.float64)[:, None]
    numbers = {value: number for number, value in enumerate(sorted(set(values), key=repr))}
    return torch.tensor([numbers[value] for value in values])


def _said(error: Exception) -> str:
    return " ".join(f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{error}".split())
