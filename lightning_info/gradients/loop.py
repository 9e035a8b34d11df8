"""Plain autograd, one backward pass per sample: works for every module whose samples are independent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import company, num_samples, take
from lightning_info.gradients.contract import (
    Norms,
    NotCovered,
    OutputGradients,
    Predict,
    add_plain_gradients,
    first_line,
    trainable,
)
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import as_real, flat


def squared_norms(
    module: nn.Module,
    predict: Predict,
    batch: Any,
    cotangents: Iterable[Tensor],
    sums: dict[str, Tensor] | None = None,
) -> Norms:
    """Per-sample squared gradient norms by a loop over batches of one (an :class:`~.contract.Engine`)."""
    parameters = trainable(module)
    columns = list(cotangents)
    rows = []
    for n in range(num_samples(batch)):
        row = alone(module, predict, batch, n)
        rows.append(torch.stack([squares_of(row, fitted(u[n], row), parameters) for u in columns]).sum(0))
    norms = dict(zip(parameters, torch.stack(rows, dim=1), strict=True))
    if sums is not None:
        add_plain_gradients(sums, module, predict, batch, columns)
    return Norms(norms, dict.fromkeys(norms, "loop"))


def output_gradients(module: nn.Module, predict: Predict, batch: Any, columns: Tensor) -> OutputGradients:
    """Per-output gradients ``J_nᵀ u_nc`` by plain autograd on batches of one.

    Args:
        module: The module; never changed.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples.
        columns: The cotangents, ``(C, *outputs.shape)``.
    """
    parameters = trainable(module)

    def one(outputs: Tensor, u: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(
            outputs, list(parameters.values()), u.to(outputs), retain_graph=True, allow_unused=True
        )
        pairs = zip(parameters.values(), gradients, strict=True)
        return [flat((torch.zeros_like(p) if g is None else g.to_dense()).detach()) for p, g in pairs]

    def some(numbers: Tensor) -> dict[str, Tensor]:
        rows = []
        last, outputs = -1, torch.empty(0)
        for n, c in zip((numbers // len(columns)).tolist(), (numbers % len(columns)).tolist(), strict=True):
            if n != last:
                last, outputs = n, alone(module, predict, batch, n)
            rows.append(one(outputs, fitted(columns[c, n], outputs)))
        return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}

    return some


def alone(module: nn.Module, predict: Predict, batch: Any, n: int) -> Tensor:
    """The outputs of sample n by itself, or beside as few others as the module takes.

    Raises:
        NotCovered: It fails.
    """
    size = num_samples(batch)
    some = company(n, size, batch.layout.fewest if isinstance(batch, Batch) else 1)
    try:
        outputs = predict(module, take(batch, some))
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise NotCovered(f"one sample alone fails ({first_line(error)})") from error
    if len(outputs) != len(some):
        raise NotCovered(f"one sample alone gives outputs {tuple(outputs.shape)}")
    return outputs[int((some == n).nonzero()[0])]


def fitted(u: Tensor, row: Tensor) -> Tensor:
    """A sample's cotangent at the positions that it has alone, where padding in its batch is longer.

    Raises:
        NotCovered: It is not zero at the others, or the outputs have other axes.
    """
    if u.shape == row.shape:
        return u
    index = positions_alone(row.shape, u.shape)
    if index is not None and torch.count_nonzero(u[index]) == torch.count_nonzero(u):
        return u[index]
    raise NotCovered(f"one sample alone gives outputs {tuple(row.shape)}, in a batch {tuple(u.shape)}")


def positions_alone(row: Sequence[int], whole: Sequence[int]) -> tuple[int | slice, ...] | None:
    """Where in a sample's outputs in its batch those are that it has alone: fewer, where padding is cut.

    Args:
        row: Shape of its outputs alone. An axis less is one position, whose axis is not to be told from that of the
            samples where both are folded.
        whole: Shape of its outputs in its batch.

    Returns:
        None if they have other axes, or more alone.
    """
    if len(row) == len(whole) - 1:
        index = positions_alone((1, *row), whole)
        return None if index is None else (0, *index[1:])
    if len(row) != len(whole) or any(a > b for a, b in zip(row, whole, strict=True)):
        return None
    return tuple(slice(0, length) for length in row)


def whole_batch(
    module: nn.Module, predict: Predict, batch: Any, cotangent: Tensor, samples: Iterable[int]
) -> dict[str, Tensor]:
    """The same for some samples, by definition: all samples go forward together, one cotangent at a time is not zero.

    Slow and free of assumptions.
    """
    parameters = trainable(module)
    outputs = predict(module, batch)
    rows = []
    for n in samples:
        alone = torch.zeros_like(cotangent)
        alone[n] = cotangent[n]
        rows.append(squares_of(outputs, alone, parameters))
    return dict(zip(parameters, torch.stack(rows, dim=1), strict=True))


def squares_of(outputs: Tensor, cotangent: Tensor, parameters: dict[str, nn.Parameter]) -> Tensor:
    """Squared norms of the gradients for one cotangent, ``(parameters,)`` float64."""
    gradients = torch.autograd.grad(
        outputs, list(parameters.values()), cotangent.to(outputs), retain_graph=True, allow_unused=True
    )
    zero = torch.zeros((), dtype=torch.float64, device=outputs.device)
    return torch.stack([zero if g is None else as_real(g).square().sum().double() for g in gradients])
