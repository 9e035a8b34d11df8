"""Inner products of one parameter's per-output gradients, in float64, by the cheaper of two exact forms.

- ``rows``: some columns at a time of the matrix that has them as rows, multiplied with themselves;
- ``factors``: ``sum_{l, m} <g_l, g_m> <x_l, x_m>`` over pairs of positions, for layers with few positions.

Products of float32 gradients are summed in float64: a float32 Gram matrix loses the small eigenvalues.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_info.gradients.layer_gradients import Rows
from lightning_info.gradients.memory import LIMITS

TILE = 256
"""Positions on each side of a block of pairs, which should stay in the processor's cache."""

SQUARES = 1 << 9
"""Columns that are made at once where only their squares are wanted."""

COLUMNS = 1024
"""Of rows whose squares are summed at once, for the same reason."""


def add_products(total: Tensor, rows: Rows, samples: int) -> None:
    """Add all inner products of rows to ``total (R, R)``; below its diagonal, it is not to be read.

    Args:
        total: float64.
        rows: R of them, those of each sample in turn.
        samples: N.
    """
    if is_factored(rows, samples, len(total) // samples):
        multiply_factors(rows, total)
    else:
        multiply(rows, total)


def squared_sums(rows: Rows, chosen: Tensor, count: int) -> Tensor:
    """Sum of squares over some of the ``count`` rows, for each column, in float64."""
    if not rows.slices:
        return torch.zeros(0, dtype=torch.float64, device=chosen.device)
    made = (rows.make(first, end) for first, end in ranges(rows, count))
    columns = (some for part in made for some in torch.split(part, COLUMNS, 1))
    return torch.cat([some[chosen].double().square_().sum(0) for some in columns])


def squares(rows: Rows, columns: int, own: list[int]) -> tuple[Tensor, Tensor]:
    """Sum of squares over all rows for each column, and the products of the rows of one sample, float64.

    A sum of squares loses nothing in the precision of the gradients.

    Args:
        rows: Those of each sample in turn.
        columns: C.
        own: Number of the sample, or empty: none of them.

    Returns:
        ``(elements,)`` and ``(C, C)``.
    """
    if rows.factors is not None and rows.factors.positions == 1:
        x, g = (tensor[..., 0, :] for tensor in rows.factors.tensors())  # (N, I), (N, C, O)
        found = (g.square().sum(1).double().T @ x.square().double()).flatten()
        block = found.new_zeros(columns, columns)
        for n in own:
            block.addmm_(g[n].double(), g[n].double().T).mul_(x[n].double().square().sum())
        return found, block
    device = rows.make(0, 0).device
    block = torch.zeros(columns, columns, dtype=torch.float64, device=device)
    parts = [torch.zeros(0, dtype=torch.float64, device=device)]
    for first in range(0, rows.slices, step := max(1, SQUARES // max(1, rows.width))):
        made = rows.make(first, min(first + step, rows.slices))
        parts.append(made.square().sum(0, dtype=torch.float64))
        for n in own:
            some = made[n * columns : (n + 1) * columns].double()
            block.addmm_(some, some.T)
    return torch.cat(parts), block


def multiply(rows: Rows, total: Tensor) -> None:
    """Upper triangle of ``rows rowsᵀ``, added to ``total (R, R)``."""
    count = len(total)
    step = max(64, math.ceil(count / 6))
    for first, end in ranges(rows, count):
        part = rows.make(first, end).double()
        for lo in range(0, count, step):
            total[lo : lo + step, lo:].addmm_(part[lo : lo + step], part[lo:].T)


def multiply_factors(rows: Rows, total: Tensor) -> None:
    """The same, from the factors."""
    assert rows.factors is not None
    x, g = (tensor.double() for tensor in rows.factors.tensors())
    n, c, length, out = g.shape
    if length == 1:
        inner = (x[:, 0] @ x[:, 0].T).repeat_interleave(c, 0).repeat_interleave(c, 1)
        g = g.reshape(n * c, out)
        total.add_((g @ g.T).mul_(inner))
        return
    x, flat = x.contiguous(), g.reshape(n, c, -1)
    tile = max(1, min(TILE // length, LIMITS.columns // (8 * length * c * out)))
    for top in range(0, n, tile):
        for left in range(top, n, tile):
            some, others = x[top : top + tile].flatten(0, 1), x[left : left + tile].flatten(0, 1)
            pairs = (some @ others.T).view(-1, length, len(others) // length, length).transpose(1, 2)
            columns = slice(left * c, (left + tile) * c)
            for i, inner in enumerate(pairs, top):
                spread = torch.matmul(inner.unsqueeze(1), g[left : left + tile])  # (samples, C, L, O)
                total[i * c : (i + 1) * c, columns].addmm_(flat[i], spread.flatten(2).flatten(0, 1).T)


def ranges(rows: Rows, count: int) -> list[tuple[int, int]]:
    """Ranges of slices whose columns, and their float64 copy, stay within :attr:`~.memory.Limits.columns`."""
    step = max(1, LIMITS.columns // (16 * count * rows.width))
    return [(first, min(first + step, rows.slices)) for first in range(0, rows.slices, step)]


def is_factored(rows: Rows, samples: int, columns: int) -> bool:
    """Whether the form ``factors`` has fewer multiply-adds, those in float64 counted twice."""
    if rows.factors is None:
        return False
    length, inside, out, _ = rows.factors
    count = samples * columns
    by_rows = count * length * inside * out + 1.2 * count * count * inside * out
    if length == 1:
        return 2 * (samples * samples * inside + count * count * out) < by_rows
    pair = length * length * (inside + columns * out) + columns * columns * length * out
    return samples * samples * pair < by_rows


def symmetric(total: Tensor) -> Tensor:
    """From the upper triangle."""
    return total.triu() + total.triu(1).T
