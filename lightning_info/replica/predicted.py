"""What a module predicts for a batch, in canonical form: samples on axis 0, the distribution of the outputs known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from lightning_info.functional import fisher
from lightning_info.functional.likelihoods import LikelihoodLike, NotRegular, Product, likelihood_named
from lightning_info.replica.padding import Padding
from lightning_info.replica.returned_loss import ReturnedLoss, TrainedLoss


class NoPrediction(ValueError):
    """The module's predictive distribution was not found or makes no sense; the message tells what to write."""


class NoLikelihood(NoPrediction):
    """The loss calls nothing that is known, so that it is written by hand, or no density at all."""


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
        trained: The loss that is trained, in the graph of the outputs; None with an adapter, and under ``torch.func``.
        padding: Gives masks of positions that the batch or the module's calls tell, see :mod:`~.padding`.
        writes: The module writes to its parameters when it runs.
        convention: What the loss does not tell of the distribution and is set, such as its unit variance; or empty.
        weights_of: Brings what is known of every value of the likelihood call into the layout of :attr:`positions`;
            None: it has it but for its axes.
        recognised: How the loss was found out, where it calls no function that is known; else empty.
        unknown: Why no likelihood is known, see :mod:`~.outputs_only`; to ask for :attr:`likelihood` then fails.
        is_hand_written: It is not known because the loss calls none at all.
        step_loss: Gives the loss that the ``training_step`` returns, which need not be what goes backward; NaN where it
            returns none, and with an adapter.
    """

    outputs: Tensor
    likelihood: LikelihoodLike
    targets: Tensor | None = None
    variance: Tensor | None = None
    returned: ReturnedLoss | None = None
    trained: TrainedLoss | None = None
    padding: Callable[[], list[Padding]] = list
    writes: bool = False
    convention: str = ""
    weights_of: Callable[[Tensor], Tensor] | None = None
    recognised: str = ""
    unknown: str = ""
    is_hand_written: bool = False
    step_loss: Callable[[], float] = lambda: math.nan
    _loss: Callable[[Tensor, Tensor | None], Tensor] | None = None
    _kept: Callable[[], Tensor | None] = lambda: None

    @property
    def positions(self) -> tuple[int, ...]:
        """``(N, *positions)``: what a mask has; every output of its own where they are not classes."""
        if self.variance is not None:
            return tuple(self.variance.shape)
        return likelihood_named(self.likelihood, "Prediction").positions(self.outputs)

    @property
    def described(self) -> str:
        """What is predicted for one sample, in a few words, with what is a convention in it."""
        shape = tuple(self.outputs.shape[1:])
        if self.unknown:
            return f"outputs {shape} a sample; no likelihood, as {self.unknown}"
        convention = f" ({self.convention}, by convention)" if self.convention else ""
        found = f"; recognised by its gradient: {self.recognised}" if self.recognised else ""
        return f"{self.likelihood} outputs {shape} a sample{convention}{found}"

    def check(self) -> None:
        """Refuse a distribution that has no Fisher information.

        Raises:
            NoPrediction: With the reason.
        """
        if self.unknown:
            return
        try:
            likelihood_named(self.likelihood, "Prediction").check(self.outputs.detach().double())
        except NotRegular as error:
            raise NoPrediction(str(error)) from error

    @property
    def has_loss(self) -> bool:
        """There are targets to take the loss at."""
        return self._loss is not None

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
        if found is not None and self.weights_of is not None:
            found = self.weights_of(found)
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
        """``∂ loss_n / ∂ outputs`` of the training loss, in the layout of the outputs.

        It is computed in float64 and stays so, but for many classes, where it has the precision of the outputs.
        Class weights and label smoothing enter, whatever the reduction; what is masked does not. Of a Gaussian it is
        that of ½‖z - y‖².

        Raises:
            NoPrediction: There are no targets that it could be taken at.
        """
        z = self.outputs.detach()
        has_many = not self.unknown and likelihood_named(self.likelihood, "Prediction").has_class_axis
        z = (z if has_many and z.numel() > fisher.MOST_NUMBERS else z.double()).requires_grad_()
        (gradient,) = torch.autograd.grad(self._summed(z), z)
        return gradient

    def summed_loss(self) -> Tensor:
        """The sum of that loss over the samples, float64, differentiable in the parameters; raises as above."""
        return self._summed(self.outputs)

    def _summed(self, z: Tensor) -> Tensor:
        return self.summed_of(z, self.mask)

    def summed_of(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """The summed loss of other outputs, at the positions of a mask.

        Raises:
            NoPrediction: There are no targets.
        """
        if self._loss is None:
            raise NoPrediction("there are no targets to take the loss at; an adapter gives them beside the outputs")
        return self._loss(z, None if mask is None or bool(mask.all()) else mask)

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Logits, or means and (where it is predicted) variance, in units that do not depend on the weights."""
        if self.variance is None:
            return self.outputs.detach(), None
        return self.outputs.detach()[..., 0] * self.variance.sqrt(), self.variance


