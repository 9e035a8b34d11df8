"""The prequential code of the labels, from the losses that training computes anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch

from lightning_info.functional.likelihoods import likelihood_named
from lightning_info.functional.prequential import code_excess, prequential_code
from lightning_info.gradients.batches import spread
from lightning_info.gradients.copies import deep_copy
from lightning_info.quantities.first_epoch import FirstEpoch
from lightning_info.quantities.quantity import Point, Record
from lightning_info.quantities.weight_information.classification import labels_of
from lightning_info.replica.noise import Noise
from lightning_info.replica.predicted import NoPrediction, Prediction
from lightning_info.replica.snapshot import ModelSnapshot

TAG, EXCESS = "weight_info/prequential", "weight_info/prequential_excess"
TOLERANCE = 1e-4
"""Relative difference of the returned loss from the likelihood that counts as rounding."""
CHECKED = 256
"""Number of random samples of the first epoch on which the loss is checked once more."""


class Code(NamedTuple):
    """A complete code: its length in nats, that of the uniform code, and the number of samples."""

    nats: float
    uniform: float
    samples: int


class Scale(NamedTuple):
    """How the returned loss stands to ``-log p``.

    Attributes:
        is_mean: Whether it is a mean over the samples of the batch, not their sum.
        labels: Labels of a sample by which it is divided too.
        uniform: Uniform code of a sample, nats.
    """

    is_mean: bool
    labels: int
    uniform: float


class NotTheLikelihood(ValueError):
    """The loss that ``training_step`` returns is no mean or sum of ``-log p``; the message says why."""


class LabelCode:
    """The prequential code of the labels of a run, as far as the first epoch has come.

    Attributes:
        code: The code of the whole first epoch, once it is over and there is one.
    """

    def __init__(self) -> None:
        self.code: Code | None = None
        self._reason = ""  # why there is none
        self._scale: Scale | None = None  # as the reference samples show it

    @property
    def ended(self) -> frozenset[str]:
        """Tags that get no further value."""
        return frozenset() if self.code is None else frozenset({TAG})

    def prepare(self, snapshot: ModelSnapshot) -> str:
        """Look at the loss of a few samples in train mode; return the row of the summary."""
        try:
            module = deep_copy(snapshot.module)
            for part in module.modules():
                part.training = True
            predictor, (group,) = replace(snapshot.predictor, noise=Noise()), snapshot.groups[:1]
            scale_of([predictor(module, snapshot.to_device(group))])
        except NotTheLikelihood as error:
            self._reason = str(error)
        except Exception as error:
            self._reason = f"training_step cannot be tried in train mode ({type(error).__name__}: {error})"
        return f"none: {self._reason}" if self._reason else "prequential, of the labels of the first epoch of fit"

    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        """Return the length of the code so far; nothing where there is none, with one warning if it is unexpected."""
        first = point.first_epoch
        if first is None or self._reason or self.code is not None or not (first.samples or first.missing):
            return {}
        try:
            return {TAG: self._length(snapshot, point, first)}
        except NotTheLikelihood as error:
            self._reason = str(error)
            point.warn(f"no {TAG}: {error}", TAG)
            return {}

    def _length(self, snapshot: ModelSnapshot, point: Point, first: FirstEpoch) -> float:
        if first.missing:
            raise NotTheLikelihood(first.missing)
        if self._scale is None:
            self._scale = scale_of(_predictions(snapshot))
        scale = self._scale
        if first.is_over and point.training_set is not None and point.training_set.groups:
            some = spread(point.training_set.groups[0], CHECKED)
            if scale_of(_predictions(snapshot.on([some]))) != scale:
                raise NotTheLikelihood("the loss is not reduced in the same way for all samples")
        sizes = [scale.labels * (size if scale.is_mean else 1) for size in first.losses]
        losses = torch.tensor(list(first.losses.values()), dtype=torch.float64)
        nats = prequential_code(losses, torch.tensor(sizes))[-1].item()
        if not math.isfinite(nats):
            raise NotTheLikelihood(f"the sum of the losses of the first epoch is {nats}")
        if first.is_over:
            self.code = Code(nats, first.samples * scale.uniform, first.samples)
        return nats

    def finish(self, record: Record) -> dict[str, list[tuple[int, float]]]:
        """Return the excess of the code over the loss of the last point."""
        step, loss = next(reversed(record.curves.get("weight_info/loss", ())), (-1, math.nan))
        if self.code is None or step != record.last_step or not math.isfinite(loss):
            return {}
        return {EXCESS: [(step, code_excess(self.code.nats, self.code.samples, loss))]}

    def text(self, record: Record, beta: float) -> str:
        """Return the code beside other ones of the same labels."""
        if self.code is None:
            return ""
        unit, factor = record.shown("nats")

        def number(nats: float) -> str:
            return f"{nats * factor:.4g}"

        parts = [f"{number(self.code.nats)} {unit} prequential", f"{number(self.code.uniform)} uniform"]
        weights = [value for _, value in record.curves.get("weight_info/complexity", ()) if math.isfinite(value)]
        if beta == 1 and weights:
            parts.append(f"{number(weights[-1])} by C_beta")
        return f"Code of {self.code.samples} labels: {', '.join(parts)}."

    def state(self) -> list[float] | None:
        """Return the complete code, for a checkpoint."""
        return None if self.code is None else list(self.code)

    def restore(self, state: list[float] | None) -> None:
        """Restore what :meth:`state` returned."""
        self.code = None if state is None else Code(state[0], state[1], int(state[2]))


def scale_of(predictions: Iterable[Prediction]) -> Scale:
    """Compare the loss that ``training_step`` returns for each batch with ``-log p`` of its labels.

    Raises:
        NotTheLikelihood: It is not their mean or sum, or there are no labels, or some are left out.
    """
    found: set[Scale] | None = None
    for prediction in predictions:
        fitting = _fitting(prediction)
        found = fitting if found is None else found & fitting
        if not found:
            raise NotTheLikelihood("the loss is not reduced in the same way for all samples")
    if not found:
        raise NotTheLikelihood("there are no samples to check the loss on")
    return max(found)  # a mean where a single sample fits both


def _fitting(prediction: Prediction) -> set[Scale]:
    labels = labels_of(prediction)
    if labels is None:
        raise NotTheLikelihood("the targets are no labels, and only labels have a code that depends on no unit")
    if prediction.mask is not None and not bool(prediction.mask.all()):
        raise NotTheLikelihood("the loss leaves out labels, and how many of a batch cannot be seen")
    likelihood = likelihood_named(prediction.likelihood, "prequential code")
    outputs, returned = prediction.outputs.detach().double(), prediction.step_loss()
    nats = likelihood.loss(outputs, labels.to(outputs) if labels.is_floating_point() else labels).sum().item()
    samples, each = len(labels), labels[0].numel()
    uniform = each * math.log(outputs.shape[-1] if likelihood.has_class_axis else 2)
    scales = {Scale(is_mean, count, uniform) for is_mean in (True, False) for count in {1, each}}
    fitting = {s for s in scales if _is_close(returned * s.labels * (samples if s.is_mean else 1), nats)}
    if not fitting:
        raise NotTheLikelihood(
            "the loss that training_step returns is not the mean or the sum of -log p of the labels (smoothed or mixed "
            "labels, class weights, penalties, an adapter)"
        )
    return fitting


def _is_close(value: float, truth: float) -> bool:
    return math.isclose(value, truth, rel_tol=TOLERANCE, abs_tol=1e-6)


def _predictions(snapshot: ModelSnapshot) -> Iterable[Prediction]:
    for part in snapshot.parts():
        try:
            yield snapshot.predictor(snapshot.module, part)
        except NoPrediction as error:
            raise NotTheLikelihood(str(error)) from error
