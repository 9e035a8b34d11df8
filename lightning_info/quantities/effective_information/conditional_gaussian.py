"""Layers that are the output of an ``nn.Linear``, and their Gaussian under the noise of its weights alone.

With independent noise of deviation σ on the weights, and an input h that does not depend on them, the units of
``z = W h + b`` given h are independent, with mean ``W̄ h + b̄`` and variance ``Σ_j σ_ij² h_j² + σ_i²``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import as_real, sizes
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.activations import Layer, LayerCapture
from lightning_info.replica.snapshot import ModelSnapshot

See = Callable[[str, Tensor, Tensor], None]
"""Function that takes the name of a module, its input, and its output."""


class GivenBelow(NamedTuple):
    """Moments of a layer given all noise but that of its own weights.

    Attributes:
        mean: ``(N, units)``.
        variance: ``(N, units)``.
    """

    mean: Tensor
    variance: Tensor


class LinearNoise(NamedTuple):
    """An ``nn.Linear`` without noise, and the variances of the noise on it."""

    weight: Tensor
    bias: Tensor | None
    weight_variance: Tensor
    bias_variance: Tensor | None

    @classmethod
    def of(cls, part: nn.Linear, variances: Mapping[int, Tensor]) -> LinearNoise:
        """Build it at the current weights; variances are by ``id`` of the parameter, untrained ones have none."""
        weight, bias = (None if p is None else p.detach().clone() for p in (part.weight, part.bias))
        assert weight is not None
        return cls(
            weight,
            bias,
            variances.get(id(part.weight), torch.zeros_like(weight)).to(weight),
            None if bias is None else variances.get(id(part.bias), torch.zeros_like(bias)).to(bias),
        )

    def given(self, h: Tensor) -> GivenBelow:
        """Return the moments of the output given the input ``(N, in)``."""
        variance = F.linear(h.square(), self.weight_variance, self.bias_variance)
        return GivenBelow(F.linear(h, self.weight, self.bias), variance)


def linear_noises(module: nn.Module, names: Collection[str], deviations: Tensor) -> dict[str, LinearNoise]:
    """Return the noise of some ``nn.Linear`` by name, from the deviations ``(k,)`` of all trained weights."""
    parameters = trainable(module).values()
    parts = torch.split(deviations.square(), sizes(parameters))
    variances = {id(p): part.view_as(as_real(p)) for p, part in zip(parameters, parts, strict=True)}
    linear = _linear(module)
    return {name: LinearNoise.of(linear[name], variances) for name in names if name in linear}


@contextmanager
def watched(module: nn.Module, names: Collection[str], see: See) -> Iterator[None]:
    """Show the inputs and outputs of some ``nn.Linear`` of a replica, without a graph."""

    def show(name: str, part: nn.Module, args: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():  # what is done here is not part of the pass
            if args and isinstance(args[0], Tensor):
                see(name, args[0].detach(), output.detach())

    parts = {name: part for name, part in _linear(module).items() if name in names}
    handles = [part.register_forward_hook(partial(show, name)) for name, part in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_linear_layers(snapshot: ModelSnapshot, layers: Collection[Layer]) -> dict[str, str]:
    """Find which layers are the output of an ``nn.Linear``, by trials on the first samples.

    The ``nn.Linear`` must run once, on vectors, and its input must not depend on its own weights. An invertible
    activation function of its output counts too, as its input is read.

    Returns:
        The name of the ``nn.Linear`` by the layer's label.

    Args:
        snapshot: A snapshot with a private replica.
        layers: The layers.
    """
    parameters, generator = trainable(snapshot.module), torch.Generator().manual_seed(0)
    # a hook of the user's can make something else of the output
    linear = {name: part for name, part in _linear(snapshot.module).items() if not part._forward_hooks}
    # at other weights, as two layers may both give zeros at their own
    noise = {
        name: (0.1 * as_real(p.detach()).abs().cpu() + 1e-3) * torch.randn(as_real(p).shape, generator=generator)
        for name, p in parameters.items()
    }
    calls, taken = _trial(snapshot, layers, linear, noise)
    found = {
        label: name
        for label, values in taken.items()
        for name, some in calls.items()
        if len(some) == 1 and some[0][0].dim() == 2 and torch.equal(some[0][1], values)
    }
    for label, name in list(found.items()):
        own = {id(p) for p in linear[name].parameters()}
        other = {key: 2 * value if id(parameters[key]) in own else value for key, value in noise.items()}
        again, _ = _trial(snapshot, layers, linear, other)
        if not torch.equal(again[name][0][0], calls[name][0][0]):
            del found[label]
    return found


def _trial(
    snapshot: ModelSnapshot, layers: Collection[Layer], linear: Collection[str], noise: Mapping[str, Tensor]
) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], dict[str, Tensor]]:
    """Return inputs and outputs of the calls of every module, and what is read of the layers."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in linear}
    batch = snapshot.first_chunk()
    flat = torch.cat([values.flatten() for values in noise.values()]).to(snapshot.device)

    def keep(name: str, h: Tensor, z: Tensor) -> None:
        calls[name].append((h.clone(), z.clone()))

    with moved(snapshot, flat), watched(snapshot.module, linear, keep):
        with LayerCapture(snapshot.module, layers, num_samples(batch)) as capture:
            prediction = snapshot.predictor(snapshot.module, batch)
        capture.take_outputs(prediction)
    return calls, {label: one.units if one.before is None else one.before for label, one in capture.activations.items()}


def _linear(module: nn.Module) -> dict[str, nn.Linear]:
    """Return those whose weights are real and their own parameters, not computed from others before every call."""
    return {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.Linear and isinstance(part.weight, nn.Parameter) and part.weight.is_floating_point()
    }