def unfolded(rows: Tensor, samples: int) -> Tensor:
    """``(N, positions, *)`` of rows ``(N * positions, *)`` that hold the positions of a sample one after the other."""
    if rows.dim() == 0 or len(rows) == 0 or len(rows) % samples:
        shape = tuple(rows.shape)
        raise NoPrediction(f"the outputs have shape {shape} for {samples} samples; axis 0 must be the sample axis")
    return rows if len(rows) == samples else rows.reshape(samples, -1, *rows.shape[1:])


def _targets_by_sample(targets: Tensor | None, likelihood: LikelihoodLike, samples: int) -> Tensor | None:
    if targets is None or targets.dim() == 0 or len(targets) == 0 or len(targets) % samples:
        return None
    probabilities = (
        likelihood_named(likelihood, "targets").has_class_axis and targets.is_floating_point() and targets.dim() > 1
    )
    return unfolded((targets.movedim(1, -1) if probabilities else targets).detach(), samples)


def assembled(
    outputs: Tensor,
    likelihood: LikelihoodLike,
    targets: Tensor | None,
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    kept: Callable[[], Tensor | None] = lambda: None,
    *,
    by_rows: bool = False,
) -> Prediction:
    """From parts in the layout of the outputs.

    Args:
        outputs: See :class:`Prediction`.
        likelihood: See :class:`Prediction`.
        targets: As the call has them.
        loss: Gives the summed loss from float64 outputs, targets and a mask that leaves something out (else None); what
            is left out may be anything, and is not computed with.
        kept: Gives the mask of what the call itself leaves out.
        by_rows: The loss takes outputs and targets as they are, and brings some rows at a time into float64.
    """
    y = _targets_by_sample(targets, likelihood, len(outputs))

    def summed(z: Tensor, mask: Tensor | None) -> Tensor:
        if y is None:
            assert targets is not None
            raise NoPrediction(
                f"targets of shape {tuple(targets.shape)} do not match outputs of shape {tuple(outputs.shape)}"
            )
        if by_rows:
            return loss(z, y, mask)
        return loss(z.double(), y.double() if y.is_floating_point() else y, mask)

    return Prediction(outputs, likelihood, y, _loss=None if targets is None else summed, _kept=kept)


def together(predictions: list[Prediction], shares: list[float] | None, returned: ReturnedLoss) -> Prediction:
    """One prediction of several that differ in their targets and in what their losses leave out.

    Args:
        predictions: Of the same outputs and likelihood.
        shares: By how much the loss of each counts; None if that is not known, which leaves the loss unknown.
        returned: Of all of them.
    """
    most = 0 if shares is None else max(range(len(shares)), key=lambda place: abs(shares[place]))

    def loss(z: Tensor, mask: Tensor | None) -> Tensor:
        if shares is None:
            raise NoPrediction(
                f"the loss weighs its {len(predictions)} likelihood calls on the same outputs differently at different "
                f"positions, or reduces them in different ways, so that what it makes of them is not known"
            )
        parts = [share * one._loss(z, mask) for one, share in zip(predictions, shares, strict=True) if one._loss]
        return torch.stack(parts).sum(0)

    def kept() -> Tensor | None:
        masks = [one._kept() for one in predictions]
        return None if any(mask is None for mask in masks) else torch.stack(cast(list[Tensor], masks)).any(0)

    return replace(predictions[most], returned=returned, _loss=loss, _kept=kept)


def product(predictions: list[Prediction], returned: ReturnedLoss) -> Prediction:
    """One prediction of several for the same samples, which are independent given the input.

    Its loss is the sum of theirs, whatever weights the training gives them; it has no targets of one kind.

    Args:
        predictions: At least one, none with a predicted variance.
        returned: Of all of them.

    Raises:
        NoPrediction: One has a predicted variance.
    """
    if any(one.variance is not None for one in predictions):
        raise NoPrediction("a head that predicts a variance cannot be measured together with others, only by itself")
    heads = [(likelihood_named(one.likelihood, "product"), tuple(one.outputs.shape[1:])) for one in predictions]
    whole = Product(heads)
    flat = [one.outputs.reshape(len(one.outputs), -1) for one in predictions]

    def loss(z: Tensor, mask: Tensor | None) -> Tensor:
        masks = [None] * len(heads) if mask is None else whole.positions_of(mask)
        parts = zip(predictions, whole.outputs_of(z), masks, strict=True)
        return torch.stack([one.summed_of(part, kept) for one, part, kept in parts]).sum(0)

    def kept() -> Tensor | None:
        masks = [one.mask for one in predictions]
        if all(mask is None for mask in masks):
            return None
        pairs = zip(masks, predictions, strict=True)
        every = [torch.ones(one.positions, dtype=torch.bool) if mask is None else mask for mask, one in pairs]
        device = predictions[0].outputs.device
        return torch.cat([mask.to(device).reshape(len(mask), -1) for mask in every], 1)

    convention = "; ".join(dict.fromkeys(one.convention for one in predictions if one.convention))
    outputs = torch.cat(flat, 1)
    return Prediction(outputs, whole, returned=returned, convention=convention, _loss=loss, _kept=kept)
