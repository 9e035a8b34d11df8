r"""Gram matrix of the rows of the Fisher information, and its diagonal, without a matrix of the size of the weights.

With cotangents that are all columns ``s_nc`` of a root of the output Fisher information
(:func:`~lightning_info.functional.exact_cotangents`) the rows ``a_nc = J_nᵀ s_nc`` make the matrix ``A (N C, k)``, and

.. math:: F = A^\top A / N, \qquad K = A A^\top .

``K / N`` has the nonzero eigenvalues of F (:class:`~lightning_info.functional.spectrum.Spectrum`). One forward pass
and one backward pass under ``torch.vmap`` over the C cotangents hand out one parameter's rows after the other; each
adds its products to K, in float64, and is freed. Where all samples at once would exceed :data:`BUDGET`, blocks of K
come from pairs of chunks of samples. Modules that do not vmap have their rows computed one by one, exactly as well.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_info.gradients import products, row_functions, row_pass
from lightning_info.gradients.contract import NotCovered, Predict, trainable
from lightning_info.gradients.graph import leaf_uses
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.plan import CHECK_SAMPLES, _call, _float64
from lightning_info.gradients.rows import Rows
from lightning_info.gradients.samples import split_samples, take
from lightning_info.gradients.vmap_taps import _Passes, _take
from lightning_info.validation import one_of

BUDGET = 1 << 31
"""Bytes that a chunk of samples may take, as estimated from the operators' inputs (2 GiB); K comes on top."""

GramEngineName = Literal["auto", "taps", "func", "loop"]


