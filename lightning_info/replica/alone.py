"""One sample of a chunk goes through the replica alone: what is taken for its own in the chunk must be its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import company, num_samples, spread_around, take
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.loop import fitted, squares_of
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.replica.activations import Activation
from lightning_info.replica.disagreement import disagreement
from lightning_info.replica.predicted import Prediction

OUTPUTS = 1e-2
"""Relative difference that rounding may make in outputs and activations, in the replica's own precision."""
NORMS = 0.05
"""The same in a squared gradient norm."""


class NotItsOwn(Exception):
    """Outputs of a sample depend on the others that go through the replica with it."""


class Misattributed(NotCovered):
    """An engine gives a sample other norms than it has.

    Attributes:
        samples: A few samples of the chunk in which it does, that one among them.
    """

    def __init__(self, message: str, samples: Any) -> None:
        super().__init__(message)
        self.samples = samples

    def __reduce__(self) -> tuple[Any, ...]:
        """Make it anew in another process."""
        return type(self), (str(self), self.samples)


class Alone:
    """A sample of a chunk, by itself or beside as few others as the module takes.

    Args:
        batch: The chunk.
        sample: Its number.
    """

    def __init__(self, batch: Any, sample: int) -> None:
        self.batch, self.sample = batch, sample
        self.index = company(sample, num_samples(batch), batch.layout.fewest if isinstance(batch, Batch) else 1)
        self.part = take(batch, self.index)
        self.row = int((self.index == sample).nonzero()[0])
        self._columns: list[Tensor] = []

    def compare_outputs(self, alone: Prediction, whole: Prediction) -> None:
        """Raises NotItsOwn where they differ."""
        found = disagreement(alone, whole, self.index, OUTPUTS)
        if found is not None:
            raise NotItsOwn(
                f"a sample has {found} by itself than beside {num_samples(self.batch) - 1} others, so that it has no "
                f"prediction of its own"
            )

    def others(self, alone: Mapping[str, Activation], whole: Mapping[str, Activation]) -> set[str]:
        """Layers whose row for the sample is not what they give for it alone."""
        return {label for label in alone.keys() & whole.keys() if not self._agrees(alone[label], whole[label])}

    def _agrees(self, alone: Activation, whole: Activation) -> bool:
        values, mine = whole.units[self.sample], alone.units[self.row].to(whole.units)

        def is_close(scale: float) -> bool:
            return torch.allclose(mine, values, rtol=OUTPUTS, atol=OUTPUTS * scale, equal_nan=True)

        # the scale of all samples is no smaller than that of one, which is cheap
        return is_close(_largest(values)) or is_close(_largest(whole.units))

    def noting(self, cotangents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Hand on the cotangents of the chunk, and remember the sample's own."""
        for u in cotangents:
            self._columns.append(u[self.sample].clone())
            yield u

    def compare_norms(self, module: nn.Module, alone: Prediction, found: dict[str, Tensor]) -> None:
        """Compare an engine's squared norms with plain autograd on the sample alone.

        Args:
            module: The replica.
            alone: What is predicted for it.
            found: ``(N,)`` by parameter, of the cotangents that :meth:`noting` handed on.

        Raises:
            Misattributed: They differ.
        """
        row = alone.outputs[self.row]
        parameters = trainable(module)
        own = torch.stack([squares_of(row, fitted(u, row), parameters) for u in self._columns]).sum(0).cpu()
        given = torch.stack([found[name][self.sample] for name in parameters]).to(own)
        typical = torch.stack([values.mean() for values in found.values()]).sum().item()
        allowed = NORMS * (own + 0.02 * own.sum()) + 1e-6 * typical
        if own.isfinite().all() and ((given - own).abs() > allowed).any():
            worst = int(((given - own).abs() - allowed).argmax())
            size = num_samples(self.batch)
            few = spread_around(size, CHECK_SAMPLES, self.sample)
            raise Misattributed(
                f"{list(parameters)[worst]} gives {given[worst].item():.4g} for a sample of which plain autograd alone "
                f"gives {own[worst].item():.4g}",
                take(self.batch, few),
            )


def _largest(values: Tensor) -> float:
    """Largest modulus among the finite values; 0 of none."""
    return values.nan_to_num(0, 0, 0).abs().amax().item() if values.numel() else 0.0
