"""Outputs of a module whose loss has no likelihood that is known here: for what needs none, such as I(X;T)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.functional.likelihoods import LikelihoodLike
from lightning_info.gradients.batches import num_samples, tensors
from lightning_info.gradients.layout import bare
from lightning_info.replica.experiments import is_experiment
from lightning_info.replica.noise import DrawsNoise, NotItsOwnNoise
from lightning_info.replica.padding import in_batch, in_layout
from lightning_info.replica.predicted import NoLikelihood, NoPrediction, Prediction, Skipped, WritesParameters
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.shown_tensor import shown_tensor


class OutputsOnly(Predictor):
    """A :class:`~.Predictor` that goes on without a likelihood.

    The outputs are then those of the last call of a module with the samples on axis 0 (of one that depends on trained
    weights, if there is: not of a teacher), and the targets are the integers of the batch, if there is one tensor of
    them with a number for each sample; :attr:`~.Prediction.unknown` tells why.
    """

    _is_known = False  # a likelihood was found, so that no module is watched any more

    def __call__(self, module: nn.Module, batch: Any) -> Prediction:
        """The prediction for a batch on the module's device.

        Raises:
            NoPrediction: No module gives real numbers for each sample, or the module writes to shared parameters.
            Skipped: The ``training_step`` returns None for the batch.
        """
        if self._is_known:
            return super().__call__(module, batch)
        samples = num_samples(batch)
        with _last_outputs(module, samples) as found:
            try:
                prediction = super().__call__(module, batch)
            except (DrawsNoise, NotItsOwnNoise, Skipped, WritesParameters):
                raise
            except NoPrediction as error:
                if not found:
                    raise NoPrediction(
                        f"no module of {type(module).__name__} gives real numbers of shape (N, ...) for the {samples} "
                        f"samples, which are measured where no likelihood is known: {error}"
                    ) from error
                reason, is_hand_written = str(error), isinstance(error, NoLikelihood)
            else:
                self._is_known = True
                return prediction
        prediction = WithoutLikelihood(found[-1], labels_in(batch, samples), reason, is_hand_written)
        prediction.padding = lambda: [*in_batch(bare(batch), samples), *in_layout(batch)]
        return prediction


class WithoutLikelihood(Prediction):
    """Outputs and labels only; whoever asks for the likelihood is told why there is none."""

    def __init__(self, outputs: Tensor, targets: Tensor | None, unknown: str, is_hand_written: bool) -> None:
        super().__init__(outputs, "gaussian", targets, unknown=unknown, is_hand_written=is_hand_written)

    @property
    def likelihood(self) -> LikelihoodLike:
        """There is none.

        Raises:
            NoPrediction: Always.
        """
        raise NoPrediction(self.unknown)

    @likelihood.setter
    def likelihood(self, value: LikelihoodLike) -> None:
        pass

    @property
    def positions(self) -> tuple[int, ...]:
        """Every output of its own."""
        return tuple(self.outputs.shape)


@contextmanager
def _last_outputs(module: nn.Module, samples: int) -> Iterator[list[Tensor]]:
    """The outputs of the last module call that gives real numbers with the samples on axis 0, trained ones first."""
    found: list[Tensor] = []

    def see(part: nn.Module, args: Any, output: Any) -> None:
        tensor = None if is_experiment() else shown_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.dim() < 2 or len(tensor) != samples:
            return
        if tensor.requires_grad or not (found and found[0].requires_grad):
            found[:] = [tensor]

    handles = [part.register_forward_hook(see) for part in module.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def labels_in(batch: Any, samples: int) -> Tensor | None:
    """The integers of a batch, one for each sample, ``(N,)``; None if there is no such tensor, or several."""
    integers = [
        leaf.reshape(samples)
        for leaf in tensors(bare(batch))
        if leaf.numel() == samples == len(leaf) and not leaf.is_floating_point() and not leaf.is_complex()
    ]
    return integers[0].to(torch.int64) if len(integers) == 1 else None
