"""Who makes the per-output gradients and adds their inner products or squares up, see :mod:`~.gram`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients import func, gram_backward, loop
from lightning_info.gradients import gram_products as products
from lightning_info.gradients.batches import select, split_samples
from lightning_info.gradients.contract import NotCovered, OutputGradients, Predict
from lightning_info.gradients.engine_vmap_taps import Forward, Passes
from lightning_info.gradients.layer_gradients import Rows
from lightning_info.gradients.memory import LIMITS, gradients_at_once


@dataclass
class Total:
    """What engines add to: K, as a whole or by parameter, and the diagonal.

    Attributes:
        samples: N.
        columns: C.
        shapes: Of the parameters, as real numbers.
        device: Of the module.
        diagonal: By parameter; None if it is not wanted.
        is_by_parameter: K of each parameter by itself.
        products: Precision of the products.
        error: Estimate of the Frobenius norm of what that changes in K, squared.
        only: The one sample of which K is wanted, beside the diagonal; None: of all.
        matrices: K, or those of the parameters by name.
    """

    samples: int
    columns: int
    shapes: dict[str, torch.Size]
    device: torch.device
    diagonal: dict[str, Tensor] | None = None
    is_by_parameter: bool = False
    only: int | None = None
    products: torch.dtype = torch.float64
    error: float = 0.0
    matrices: dict[str, Tensor] = field(default_factory=dict)

    def matrix(self, name: str) -> Tensor:
        """Of one parameter, or the only one."""
        key = name if self.is_by_parameter else ""
        count = self.columns * (self.samples if self.only is None else 1)
        if key not in self.matrices:
            self.matrices[key] = torch.zeros(count, count, dtype=torch.float64, device=self.device)
        return self.matrices[key]

    def add_squares(self, name: str, elements: Tensor) -> None:
        """Add to the diagonal, elements in the parameter's own places."""
        if self.diagonal is not None:
            known = self.diagonal.get(name)
            self.diagonal[name] = elements if known is None else known + elements

    def part(self, samples: int) -> Total:
        """An empty one for some of the samples."""
        return Total(
            samples, self.columns, self.shapes, self.device, None, self.is_by_parameter, products=self.products
        )

    def place(self, part: Total, index: Tensor) -> None:
        """Put the matrices of some samples in their places."""
        at = (index.unsqueeze(1) * self.columns + torch.arange(self.columns)).flatten().to(self.device)
        for name, matrix in part.matrices.items():
            self.matrix(name)[at.unsqueeze(1), at] = products.symmetric(matrix)


_Engine = Callable[[nn.Module, Predict, Any, Tensor, Total], None]


def _by_taps(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, total: Total) -> None:
    leaves, rebuild = split_samples(batch)
    passes = Passes(module, predict, rebuild)
    chunk = _samples_at_once(passes, leaves, total)
    if total.only is not None:
        for index in torch.split(torch.arange(total.samples), chunk):
            forward = passes.forward(select(leaves, index))
            own = (index == total.only).nonzero().flatten().tolist()
            gram_backward.each_parameter(forward, _fitting(columns, index, forward), _squares_consumer(total, own))
        return
    blocks = torch.split(torch.arange(total.samples), max(1, chunk // 2) if chunk < total.samples else total.samples)
    pairs = list(itertools.combinations(range(len(blocks)), 2)) or [(0, 0)]
    new = set(range(len(blocks)))
    for i, j in pairs:
        index = blocks[i] if i == j else torch.cat([blocks[i], blocks[j]])
        fresh = torch.cat([torch.full((len(blocks[b]) * total.columns,), b in new) for b in dict.fromkeys((i, j))])
        new -= {i, j}
        part = total.part(len(index))
        forward = passes.forward(select(leaves, index))
        u = _fitting(columns, index, forward)
        gram_backward.each_parameter(forward, u, _consumer(part, total, fresh.to(total.device)))
        total.place(part, index)


def _fitting(columns: Tensor, index: Tensor, forward: Forward) -> Tensor:
    """The cotangents of some samples."""
    u = columns[:, index.to(columns.device)]
    if u.shape[1:] != forward.outputs.shape:
        shapes = tuple(forward.outputs.shape), tuple(u.shape[1:])
        raise NotCovered(f"the outputs have shape {shapes[0]} here and {shapes[1]} otherwise")
    return u


def _squares_consumer(total: Total, own: list[int]) -> gram_backward.Consume:
    """Adds squares, and the products of a sample that may be among them, by its number there."""

    def consume(name: str, rows: Rows) -> None:
        squares, of_own = products.squares(rows, total.columns, own)
        total.add_squares(name, rows.arrange(squares, total.shapes[name]))
        total.matrix(name).add_(of_own)

    return consume


def _consumer(part: Total, total: Total, fresh: Tensor) -> gram_backward.Consume:
    def consume(name: str, rows: Rows) -> None:
        total.error += products.add_products(part.matrix(name), rows, part.samples, total.products)
        if total.diagonal is not None and fresh.any():
            squares = products.squared_sums(rows, fresh, len(fresh))
            total.add_squares(name, rows.arrange(squares, total.shapes[name]))

    return consume


def _samples_at_once(passes: Passes, leaves: list[Tensor], total: Total) -> int:
    """How many fit the budget: kept inputs, copies, and what the backward pass and the largest layer take."""
    alone = passes.forward(select(leaves, torch.arange(1)))
    kept = largest = 0
    for tap in (tap for members in alone.groups for tap in members.taps):
        x = tap.operator.inputs
        size = x.numel() * max(4, x.element_size())
        kept += 2 * size
        largest = max(largest, size * (3 * total.columns + 2 * tap.operator.unfolded))
    outputs = alone.outputs.numel() * alone.outputs.element_size() * total.columns
    each = kept + largest + outputs + total.columns * alone.bytes_per_sample
    return max(2, LIMITS.gram // max(1, each))


def _by_gradients(engine: Callable[..., OutputGradients]) -> _Engine:
    """From whole rows of A, some at a time."""

    def run(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, total: Total) -> None:
        gradients = engine(module, predict, batch, columns)
        chunks = torch.split(torch.arange(total.samples * total.columns), gradients_at_once(module))
        if total.only is not None:
            own = torch.arange(total.columns) + total.only * total.columns
            for name, rows in gradients(own).items():
                total.matrix(name).add_(rows.double() @ rows.double().T)
        for i, first in enumerate(chunks):
            left = gradients(first)
            for name, rows in left.items():
                total.add_squares(name, rows.double().square().sum(0).view(total.shapes[name]))
            if total.only is not None:
                continue
            for second in chunks[i:]:
                right = left if second is first else gradients(second)
                for name, rows in left.items():
                    block = rows.double() @ right[name].double().T
                    matrix = total.matrix(name)
                    matrix[first[0] : first[-1] + 1, second[0] : second[-1] + 1] += block
        for matrix in total.matrices.values():
            matrix.copy_(products.symmetric(matrix))

    return run


ENGINES: dict[str, _Engine] = {
    "taps": _by_taps,
    "func": _by_gradients(func.output_gradients),
    "loop": _by_gradients(loop.output_gradients),
}
