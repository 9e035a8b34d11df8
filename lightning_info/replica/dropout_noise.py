"""The noise of a module's dropout as it acts in training, found out from a copy of the dropout module alone.

What ``torch.nn.Dropout`` does is known. Other modules whose class has *dropout* in its name (Gaussian dropout, say) are
tried in train mode on inputs of 1 and of 2, from one seed: if each unit is multiplied by a factor of its own, these
are compared with the known distributions. Draws are made from a seed, and global generators are put back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_info.functional.dropout_information import DropoutNoise
from lightning_info.gradients.copies import deep_copy
from lightning_info.replica.isolation import seeded

DRAWS = 1 << 16
"""Factors that are looked at, at least: their deviation is known to 0.3 %."""
FURTHEST = 0.01
"""Largest distance of two distribution functions (Kolmogorov's) up to which the factors are said to have one."""


class UnknownNoise(ValueError):
    """The noise of a dropout module is none of the known kinds; the message says why."""


def is_dropout(module: nn.Module) -> bool:
    """Tell whether a module is a dropout, by its class."""
    return isinstance(module, _DropoutNd) or any("dropout" in kind.__name__.lower() for kind in type(module).__mro__)


def dropout_noise(module: nn.Module, shape: torch.Size) -> DropoutNoise | None:
    """Return the noise that a dropout module has in train mode; None if it has none (p = 0).

    Args:
        module: In eval mode; it is not changed.
        shape: Shape of an input, with the samples on any axis.

    Raises:
        UnknownNoise: The noise is not one factor for each unit, or of an unknown distribution.
    """
    kind = type(module).__name__
    if isinstance(module, _DropoutNd):
        if type(module).forward is not nn.Dropout.forward:
            raise UnknownNoise(f"{kind} does not multiply every unit by a factor of its own, as nn.Dropout does")
        if module.p == 1:
            raise UnknownNoise(f"{kind} drops everything, with p = 1")
        return DropoutNoise("bernoulli", module.p) if module.p > 0 else None
    factors = _factors(module, shape)
    if factors is None:
        return None
    zeros = (factors == 0).double().mean().item()
    if zeros > 0:
        kept = factors[factors != 0]
        if zeros < 1 and (kept - kept[0]).abs().max() < 1e-4 * kept[0].abs():
            return DropoutNoise("bernoulli", zeros)
        raise UnknownNoise(f"{kind} drops units, and multiplies others by factors that differ")
    known: list[tuple[float, DropoutNoise]] = []
    mean, std = factors.mean().item(), factors.std().item()
    if mean != 0:
        known.append((_distance(factors), DropoutNoise("gaussian", std / abs(mean))))
    if factors.min() > 0:
        logs = factors.log()
        known.append((_distance(logs), DropoutNoise("lognormal", logs.std().item())))
    distance, noise = min(known, key=lambda one: one[0], default=(1.0, None))
    if distance > FURTHEST:
        raise UnknownNoise(
            f"the factors of {kind} are neither of two values (0 and one more) nor Gaussian nor log-normal"
        )
    return noise


def _factors(module: nn.Module, shape: torch.Size) -> Tensor | None:
    """Return the factors by which a module multiplies units in train mode, float64; None if it does not."""
    copied, kind = deep_copy(module), type(module).__name__
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(()))
    for part in copied.modules():
        part.training = True  # a replica's train() does nothing
    given: list[list[Any]] = []
    for factor in (1, 2):
        inputs = torch.full(shape, float(factor), dtype=like.dtype, device=like.device)
        with torch.no_grad(), seeded(inputs.device, 0):
            given.append([copied(inputs.clone()) for _ in range(math.ceil(DRAWS / max(1, inputs.numel())))])
    for one, two in zip(*given, strict=True):
        if not isinstance(one, Tensor) or one.shape != shape or not torch.allclose(2 * one, two, rtol=1e-4):
            raise UnknownNoise(f"what {kind} does to a unit is no factor that is drawn without looking at it")
    drawn = [one.double().flatten().cpu() for one in given[0]]
    factors = torch.cat(drawn)
    if torch.equal(factors, torch.ones_like(factors)):
        return None
    values = torch.unique(drawn[0])
    if len(values) > 2 and len(values) < 0.9 * len(drawn[0]):
        raise UnknownNoise(f"{kind} gives several units one factor")
    return factors


def _distance(values: Tensor) -> float:
    """Return the largest distance of the distribution function from that of a Gaussian of their mean and variance."""
    z = ((values - values.mean()) / values.std()).sort().values
    above = torch.special.ndtr(z)
    steps = torch.arange(len(z) + 1, dtype=z.dtype) / len(z)
    return float(torch.maximum(above - steps[:-1], steps[1:] - above).max())
