"""What layers give while the weights are noisy: one forward pass over the reference samples for each draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_info.gradients.batches import num_samples
from lightning_info.quantities.effective_information.conditional_gaussian import GivenBelow, LinearNoise, watched
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.activations import Activation, Layer, LayerCapture
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot

LOSS = "loss"


@dataclass(frozen=True)
class NoisyFeatures:
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
        """``(N, units)`` by layer, and ``loss (N,)``, the same share of the batch's sum for each sample.

        Without targets it is NaN.
        """
        read = {
            f"units/{label}": self._project(activation.units if activation.before is None else activation.before)
            for label, activation in activations.items()
        }
        samples = len(prediction.outputs)
        loss = prediction.summed_loss().detach() if prediction.has_loss else torch.tensor(math.nan)
        read[LOSS] = (loss / samples).expand(samples)
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
        losses: Mean loss of a sample at each draw, ``(M,)``, nats; NaN without targets.
        given_below: Mean and variance of the output of an ``nn.Linear`` given all noise but its own, by its name,
            ``(M, N, units)`` each, on the CPU.
    """

    units: dict[str, Tensor]
    losses: Tensor
    given_below: dict[str, GivenBelow] = field(default_factory=dict)


def noisy_activations(
    snapshot: ModelSnapshot,
    reader: NoisyFeatures,
    noises: Iterable[Tensor],
    linear: Mapping[str, LinearNoise] | None = None,
) -> NoisyActivations:
    """Run the replica once for each draw of weight noise ``(k,)``, over all samples of a snapshot.

    Args:
        snapshot: With a private replica.
        reader: What to read.
        noises: The draws.
        linear: Noise of ``nn.Linear`` modules by name, of which the Gaussian given all other noise is wanted.
    """
    rows: dict[str, list[Tensor]] = {}
    linear, given = linear or {}, _Given(linear or {})
    draws, passes = 0, _Passes(snapshot, reader)
    for noise in noises:
        with moved(snapshot, noise):
            with watched(snapshot.module, linear, given.see):
                read = passes.read()
            if draws == 0:
                passes.look_at_modules_alone(read)
        given.end_draw()
        draws += 1
        for name, values in read.items():
            rows.setdefault(name, []).append(values)
    losses = torch.stack(rows.pop(LOSS)).mean(1)
    whole = {name.removeprefix("units/"): torch.stack(some) for name, some in rows.items() if len(some) == draws}
    return NoisyActivations(whole, losses, given.whole((draws, snapshot.size)))


class _Passes:
    """Forward passes over all samples of a snapshot, again and again."""

    def __init__(self, snapshot: ModelSnapshot, reader: NoisyFeatures) -> None:
        self._snapshot, self._reader = snapshot, reader
        self._mixed = snapshot.audit.mixed
        self._known: dict[tuple[str, int], bool] | None = None
        self._calls: dict[tuple[str, int], bool] = {}

    def read(self) -> dict[str, Tensor]:
        """What the reader takes, on the CPU; without what it gives for some samples only."""
        module, rows = self._snapshot.module, defaultdict(list)
        for batch in self._snapshot.parts():
            with LayerCapture(module, self._reader.layers, num_samples(batch), self._known) as seen:
                prediction = self._snapshot.predictor(module, batch)
            seen.take_outputs(prediction)
            if seen.error is not None:
                raise seen.error
            self._calls |= seen.calls
            kept = {label: one for label, one in seen.activations.items() if label not in self._mixed}
            for name, values in self._reader(prediction, kept).items():
                rows[name].append(values.cpu())
        whole = {name: torch.cat(parts) for name, parts in rows.items()}
        return {name: values for name, values in whole.items() if len(values) == self._snapshot.size}

    def look_at_modules_alone(self, expected: dict[str, Tensor]) -> None:
        """From now on see only the modules that give the layers, if that gives the same."""
        modules = dict(self._snapshot.module.named_modules())
        known = {call: first for call, first in self._calls.items() if call[0]}
        if not known or any(name not in modules for name, _ in known):
            return
        self._known = known
        again = self.read()
        if again.keys() != expected.keys() or not all(torch.equal(again[name], expected[name]) for name in again):
            self._known = None


class _Given:
    """Collects what each draw says of the modules' outputs given their inputs."""

    def __init__(self, linear: Mapping[str, LinearNoise]) -> None:
        self._linear = linear
        self._parts: defaultdict[str, list[GivenBelow]] = defaultdict(list)  # of this draw
        self._draws: defaultdict[str, list[GivenBelow]] = defaultdict(list)

    def see(self, name: str, h: Tensor, z: Tensor) -> None:
        given = self._linear[name].given(h)
        self._parts[name].append(GivenBelow(given.mean.cpu(), given.variance.cpu()))

    def end_draw(self) -> None:
        for name, parts in self._parts.items():
            self._draws[name].append(GivenBelow(*map(torch.cat, zip(*parts, strict=True))))
        self._parts.clear()

    def whole(self, shape: tuple[int, int]) -> dict[str, GivenBelow]:
        """What there is of all draws and samples."""
        found = {name: GivenBelow(*map(torch.stack, zip(*some, strict=True))) for name, some in self._draws.items()}
        return {name: given for name, given in found.items() if given.mean.shape[:2] == shape}
