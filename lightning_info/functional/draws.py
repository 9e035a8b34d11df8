"""Random draws in float64 from a generator that may live on another device than the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Generator, Tensor

Shape = tuple[int, ...] | torch.Size


class EachSample(Generator):
    """A generator of its own for each sample: what one is given does not depend on which others are beside it.

    Args:
        seeds: ``(N,)`` int64, for values whose first axis counts N samples.
    """

    def __new__(cls, seeds: Tensor) -> EachSample:
        """Create it without a device, as the generators are on the CPU."""
        return super().__new__(cls)

    def __init__(self, seeds: Tensor) -> None:
        self.of = [Generator().manual_seed(seed) for seed in seeds.tolist()]


def uniform(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw uniform numbers on [0, 1), float64, on the device of ``like``; from the CPU's global generator if None."""
    return _drawn(partial(torch.rand, dtype=torch.float64), shape, generator).to(like.device)


def normal(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw standard normal numbers, otherwise as :func:`uniform`."""
    return _drawn(partial(torch.randn, dtype=torch.float64), shape, generator).to(like.device)


def poisson(rates: Tensor, generator: Generator | None) -> Tensor:
    """Draw Poisson counts with the given rates, in their dtype and on their device."""
    if isinstance(generator, EachSample):
        return torch.stack([poisson(*pair) for pair in zip(rates, generator.of, strict=True)])
    return torch.poisson(rates.to(_device(generator)), generator=generator).to(rates.device)


def signs(shape: Shape, like: Tensor, generator: Generator | None) -> Tensor:
    """Draw -1 or 1 with equal probability, in the precision and on the device of ``like``."""
    bits = _drawn(partial(torch.randint, 0, 2), shape, generator)
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
        generator: Source of the seed; the global generator of the CPU if None. The global ones are restored. Of
            :class:`EachSample` that of the first, as ``torch.distributions`` draws for all samples at once.
    """
    one = generator.of[0] if isinstance(generator, EachSample) else generator
    seed = int(torch.randint(0, 2**62, (), generator=one, device=_device(one)))
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type="cuda"):
        torch.manual_seed(seed)
        yield


def _drawn(draw: Callable[..., Tensor], shape: Shape, generator: Generator | None) -> Tensor:
    if not isinstance(generator, EachSample):
        return draw(shape, generator=generator, device=_device(generator))
    if shape[0] != len(generator.of):
        raise ValueError(f"draws: {len(generator.of)} generators for {shape[0]} samples; give one for each")
    return torch.stack([draw(shape[1:], generator=one) for one in generator.of])


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
