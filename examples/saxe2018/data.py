"""The 12-bit task of Shwartz-Ziv & Tishby, from a closed rule, the linear teacher of Saxe et al., section 3, batches.

The 4096 patterns are the numbers 0 to 4095 in binary, most significant bit first. The bits are the vertices of an
icosahedron, and the label is unchanged by its 120 symmetries:

    y = 1  if  n² + 102 n - 24 s - 36 t > 429.5

with n bits on, s pairs of bits on that are second neighbours, t pairs that are opposite each other. That is the
authors' label for each of the 4096 patterns of their data file; the rule is not in the papers, which derive the label
from spherical harmonics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

BITS = 12
PATTERNS = 2**BITS
NEIGHBOURS = (
    (1, 3, 5, 10, 11),
    (0, 2, 3, 4, 11),
    (1, 3, 4, 8, 9),
    (0, 1, 2, 8, 10),
    (1, 2, 6, 9, 11),
    (0, 6, 7, 10, 11),
    (4, 5, 7, 9, 11),
    (5, 6, 8, 9, 10),
    (2, 3, 7, 9, 10),
    (2, 4, 6, 7, 8),
    (0, 3, 5, 7, 8),
    (0, 1, 4, 5, 6),
)
"""The five neighbours of each bit's vertex."""


def patterns() -> Tensor:
    """Return all inputs, ``(4096, 12)``, 0 or 1, in the order of counting."""
    return (torch.arange(PATTERNS)[:, None] >> torch.arange(BITS - 1, -1, -1) & 1).float()


def labels() -> Tensor:
    """Return their classes, ``(4096,)``."""
    x = patterns().double()
    near = torch.zeros(BITS, BITS, dtype=torch.float64)
    for vertex, others in enumerate(NEIGHBOURS):
        near[vertex, list(others)] = 1
    opposite = ((near @ near + near) == 0).double()  # no path of one or two edges
    second = 1 - near - opposite - torch.eye(BITS, dtype=torch.float64)
    n, s, t = x.sum(1), pairs(x, second), pairs(x, opposite)
    return (n**2 + 102 * n - 24 * s - 36 * t > 429.5).long()


def pairs(x: Tensor, related: Tensor) -> Tensor:
    """Count the pairs of related bits that are on, ``(N,)``."""
    return ((x @ related) * x).sum(1) / 2


def split(seed: int, share: float = 0.8) -> tuple[Tensor, Tensor]:
    """Return the numbers of the training and of the test patterns of a seed, shuffled."""
    order = torch.randperm(PATTERNS, generator=torch.Generator().manual_seed(seed))
    train = int(share * PATTERNS)
    return order[:train], order[train:]


class Teacher(NamedTuple):
    """A linear teacher and what a student sees of it (section 3).

    Attributes:
        w: W_o, ``(1, D)``.
        x: Inputs ``(D, P)`` of covariance I / D.
        y: ``W_o x`` and noise, ``(1, P)``.
        noise_variance: σ_o².
    """

    w: Tensor
    x: Tensor
    y: Tensor
    noise_variance: float


def teacher(
    seed: int,
    examples: int,
    inputs: int = 100,
    weight_variance: float = 1.0,
    noise_variance: float = 1.0,
    relevant: int | None = None,
) -> Teacher:
    """Return the teacher of a seed: weights N(0, σ_w²), zero beyond the first ``relevant`` inputs."""
    generator = torch.Generator().manual_seed(seed)
    w = weight_variance**0.5 * torch.randn(1, inputs, generator=generator)
    if relevant is not None:
        w[:, relevant:] = 0
    x = torch.randn(inputs, examples, generator=generator) / inputs**0.5
    y = w @ x + noise_variance**0.5 * torch.randn(1, examples, generator=generator)
    return Teacher(w, x, y, noise_variance)


class Samples(Dataset):
    """``x (S, D, P)`` and ``y (S, ..., P)``; samples' numbers give the batch ``(N, S, D)`` and ``(N, S, ...)``.

    Samples come first, as everywhere; in memory they are last, as the networks take them.
    """

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __getitem__(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[..., numbers].movedim(-1, 0), self.y[..., numbers].movedim(-1, 0)

    def __len__(self) -> int:
        return self.x.shape[-1]


class Batches:
    """Numbers of the samples of the batches of some passes through the data, each shuffled anew."""

    def __init__(self, samples: int, size: int, passes: int, seed: int):
        self.samples, self.size, self.passes, self.seed = samples, size, passes, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, as the Trainer does: shuffles do not depend on where it began."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        generator = np.random.default_rng([self.seed, self.epoch])
        for _ in range(self.passes):
            yield from torch.from_numpy(generator.permutation(self.samples)).split(self.size)

    def __len__(self) -> int:
        return self.passes * -(-self.samples // self.size)
