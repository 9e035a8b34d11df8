r"""Gram matrix of the factor A of the Fisher information ``F = AᵀA / N``, without a matrix of the size of the weights.

With cotangents that are all columns ``s_nc`` of a root of the output Fisher information
(:func:`~lightning_info.functional.exact_cotangents`) the per-output gradients ``a_nc = J_nᵀ s_nc`` are the rows of the
matrix ``A (N C, k)``, and

.. math:: F = A^\top A / N, \qquad K = A A^\top .

``K / N`` has the nonzero eigenvalues of F (:class:`~lightning_info.functional.spectrum.Spectrum`). One forward pass
and one backward pass under ``torch.vmap`` over the C cotangents hand out one parameter's gradients after the other;
each adds its products to K, in float64, and is freed. Where all samples at once would exceed
:attr:`~.memory.Limits.gram`, blocks of K come from pairs of chunks of samples. Modules that do not vmap have their
gradients computed one by one, exactly as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_info.gradients import func, gram_backward, loop
from lightning_info.gradients import gram_products as products
from lightning_info.gradients.batches import select, shuffled, split_samples, spread, spread_around, take
from lightning_info.gradients.contract import NotCovered, OutputGradients, Predict, call, trainable
from lightning_info.gradients.definition import Definition
from lightning_info.gradients.engine_vmap_taps import Passes
from lightning_info.gradients.layer_gradients import Rows
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.loop import alone, fitted, squares_of
from lightning_info.gradients.memory import LIMITS, gradients_at_once, is_out_of_memory
from lightning_info.gradients.plan import CHECK_SAMPLES, checked_samples, in_float64
from lightning_info.gradients.real import as_real, flat
from lightning_info.gradients.vmap_taps import Disagreement
from lightning_info.validation import one_of

CHECK_WEIGHTS = 1 << 25
"""Of modules with more than an eighth of them fewer samples are compared, whose gradients take too much memory."""

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples spread evenly, so that other samples are compared from call to call."""

GramEngineName = Literal["auto", "taps", "func", "loop"]


class Gram(NamedTuple):
    """Inner products of all per-output gradients.

    Attributes:
        matrix: ``K = A Aᵀ``, ``(N C, N C)`` float64, the C per-output gradients of each sample in turn.
        diagonal: The diagonal of ``AᵀA`` (N times that of F) by parameter, float64, of a complex one ``(*shape)`` in
            the form ``(*shape, 2)``; None if it was not asked for.
    """

    matrix: Tensor
    diagonal: dict[str, Tensor] | None


@dataclass
class _Total:
    """What engines add to: K, as a whole or by parameter, and the diagonal."""

    samples: int
    columns: int
    shapes: dict[str, torch.Size]
    device: torch.device
    diagonal: dict[str, Tensor] | None = None
    is_by_parameter: bool = False
    matrices: dict[str, Tensor] = field(default_factory=dict)

    def matrix(self, name: str) -> Tensor:
        """Of one parameter, or the only one."""
        key = name if self.is_by_parameter else ""
        count = self.samples * self.columns
        if key not in self.matrices:
            self.matrices[key] = torch.zeros(count, count, dtype=torch.float64, device=self.device)
        return self.matrices[key]

    def add_squares(self, name: str, elements: Tensor) -> None:
        """Add to the diagonal, elements in the parameter's own places."""
        if self.diagonal is not None:
            known = self.diagonal.get(name)
            self.diagonal[name] = elements if known is None else known + elements

    def part(self, samples: int) -> _Total:
        """An empty one for some of the samples."""
        return _Total(samples, self.columns, self.shapes, self.device, None, self.is_by_parameter)

    def place(self, part: _Total, index: Tensor) -> None:
        """Put the matrices of some samples in their places."""
        at = (index.unsqueeze(1) * self.columns + torch.arange(self.columns)).flatten().to(self.device)
        for name, matrix in part.matrices.items():
            self.matrix(name)[at.unsqueeze(1), at] = products.symmetric(matrix)


_Engine = Callable[[nn.Module, Predict, Any, Tensor, _Total], None]


