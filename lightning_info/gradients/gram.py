r"""Gram matrix of the factor A of the Fisher information ``F = AᵀA / N``, without a matrix of the size of the weights.

With cotangents that are all columns ``s_nc`` of a root of the output Fisher information
(:func:`~lightning_info.functional.exact_cotangents`) the per-output gradients ``a_nc = J_nᵀ s_nc`` are the rows of the
matrix ``A (N C, k)``, and

.. math:: F = A^\top A / N, \qquad K = A A^\top .

``K / N`` has the nonzero eigenvalues of F (:class:`~lightning_info.functional.spectrum.Spectrum`). One forward pass
and one backward pass under ``torch.vmap`` over the C cotangents hand out one parameter's gradients after the other;
each adds its products to K, summed in float64, and is freed. They are multiplied in float32 where that leaves all
eigenvalues of K as they are, to 1e-3 of the smallest, as products in both precisions tell; else again, in float64.
Where all samples at once would exceed :attr:`~.memory.Limits.gram`, blocks of K come from pairs of chunks of samples.
Modules that do not vmap have their gradients computed one by one, exactly as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import shuffled, spread, spread_around, take
from lightning_info.gradients.contract import NotCovered, Predict, call, trainable
from lightning_info.gradients.definition import Definition
from lightning_info.gradients.gram_engines import ENGINES, Total
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.loop import alone, fitted, squares_of
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.plan import CHECK_SAMPLES, checked_samples, in_float64
from lightning_info.gradients.real import as_real, flat
from lightning_info.gradients.vmap_taps import Disagreement
from lightning_info.validation import one_of

CHECK_WEIGHTS = 1 << 25
"""Of modules with more than an eighth of them fewer samples are compared, whose gradients take too much memory."""

RESOLVED = 1e-3
"""Share of the smallest eigenvalue that products in single precision may change."""

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
        total = self._checked(module, predict, batch, cotangents, diagonal=diagonal)
        return Gram(total.matrix(""), total.diagonal)

    def diagonal(
        self, module: nn.Module, predict: Predict, batch: Any, cotangents: Iterable[Tensor]
    ) -> dict[str, Tensor]:
        """Only the diagonal of ``AᵀA``, as in :class:`Gram`, without the products; arguments and errors as there."""
        total = self._checked(module, predict, batch, cotangents, diagonal=True, only=True)
        assert total.diagonal is not None
        return total.diagonal

    def _checked(
        self,
        module: nn.Module,
        predict: Predict,
        batch: Any,
        cotangents: Iterable[Tensor],
        *,
        diagonal: bool,
        only: bool = False,
    ) -> Total:
        columns = torch.stack(list(cotangents))
        self._calls += 1
        sample = int(self._calls * GOLDEN % 1 * columns.shape[1])

        def run() -> Total:
            place = sample if only else None
            for dtype in _precisions(module, columns, self.engine, only):
                total = _run(self.engine, module, predict, batch, columns, diagonal=diagonal, only=place, dtype=dtype)
                if dtype == torch.float64 or _is_resolved(total):
                    break
            return total

        try:
            total = run()
        except Disagreement:  # none of the samples that the engine was chosen on takes another path
            self.engine = choose_gram_engine(module, predict, batch, "loop").engine
            total = run()
        if not _is_own(module, predict, batch, columns, total, sample):
            some = spread_around(columns.shape[1], CHECK_SAMPLES, sample)
            self.engine = choose_gram_engine(module, predict, take(batch, some)).engine
            total = run()
            if not _is_own(module, predict, batch, columns, total, sample):
                raise NotCovered("the gradient of a sample alone is another one than in its batch")
        return total


def _is_own(module: nn.Module, predict: Predict, batch: Any, columns: Tensor, total: Total, sample: int) -> bool:
    """Whether the block of a sample is that of its gradient alone, by one random combination of its gradients."""
    if columns.shape[1] == 1:
        return True
    count, parameters = len(columns), trainable(module)
    signs = 2.0 * torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(sample)) - 1
    row = alone(module, predict, batch, sample)
    u = torch.einsum("c,c...->...", signs.to(columns), columns[:, sample])
    own = squares_of(row, fitted(u, row), parameters).sum().item()
    gram = total.matrix("")
    place = sample if total.only is None else 0
    block = gram[place * count : (place + 1) * count, place * count : (place + 1) * count]
    found = (signs.to(block) @ block @ signs.to(block)).item()
    typical = _trace(total) / columns.shape[1]
    return not math.isfinite(own) or abs(found - own) <= 0.05 * own + 1e-5 * typical


def _precisions(module: nn.Module, columns: Tensor, engine: str, only: bool) -> list[torch.dtype]:
    """Those of the products that are tried."""
    parameters = trainable(module).values()
    is_single = all(p.dtype == torch.float32 for p in parameters)
    has_full_rank = columns.shape[0] * columns.shape[1] < sum(p.numel() for p in parameters)
    tried = engine == "taps" and not only and is_single and has_full_rank
    return [torch.float32, torch.float64] if tried else [torch.float64]


def _is_resolved(total: Total) -> bool:
    """Whether products in single precision have left every eigenvalue of K as it is, to :data:`RESOLVED` of itself.

    By Weyl's inequality none moves by more than the spectral norm of the error, and that is at most Frobenius'.
    """
    matrix = total.matrix("")
    if not matrix.isfinite().all():
        return True  # nor is it in double precision
    return bool(math.sqrt(total.error) <= RESOLVED * torch.linalg.eigvalsh(matrix)[0].item())


def _trace(total: Total) -> float:
    """Of K."""
    if total.only is None:
        return total.matrix("").trace().item()
    assert total.diagonal is not None
    return sum(values.sum().item() for values in total.diagonal.values())


def _run(
    engine: str,
    module: nn.Module,
    predict: Predict,
    batch: Any,
    columns: Tensor,
    *,
    diagonal: bool,
    split: bool = False,
    only: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Total:
    parameters = trainable(module)
    shapes = {name: as_real(p).shape for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    squares: dict[str, Tensor] | None = {} if diagonal else None
    total = Total(columns.shape[1], len(columns), shapes, device, squares, split, only, dtype)
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


def _compare(found: Total, truth: dict[str, Tensor], tolerance: float) -> None:
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
