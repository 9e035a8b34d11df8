"""What layers give while the weights are noisy: one forward pass over the reference samples for each draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_info.probing.activations import Activation, Layer
from lightning_info.probing.likelihoods import Prediction
from lightning_info.probing.noisy_loss import moved
from lightning_info.probing.probe import Probe

LOSS = "loss"


@dataclass(frozen=True)
class NoisyReader:
    """Reads the units of some layers, before the function where that is invertible, and the loss.

    Args:
        layers: The layers.
        most_units: Wider layers become so many orthonormal random combinations.
        seed: Of these.
    """

    layers: tuple[Layer, ...]
    most_units: int
    seed: int

    def __call__(self, prediction: Prediction, activations: Mapping[str, Activation]) -> dict[str, Tensor]:
        """``(N, units)`` by layer, and ``loss (N,)``, the same share of the batch's sum for each sample."""
        read = {
            f"units/{label}": self._project(activation.units if activation.before is None else activation.before)
            for label, activation in activations.items()
        }
        samples = len(prediction.outputs)
        read[LOSS] = (prediction.summed_loss().detach() / samples).expand(samples)
        return read

    def _project(self, units: Tensor) -> Tensor:
        width = units.shape[1]
        if width <= self.most_units:
            return units
        generator = torch.Generator().manual_seed((1_000_003 * self.seed + width) % 2**63)
        normal = torch.randn(width, self.most_units, generator=generator, dtype=torch.float64)
        projected: Tensor = units @ torch.linalg.qr(normal).Q.to(units)
        return projected


@dataclass
class NoisyActivations:
    """Over M draws.

    Attributes:
        units: ``(M, N, units)`` by layer's label, on the CPU; of layers that did not run for all samples there is none.
        losses: Mean loss of a sample at each draw, ``(M,)``, nats.
    """

    units: dict[str, Tensor]
    losses: Tensor


def noisy_activations(probe: Probe, reader: NoisyReader, noises: Iterable[Tensor]) -> NoisyActivations:
    """Run the replica once for each draw of weight noise ``(k,)``, over all samples of a probe.

    Args:
        probe: With a private replica.
        reader: What to read.
        noises: The draws.
    """
    rows: dict[str, list[Tensor]] = {}
    draws = 0
    for noise in noises:
        with moved(probe, noise):
            read = replace(probe, readers=[], whole=None, _read={}).read(reader)
        draws += 1
        for name, values in read.items():
            rows.setdefault(name, []).append(values)
    losses = torch.stack(rows.pop(LOSS)).mean(1)
    whole = {name.removeprefix("units/"): torch.stack(some) for name, some in rows.items() if len(some) == draws}
    return NoisyActivations(whole, losses)
