"""Activations of layers under weight noise: one forward pass over the reference samples for each draw."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import num_samples
from lightning_info.quantities.effective_information.conditional_gaussian import GivenBelow, LinearNoise, watched
from lightning_info.quantities.weight_information.direct_call import DirectCall, DirectCalls, Run
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.activations import OUTPUTS_CALL, Activation, Call, Capture, Layer, LayerCapture, See
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.shown_tensor import shown_tensor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.unit_rows import by_sample
from lightning_info.replica.unit_rows import units as units_of

LOSS = "loss"


@dataclass(frozen=True)
class NoisyFeatures:
    """Reads the units of some layers, before the activation function if that is invertible, and the loss.

    Args:
        layers: The layers.
        most_units: Number of orthonormal random combinations to which wider layers are reduced.
        seed: Seed of these combinations.
    """

    layers: tuple[Layer, ...]
    most_units: int
    seed: int

    def __call__(self, prediction: Prediction, activations: Mapping[str, Activation]) -> dict[str, Tensor]:
        """Return ``(N, units)`` by layer, and ``loss (N,)``, the same share of the batch's sum for each sample.

        Without targets the loss is NaN.
        """
        units = {label: one.units if one.before is None else one.before for label, one in activations.items()}
        loss = prediction.summed_loss().detach() if prediction.has_loss else torch.tensor(math.nan, dtype=torch.float64)
        return self.read(units, loss, len(prediction.outputs))

    def read(self, units: Mapping[str, Tensor], loss: Tensor, samples: int) -> dict[str, Tensor]:
        """Return the same from units ``(N, units)`` by layer and the summed loss of the samples."""
        return {f"units/{label}": self._project(rows) for label, rows in units.items()} | {
            LOSS: (loss / samples).expand(samples)
        }

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
    """Activations over M draws.

    Attributes:
        units: ``(M, N, units)`` by layer's label, on the CPU; layers that did not run for all samples have no entry.
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
        snapshot: A snapshot with a private replica.
        reader: Reads the activations.
        noises: The draws.
        linear: Noise of the ``nn.Linear`` modules, by name, whose Gaussian given all other noise is wanted.
    """
    rows: dict[str, list[Tensor]] = {}
    draws = 0
    for read in _Passes(snapshot, reader, linear or {}).at(noises):
        draws += len(read[LOSS])
        for name, values in read.items():
            rows.setdefault(name, []).append(values)
    losses = torch.cat(rows.pop(LOSS)).mean(1)
    whole = {name: values for name, some in rows.items() if len(values := torch.cat(some)) == draws}
    units = {name.removeprefix("units/"): whole[name] for name in whole if name.startswith("units/")}
    given = {
        name: GivenBelow(whole[f"mean/{name}"], whole[f"variance/{name}"])
        for name in linear or {}
        if f"mean/{name}" in whole
    }
    return NoisyActivations(units, losses, given)


class _Passes:
    """Forward passes over all samples of a snapshot at many weights."""

    def __init__(self, snapshot: ModelSnapshot, reader: NoisyFeatures, linear: Mapping[str, LinearNoise]) -> None:
        self._snapshot, self._reader, self._linear = snapshot, reader, linear
        self._mixed = snapshot.audit.mixed
        self._known: dict[tuple[str, int], bool] | None = None
        self._calls: dict[tuple[str, int], bool] = {}
        self._before: set[str] = set()  # labels of layers that are read before their function

    def at(self, noises: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield what is read at some draws at once, ``(K, N, ...)`` on the CPU, until all are done."""
        noises = iter(noises)
        for first in islice(noises, 1):
            read = self._read_at(first)
            yield {name: values[None] for name, values in read.items()}
            direct = self._direct_like(first, read)
            if direct is not None:
                while some := list(islice(noises, direct.as_one)):
                    found = direct.read(torch.stack(some), self._read_call)
                    yield {name: values.cpu() for name, values in found.items()}
                return
            with moved(self._snapshot, first):
                self.look_at_modules_alone(read)
        for noise in noises:
            yield {name: values[None] for name, values in self._read_at(noise).items()}

    def _read_at(self, noise: Tensor) -> dict[str, Tensor]:
        with moved(self._snapshot, noise):
            return self.read()

    def read(self) -> dict[str, Tensor]:
        """Return what is read at the current weights, on the CPU, without what exists for some samples only."""
        module, rows = self._snapshot.module, defaultdict(list)
        for batch in self._snapshot.parts():
            given = _Given(self._linear)
            seen = LayerCapture(module, self._reader.layers, num_samples(batch), self._known)
            with seen, watched(module, self._linear, given.see):
                prediction = self._snapshot.predictor(module, batch)
            seen.take_outputs(prediction)
            if seen.error is not None:
                raise seen.error
            self._calls |= seen.calls
            self._before |= {label for label, one in seen.activations.items() if one.before is not None}
            kept = {label: one for label, one in seen.activations.items() if label not in self._mixed}
            for name, values in (self._reader(prediction, kept) | given.read()).items():
                rows[name].append(values.cpu())
        whole = {name: torch.cat(parts) for name, parts in rows.items()}
        return {name: values for name, values in whole.items() if len(values) == self._snapshot.size}

    def look_at_modules_alone(self, expected: dict[str, Tensor]) -> None:
        """Watch only the modules whose outputs are the layers from now on, if the result is the same."""
        known = self._modules_alone()
        if known is None:
            return
        self._known = known
        again = self.read()
        if again.keys() != expected.keys() or not all(torch.equal(again[name], expected[name]) for name in again):
            self._known = None

    def _modules_alone(self) -> dict[tuple[str, int], bool] | None:
        modules = dict(self._snapshot.module.named_modules())
        known = {call: first for call, first in self._calls.items() if call[0]}
        return known if known and all(name in modules for name, _ in known) else None

    def _direct_like(self, noise: Tensor, expected: dict[str, Tensor]) -> DirectCalls | None:
        """Return direct calls that reproduce what was read at a draw, if there are any."""
        if any(layer.padding for layer in self._reader.layers):  # the prediction says where it is
            return None
        on_device = {name: values.to(self._snapshot.device) for name, values in expected.items()}
        parts = self._snapshot.parts()
        return DirectCalls.like(self._snapshot, parts, noise, self._read_call, on_device)

    def _read_call(self, call: DirectCall, run: Run) -> dict[str, Tensor]:
        module, samples, units = self._snapshot.module, call.samples, {}
        wanted = {(layer.name, layer.index): layer for layer in self._reader.layers if layer.label not in self._mixed}

        def see(seen: Call, output: Tensor, before: Tensor | None) -> None:
            layer = wanted.get((seen.name, seen.index))
            if layer is not None:
                tensor = before if before is not None and layer.label in self._before else output
                rows = by_sample(tensor, samples, layer.samples)
                units[layer.label] = units_of(rows, seen.channels_first, layer.samples).clone()

        known, given = self._modules_alone(), _Given(self._linear)
        capture = Capture(module, see) if known is None else _Hooks(module, see, known)
        with capture, watched(module, self._linear, given.see):
            outputs = run()
        if isinstance(capture, Capture) and capture.error is not None:
            raise capture.error
        see(OUTPUTS_CALL, outputs, None)
        return self._reader.read(units, call.loss(outputs), samples) | given.read()