def _by_taps(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, total: _Total) -> None:
    leaves, rebuild = split_samples(batch)
    passes = Passes(module, predict, rebuild)
    chunk = _samples_at_once(passes, leaves, total)
    blocks = torch.split(torch.arange(total.samples), max(1, chunk // 2) if chunk < total.samples else total.samples)
    pairs = list(itertools.combinations(range(len(blocks)), 2)) or [(0, 0)]
    new = set(range(len(blocks)))
    for i, j in pairs:
        index = blocks[i] if i == j else torch.cat([blocks[i], blocks[j]])
        fresh = torch.cat([torch.full((len(blocks[b]) * total.columns,), b in new) for b in dict.fromkeys((i, j))])
        new -= {i, j}
        part = total.part(len(index))
        forward = passes.forward(select(leaves, index))
        u = columns[:, index.to(columns.device)]
        if u.shape[1:] != forward.outputs.shape:
            shapes = tuple(forward.outputs.shape), tuple(u.shape[1:])
            raise NotCovered(f"the outputs have shape {shapes[0]} here and {shapes[1]} otherwise")
        gram_backward.each_parameter(forward, u, _consumer(part, total, fresh.to(total.device)))
        total.place(part, index)


def _consumer(part: _Total, total: _Total, fresh: Tensor) -> gram_backward.Consume:
    def consume(name: str, rows: Rows) -> None:
        products.add_products(part.matrix(name), rows, part.samples)
        if total.diagonal is not None and fresh.any():
            squares = products.squared_sums(rows, fresh, len(fresh))
            total.add_squares(name, rows.arrange(squares, total.shapes[name]))

    return consume


def _samples_at_once(passes: Passes, leaves: list[Tensor], total: _Total) -> int:
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

    def run(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, total: _Total) -> None:
        gradients = engine(module, predict, batch, columns)
        chunks = torch.split(torch.arange(total.samples * total.columns), gradients_at_once(module))
        for i, first in enumerate(chunks):
            left = gradients(first)
            for name, rows in left.items():
                total.add_squares(name, rows.double().square().sum(0).view(total.shapes[name]))
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


@dataclass
class GramPlan:
    """The engine chosen for a module.

    Attributes:
        engine: Its name.
        checked: Samples that were compared with plain autograd; 0 if nothing could be compared.
        reasons: Why engines that come before it were not taken, by name.
    """

    engine: str
    checked: int
    reasons: dict[str, str] = field(default_factory=dict)
    _calls: int = 0

    def gram(
        self,
        module: nn.Module,
        predict: Predict,
        batch: Any,
        cotangents: Iterable[Tensor],
        *,
        diagonal: bool = False,
    ) -> Gram:
        """Gram matrix of the per-output gradients ``J_nᵀ u_nc`` of N samples and C cotangents.

        The block of one sample, another one at each call, is compared with the sample's gradient alone; where they
        differ an engine is chosen anew, on these samples. Where the module takes other paths for some of them, the loop
        does them all.

        Args:
            module: The module; never changed.
            predict: Gives the outputs ``(N, ...)``.
            batch: N samples.
            cotangents: C tensors of the outputs' shape.
            diagonal: Also sum the squares of the gradients, element by element.

        Raises:
            NotCovered: The engine cannot give it exactly.
        """
        columns = torch.stack(list(cotangents))
        try:
            total = _run(self.engine, module, predict, batch, columns, diagonal=diagonal)
        except Disagreement:  # none of the samples that the engine was chosen on takes another path
            self.engine = choose_gram_engine(module, predict, batch, "loop").engine
            total = _run(self.engine, module, predict, batch, columns, diagonal=diagonal)
        self._calls += 1
        sample = int(self._calls * GOLDEN % 1 * columns.shape[1])
        if not _is_own(module, predict, batch, columns, total.matrix(""), sample):
            some = spread_around(columns.shape[1], CHECK_SAMPLES, sample)
            self.engine = choose_gram_engine(module, predict, take(batch, some)).engine
            total = _run(self.engine, module, predict, batch, columns, diagonal=diagonal)
            if not _is_own(module, predict, batch, columns, total.matrix(""), sample):
                raise NotCovered("the gradient of a sample alone is another one than in its batch")
        return Gram(total.matrix(""), total.diagonal)


def _is_own(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, gram: Tensor, sample: int) -> bool:
    """Whether the block of a sample is that of its gradient alone, by one random combination of its gradients."""
    if columns.shape[1] == 1:
        return True
    count, parameters = len(columns), trainable(module)
    signs = 2.0 * torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(sample)) - 1
    row = alone(module, predict, batch, sample)
    u = torch.einsum("c,c...->...", signs.to(columns), columns[:, sample])
    own = squares_of(row, fitted(u, row), parameters).sum().item()
    block = gram[sample * count : (sample + 1) * count, sample * count : (sample + 1) * count]
    found = (signs.to(block) @ block @ signs.to(block)).item()
    typical = gram.diagonal().mean().item() * count
    return not math.isfinite(own) or abs(found - own) <= 0.05 * own + 1e-5 * typical


def _run(
    engine: str,
    module: nn.Module,
    predict: Predict,
    batch: Any,
    columns: Tensor,
    *,
    diagonal: bool,
    split: bool = False,
) -> _Total:
    parameters = trainable(module)
    shapes = {name: as_real(p).shape for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    squares: dict[str, Tensor] | None = {} if diagonal else None
    total = _Total(columns.shape[1], len(columns), shapes, device, squares, is_by_parameter=split)
    ENGINES[engine](module, predict, batch, columns, total)
    if total.diagonal is not None:
        zeros = {n: torch.zeros(shape, dtype=torch.float64, device=device) for n, shape in shapes.items()}
        total.diagonal = zeros | total.diagonal
    return total


def choose_gram_engine(module: nn.Module, predict: Predict, batch: Any, engine: GramEngineName = "auto") -> GramPlan:
    """Take the first engine whose matrix agrees with plain autograd, parameter by parameter, on a few samples.

    As :func:`~.plan.choose_engine`: in float64 on a copy of the module, on at most eight samples spread over the batch,
    in another order unless it matters, with two random cotangents; the truth is each sample's gradient alone.

    Args:
        module: The module.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples.
        engine: ``"auto"`` or the only engine to try.

    Raises:
        NotCovered: No engine is exact; the message has every reason.
        ValueError: There is no engine of that name.
    """
    one_of("gram_matrix", "engine", engine, get_args(GramEngineName))
    if not trainable(module):
        raise NotCovered("none of its parameters requires a gradient")
    weights = sum(p.numel() for p in trainable(module).values())
    batch = spread(batch, min(checked_samples(module), max(2, CHECK_WEIGHTS // weights)))
    module, batch, tolerance = in_float64(module, predict, batch)
    definition = Definition(module, predict, batch, columns=2)
    truth = _products(definition, tolerance)
    order = torch.arange(definition.samples)
    if not (isinstance(batch, Batch) and batch.layout.ordered) and definition.samples > 1:
        order = shuffled(definition.samples)
        batch = take(batch, order)
    columns = definition.columns[:, order.to(definition.outputs.device)]
    if truth is not None:
        rows = (2 * order.unsqueeze(1) + torch.arange(2)).flatten().to(definition.outputs.device)
        truth = {key: matrix[rows][:, rows] for key, matrix in truth.items()}
    reasons: dict[str, str] = {}
    for name in ENGINES if engine == "auto" else [engine]:
        try:
            total = _run(name, module, predict, batch, columns, diagonal=False, split=True)
            if truth is not None:
                _compare(total, truth, tolerance)
        except (NotCovered, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reasons[name] = str(error)
        else:
            return GramPlan(name, definition.samples if truth is not None else 0, reasons)
    raise NotCovered("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def _products(definition: Definition, tolerance: float) -> dict[str, Tensor] | None:
    """The products by parameter of the gradients of all samples alone; None where they are not finite.

    Raises:
        NotCovered: The samples are mixed.
    """
    rows = [definition.gradients(n) for n in range(definition.samples)]
    total = [torch.stack(parts).sum(0) for parts in zip(*(row[0] for row in rows), strict=True)]
    squares = torch.stack([torch.stack([g.abs().square().sum().double() for g in row[0]]) for row in rows]).sum(0)
    if not (definition.outputs.isfinite().all() and squares.isfinite().all()):
        return None
    definition.compare(total, squares, tolerance)
    truth = {}
    for i, name in enumerate(definition.parameters):
        matrix = torch.stack([flat(row[c][i]).double() for row in rows for c in range(len(row))])
        truth[name] = matrix @ matrix.T
    return truth if all(matrix.isfinite().all() for matrix in truth.values()) else None


def _compare(found: _Total, truth: dict[str, Tensor], tolerance: float) -> None:
    largest = max(matrix.diagonal().max().item() for matrix in truth.values())
    for name, expected in truth.items():
        scale = max(expected.diagonal().max().item(), 1e-6 * largest, 1e-300)
        error = (found.matrix(name) - expected).abs().max().item() / scale
        if not error <= tolerance:  # also where it is NaN
            raise NotCovered(
                f"{name} gives products of the samples' gradients that are off by {error:.2g} of the largest square"
            )


def gram_matrix(
    module: nn.Module,
    inputs: Any,
    cotangents: Iterable[Tensor],
    *,
    diagonal: bool = False,
    engine: GramEngineName = "auto",
) -> Gram:
    """Gram matrix of the per-output gradients ``J_nᵀ u_nc`` of ``module(inputs)``.

    Args:
        module: A module in eval mode that maps inputs to outputs ``(N, ...)``; never changed.
        inputs: Its input, sample axis first.
        cotangents: C tensors of the outputs' shape: all of
            :func:`~lightning_info.functional.exact_cotangents` for the Fisher information.
        diagonal: Also sum the squares of the gradients, element by element.
        engine: ``"auto"``, ``"taps"``, ``"func"`` or ``"loop"``; see :func:`choose_gram_engine`.

    Raises:
        NotCovered: No engine is exact for this module.
    """
    plan = choose_gram_engine(module, call, inputs, engine)
    return plan.gram(module, call, inputs, cotangents, diagonal=diagonal)