class Gram(NamedTuple):
    """Inner products of all rows.

    Attributes:
        matrix: ``K = A Aᵀ``, ``(N C, N C)`` float64, the C rows of each sample in turn.
        diagonal: The diagonal of ``AᵀA`` (N times that of F) by parameter, float64; None if it was not asked for.
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
    passes = _Passes(module, predict, rebuild)
    chunk = _samples_at_once(passes, leaves, total)
    blocks = torch.split(torch.arange(total.samples), max(1, chunk // 2) if chunk < total.samples else total.samples)
    pairs = list(itertools.combinations(range(len(blocks)), 2)) or [(0, 0)]
    new = set(range(len(blocks)))
    for i, j in pairs:
        index = blocks[i] if i == j else torch.cat([blocks[i], blocks[j]])
        fresh = torch.cat([torch.full((len(blocks[b]) * total.columns,), b in new) for b in dict.fromkeys((i, j))])
        new -= {i, j}
        part = total.part(len(index))
        forward = passes.forward(_take(leaves, index))
        u = columns[:, index.to(columns.device)]
        if u.shape[1:] != forward.outputs.shape:
            shapes = tuple(forward.outputs.shape), tuple(u.shape[1:])
            raise NotCovered(f"the outputs have shape {shapes[0]} here and {shapes[1]} otherwise")
        row_pass.each_parameter(forward, u, _consumer(part, total, fresh.to(total.device)))
        total.place(part, index)


def _consumer(part: _Total, total: _Total, fresh: Tensor) -> row_pass.Consume:
    def consume(name: str, rows: Rows) -> None:
        products.add_products(part.matrix(name), rows, part.samples)
        if total.diagonal is not None and fresh.any():
            squares = products.squared_sums(rows, fresh, len(fresh))
            total.add_squares(name, rows.arrange(squares, total.shapes[name]))

    return consume


def _samples_at_once(passes: _Passes, leaves: list[Tensor], total: _Total) -> int:
    """How many fit the budget: kept inputs, copies, and what the backward pass and the largest layer take."""
    alone = passes.forward(_take(leaves, torch.arange(1)))
    kept = largest = 0
    for tap in (tap for members in alone.groups for tap in members.taps):
        x, layer = tap.operator.inputs, tap.operator.layer
        size = x.numel() * max(4, x.element_size())
        kernel = torch.Size(getattr(layer, "kernel_size", ())).numel()
        kept += 2 * size
        largest = max(largest, size * (3 * total.columns + 2 * kernel))
    outputs = alone.outputs.numel() * alone.outputs.element_size() * total.columns
    each = kept + largest + outputs + total.columns * alone.bytes_per_sample
    return max(2, BUDGET // max(1, each))


def _by_rows(functions: Callable[..., row_functions.SomeRows]) -> _Engine:
    def engine(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, total: _Total) -> None:
        some_rows = functions(module, predict, batch, columns)
        chunks = torch.split(torch.arange(total.samples * total.columns), row_functions.at_once(module))
        for i, first in enumerate(chunks):
            left = some_rows(first)
            for name, rows in left.items():
                total.add_squares(name, rows.double().square().sum(0).view(total.shapes[name]))
            for second in chunks[i:]:
                right = left if second is first else some_rows(second)
                for name, rows in left.items():
                    block = rows.double() @ right[name].double().T
                    matrix = total.matrix(name)
                    matrix[first[0] : first[-1] + 1, second[0] : second[-1] + 1] += block
        for matrix in total.matrices.values():
            matrix.copy_(products.symmetric(matrix))

    return engine


ENGINES: dict[str, _Engine] = {
    "taps": _by_taps,
    "func": _by_rows(row_functions.by_func),
    "loop": _by_rows(row_functions.by_loop),
}


@dataclass
class GramPlan:
    """The engine chosen for a module.

    Attributes:
        engine: Its name.
        checked: Samples in the batch on which two were compared with plain autograd; 0 if nothing could be compared.
        reasons: Why engines that come before it were not taken, by name.
    """

    engine: str
    checked: int
    reasons: dict[str, str] = field(default_factory=dict)

    def gram(
        self,
        module: nn.Module,
        predict: Predict,
        batch: Any,
        cotangents: Iterable[Tensor],
        *,
        diagonal: bool = False,
    ) -> Gram:
        """Gram matrix of the rows ``J_nᵀ u_nc`` of N samples and C cotangents.

        Args:
            module: The module; never changed.
            predict: Gives the outputs ``(N, ...)``.
            batch: N samples.
            cotangents: C tensors of the outputs' shape.
            diagonal: Also sum the squares of the rows, element by element.

        Raises:
            NotCovered: The engine cannot give it exactly.
        """
        total = _run(self.engine, module, predict, batch, torch.stack(list(cotangents)), diagonal=diagonal)
        return Gram(total.matrix(""), total.diagonal)


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
    shapes = {name: p.shape for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    squares: dict[str, Tensor] | None = {} if diagonal else None
    total = _Total(columns.shape[1], len(columns), shapes, device, squares, is_by_parameter=split)
    ENGINES[engine](module, predict, batch, columns, total)
    if total.diagonal is not None:
        zeros = {n: torch.zeros(shape, dtype=torch.float64, device=device) for n, shape in shapes.items()}
        total.diagonal = zeros | total.diagonal
    return total


def choose_gram_engine(module: nn.Module, predict: Predict, batch: Any, engine: GramEngineName = "auto") -> GramPlan:
    """Take the first engine whose matrix agrees with plain autograd, parameter by parameter, on two samples.

    As :func:`~.plan.choose_engine`: in float64 on a copy of the module, on at most eight samples, with two random
    cotangents; all samples go forward together in the reference.

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
    batch = take(batch, slice(0, CHECK_SAMPLES))
    module, batch, tolerance = _float64(module, predict, batch)
    outputs = predict(module, batch)
    leaf_uses(outputs)  # raises where autograd does not see all of them
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn((2, *outputs.shape), generator=generator, dtype=torch.float64).to(outputs.detach())
    truth = dict(_definition(module, outputs, columns, range(min(2, len(outputs)))))
    comparable = bool(outputs.isfinite().all()) and all(matrix.isfinite().all() for matrix in truth.values())
    reasons: dict[str, str] = {}
    for name in ENGINES if engine == "auto" else [engine]:
        try:
            total = _run(name, module, predict, batch, columns, diagonal=False, split=True)
            if comparable:
                _compare(total, truth, tolerance)
        except (NotCovered, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reasons[name] = str(error)
        else:
            return GramPlan(name, len(outputs) if comparable else 0, reasons)
    raise NotCovered("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def _definition(
    module: nn.Module, outputs: Tensor, columns: Tensor, samples: Iterable[int]
) -> Iterator[tuple[str, Tensor]]:
    """The products by parameter, one cotangent of one sample at a time being not zero."""
    parameters = trainable(module)
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for n, column in itertools.product(samples, columns):
        alone = torch.zeros_like(column)
        alone[n] = column[n]
        gradients = torch.autograd.grad(outputs, list(parameters.values()), alone, retain_graph=True, allow_unused=True)
        for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
            rows[name].append(torch.zeros_like(p) if gradient is None else gradient.to_dense())
    for name, some in rows.items():
        matrix = torch.stack(some).flatten(1).detach().double()
        yield name, matrix @ matrix.T


def _compare(found: _Total, truth: dict[str, Tensor], tolerance: float) -> None:
    largest = max(matrix.diagonal().max().item() for matrix in truth.values())
    for name, expected in truth.items():
        some = found.matrix(name)[: len(expected), : len(expected)]
        scale = max(expected.diagonal().max().item(), 1e-6 * largest, 1e-300)
        error = (some - expected).abs().max().item() / scale
        if not error <= tolerance:  # also where it is NaN
            raise NotCovered(
                f"{name} gives products of two samples' gradients that are off by {error:.2g} of the largest one's "
                "square (do outputs depend on the other samples of the batch?)"
            )


def gram_matrix(
    module: nn.Module,
    inputs: Any,
    cotangents: Iterable[Tensor],
    *,
    diagonal: bool = False,
    engine: GramEngineName = "auto",
) -> Gram:
    """Gram matrix of the rows ``J_nᵀ u_nc`` of ``module(inputs)``.

    Args:
        module: A module in eval mode that maps inputs to outputs ``(N, ...)``; never changed.
        inputs: Its input, sample axis first.
        cotangents: C tensors of the outputs' shape: all of
            :func:`~lightning_info.functional.exact_cotangents` for the Fisher information.
        diagonal: Also sum the squares of the rows, element by element.
        engine: ``"auto"``, ``"taps"``, ``"func"`` or ``"loop"``; see :func:`choose_gram_engine`.

    Raises:
        NotCovered: No engine is exact for this module.
    """
    plan = choose_gram_engine(module, _call, inputs, engine)
    return plan.gram(module, _call, inputs, cotangents, diagonal=diagonal)
