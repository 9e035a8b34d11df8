"""One measurement's view of the run: a replica, its predictions, and the reference samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_info.gradients.samples import num_samples, take
from lightning_info.probing.batch_norm import use_statistics_of
from lightning_info.probing.prediction import Predictor


class Unavailable(Exception):
    """A point that has no value (outputs not finite, say); reported as NaN with the message, never an error."""


@dataclass
class Probe:
    """What a measurement works with.

    Attributes:
        module: The replica.
        predictor: Maps the replica and a batch to its prediction.
        groups: The reference samples; batches on the CPU.
        chunk: Samples that go through the replica at once: the user's own batch size.
        device: The replica's device.
        batch_norms: The replica's layers that training uses with batch statistics.
    """

    module: nn.Module
    predictor: Predictor
    groups: list[Any]
    chunk: int
    device: torch.device
    batch_norms: list[_BatchNorm] = field(default_factory=list)

    def to_device(self, batch: Any) -> Any:
        """The batch as the replica takes it: on its device, half precision upcast as the replica's weights are."""
        return apply_to_collection(
            batch,
            Tensor,
            lambda leaf: (
                leaf.to(self.device, torch.float32)
                if leaf.dtype in (torch.float16, torch.bfloat16)
                else leaf.to(self.device)
            ),
        )

    def outputs(self, module: nn.Module, batch: Any) -> Tensor:
        """The form of the predictor that the gradient engines take."""
        return self.predictor(module, batch).outputs

    def first_chunk(self) -> Any:
        """The first samples, as many as go through the replica at once, on its device."""
        return self.to_device(take(self.groups[0], slice(0, self.chunk)))

    def use_reference_statistics(self) -> None:
        """Give the BatchNorm layers of the replica the statistics of the reference samples."""
        use_statistics_of(self.batch_norms, lambda part: self.predictor(self.module, part), self.parts())

    def parts(self) -> Iterator[Any]:
        """All reference samples, at most a chunk at a time, on the replica's device.

        Raises:
            Unavailable: There are none.
        """
        if not self.groups:
            raise Unavailable("no reference samples could be kept")
        for group in self.groups:
            size = num_samples(group)
            for index in torch.tensor_split(
                torch.arange(size), math.ceil(size / self.chunk)
            ):  # equal size: none of one
                yield self.to_device(take(group, index))

    def drawn(self, numbers: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Some reference samples, at most a chunk at a time, and their places among the numbers.

        Args:
            numbers: ``(D,)``, counted through all groups; any order, any of them more than once.
        """
        offset = 0
        for group in self.groups:
            size = num_samples(group)
            places = ((numbers >= offset) & (numbers < offset + size)).nonzero().squeeze(1)
            for some in torch.split(places, self.chunk) if len(places) else ():
                yield self.to_device(take(group, numbers[some] - offset)), some
            offset += size
