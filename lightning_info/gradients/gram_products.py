"""Inner products of one parameter's per-output gradients, by the cheaper of two exact forms.

- ``rows``: some columns at a time of the matrix that has them as rows, multiplied with themselves;
- ``factors``: ``sum_{l, m} <g_l, g_m> <x_l, x_m>`` over pairs of positions, for layers with few positions.

Products of float32 gradients are summed in float64: a float32 Gram matrix loses the small eigenvalues. In which
precision a few thousand are multiplied and added before is the caller's choice, who gets an estimate of the error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_info.gradients.layer_gradients import Rows
from lightning_info.gradients.memory import LIMITS

TILE = 256
"""Positions on each side of a block of pairs, which should stay in the processor's cache."""

SUMMED = 1 << 12
"""Columns of rows whose products are summed in single precision."""

SEEN = 8
"""Every so manieth row, or so many samples, are those that the error of single precision is seen at."""

SQUARES = 1 << 9
"""Columns that are made at once where only their squares are wanted."""

COLUMNS = 1024
"""Of rows whose squares are summed at once, for the same reason."""


def add_products(total: Tensor, rows: Rows, samples: int, dtype: torch.dtype = torch.float64) -> float:
    """Add all inner products of rows to ``total (R, R)``; below its diagonal, it is not to be read.

    Args:
        total: float64.
        rows: R of them, those of each sample in turn.
        samples: N.
        dtype: Of the products; where it is float32, they are summed in float64 some columns at a time.

    Returns:
        Estimate of the squared Frobenius norm of the error, from products that are made in float64 too: 0 in float64.
    """
    columns = len(total) // samples
    if is_factored(rows, samples, columns, dtype):
        multiply_factors(rows, total, dtype)
        return 0.0 if dtype == torch.float64 else _error_of_factors(rows, dtype)
    multiply(rows, total, dtype)
    return 0.0 if dtype == torch.float64 else _error_of_rows(rows, len(total), columns, dtype)


def _error_of_rows(rows: Rows, count: int, columns: int, dtype: torch.dtype) -> float:
    """By products of some rows with those of the first sample, over the columns in the middle."""
    width = max(1, min(SUMMED // rows.width, rows.slices))
    first = (rows.slices - width) // 2
    part = rows.make(first, first + width)
    one, other = part[:columns], part[::SEEN]
    error = (one.to(dtype) @ other.to(dtype).T).double() - one.double() @ other.double().T
    return count / columns * count / len(other) * rows.slices / width * error.square().sum().item()


def _error_of_factors(rows: Rows, dtype: torch.dtype) -> float:
    """By products of the first sample with some."""
    assert rows.factors is not None
    x, g = rows.factors.tensors()
    some, its = x[:SEEN], g[:SEEN]

    def products(dtype: torch.dtype) -> Tensor:
        spread = torch.matmul((x[0].to(dtype) @ some.to(dtype).mT).unsqueeze(1), its.to(dtype))  # (samples, C, L, O)
        return (g[0].to(dtype).flatten(1) @ spread.flatten(2).flatten(0, 1).T).double()

    error = products(dtype) - products(torch.float64)
    return len(x) * len(x) / len(some) * error.square().sum().item()


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


def multiply(rows: Rows, total: Tensor, dtype: torch.dtype) -> None:
    """Upper triangle of ``rows rowsᵀ``, added to ``total (R, R)``."""
    count = len(total)
    step = max(64, math.ceil(count / 6))
    for first, end in ranges(rows, count):
        made = rows.make(first, end)
        for part in torch.split(made, made.shape[1] if dtype == torch.float64 else SUMMED, 1):
            part = part.to(dtype)
            for lo in range(0, count, step):
                total[lo : lo + step, lo:] += part[lo : lo + step] @ part[lo:].T


def multiply_factors(rows: Rows, total: Tensor, dtype: torch.dtype) -> None:
    """The same, from the factors."""
    assert rows.factors is not None
    x, g = (tensor.to(dtype) for tensor in rows.factors.tensors())
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
                total[i * c : (i + 1) * c, columns] += flat[i] @ spread.flatten(2).flatten(0, 1).T


def ranges(rows: Rows, count: int) -> list[tuple[int, int]]:
    """Ranges of slices whose columns, and their float64 copy, stay within :attr:`~.memory.Limits.columns`."""
    step = max(1, LIMITS.columns // (16 * count * rows.width))
    return [(first, min(first + step, rows.slices)) for first in range(0, rows.slices, step)]


def is_factored(rows: Rows, samples: int, columns: int, dtype: torch.dtype = torch.float64) -> bool:
    """Whether the form ``factors`` has fewer multiply-adds, products in float64 counted twice."""
    if rows.factors is None:
        return False
    length, inside, out, _ = rows.factors
    count, dear = samples * columns, 2 if dtype == torch.float64 else 1
    by_rows = count * length * inside * out + 0.6 * dear * count * count * inside * out
    if length == 1:
        return dear * (samples * samples * inside + count * count * out) < by_rows
    pair = length * length * (inside + columns * out) + columns * columns * length * out
    return 0.5 * dear * samples * samples * pair < by_rows


def symmetric(total: Tensor) -> Tensor:
    """From the upper triangle."""
    return total.triu() + total.triu(1).T