class _Hooks(ExitStack):
    """Watches calls of some modules, also under ``torch.vmap``.

    Args:
        module: A replica.
        see: Function of the call, its output, and its first argument.
        known: Calls by name and index, and whether they have channels first.
    """

    def __init__(self, module: nn.Module, see: See, known: Mapping[tuple[str, int], bool]) -> None:
        super().__init__()
        self._see, self._known = see, known
        self._calls: Counter[str] = Counter()
        for name in dict.fromkeys(name for name, _ in known):
            handle = module.get_submodule(name).register_forward_hook(partial(self._ends, name))
            self.callback(handle.remove)

    def _ends(self, name: str, part: nn.Module, args: Any, output: Any) -> None:
        index = self._calls[name]
        self._calls[name] += 1
        tensor = output if isinstance(output, Tensor) else shown_tensor(output)
        if tensor is not None and (name, index) in self._known:
            call = Call(name, index, "", False, False, self._known[name, index])
            self._see(call, tensor, args[0] if args and isinstance(args[0], Tensor) else None)


class _Given:
    """Collects the moments of the modules' outputs given their inputs during a pass."""

    def __init__(self, linear: Mapping[str, LinearNoise]) -> None:
        self._linear = linear
        self._seen: defaultdict[str, list[GivenBelow]] = defaultdict(list)

    def see(self, name: str, h: Tensor, z: Tensor) -> None:
        self._seen[name].append(self._linear[name].given(h))

    def read(self) -> dict[str, Tensor]:
        """Return them by name, for modules that were called once."""
        once = {name: given for name, (given, *more) in self._seen.items() if not more}
        means = {f"mean/{name}": given.mean for name, given in once.items()}
        return means | {f"variance/{name}": given.variance for name, given in once.items()}
