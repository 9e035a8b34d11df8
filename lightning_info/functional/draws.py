"""Random draws in float64 from a generator that may live on another device than the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...] | torch.Size


def uniform(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw uniform numbers on [0, 1), float64, on the device of ``like``; from the CPU's global generator if None."""
    return torch.rand(shape, generator=generator, device=_device(generator), dtype=torch.float64).to(like.device)


def normal(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw standard normal numbers, otherwise as :func:`uniform`."""
    return torch.randn(shape, generator=generator, device=_device(generator), dtype=torch.float64).to(like.device)


def poisson(rates: Tensor, generator: Generator | None) -> Tensor:
    """Draw Poisson counts with the given rates, in their dtype and on their device."""
    return torch.poisson(rates.to(_device(generator)), generator=generator).to(rates.device)


def signs(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw -1 or 1 with equal probability, in the precision and on the device of ``like``."""
    bits = torch.randint(0, 2, shape, generator=generator, device=_device(generator))
    return (2 * bits - 1).to(like.device, like.dtype)


def index(weights: Tensor, generator: Generator | None) -> Tensor:
    """Draw an index with probability proportional to ``weights`` along the last axis, ``(..., 1)``."""
    cdf = weights.cumsum(-1)
    point = uniform((*weights.shape[:-1], 1), weights, generator) * cdf[..., -1:]
    return torch.searchsorted(cdf, point, right=True).clamp_max(weights.shape[-1] - 1)


@contextmanager
def seeding(device: torch.device, generator: Generator | None) -> Iterator[None]:
    """Seed the global generators inside, as used by ``torch.distributions``, with one seed from a generator.

    Args:
        device: Device of the values, besides the CPU.
        generator: Source of the seed; the global generator of the CPU if None. The global ones are restored.
    """
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=_device(generator)))
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type="cuda"):
        torch.manual_seed(seed)
        yield


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
