"""The rows of the Fisher information themselves, ``A``, and ``AᵀA``: for modules with few weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_info.gradients import row_functions
from lightning_info.gradients.contract import Predict, trainable
from lightning_info.gradients.real import sizes

RowEngineName = Literal["func", "loop"]


def outer_products(
    module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor, engine: RowEngineName
) -> Tensor:
    """Sum of the outer products of all rows ``J_nᵀ u_nc``: N times F if the cotangents are exact.

    Args:
        module: The module; never changed.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples.
        cotangents: ``(C, *outputs.shape)``.
        engine: Makes the rows; one that :func:`~.gram.choose_gram_engine` found right.

    Returns:
        ``(k, k)`` float64; the weights are those of :func:`~.contract.trainable` one after the other, a complex one as
        two (:mod:`~.real`).

    Raises:
        NotCovered: The engine cannot give them exactly.
    """
    k = sum(sizes(trainable(module).values()))
    total = torch.zeros(k, k, dtype=torch.float64, device=cotangents.device)
    for rows in _some_rows(module, predict, batch, cotangents, engine):
        total.addmm_(rows.T, rows)
    return total


def row_matrix(module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor, engine: RowEngineName) -> Tensor:
    """All rows ``J_nᵀ u_nc``, ``(N C, k)`` float64, those of each sample in turn; arguments of :func:`outer_products`.

    Raises:
        NotCovered: The engine cannot give them exactly.
    """
    return torch.cat(list(_some_rows(module, predict, batch, cotangents, engine)))


def _some_rows(
    module: nn.Module, predict: Predict, batch: Any, cotangents: Tensor, engine: RowEngineName
) -> Iterator[Tensor]:
    functions = {"func": row_functions.by_func, "loop": row_functions.by_loop}[engine]
    some_rows = functions(module, predict, batch, cotangents)
    parameters = trainable(module)
    widths = dict(zip(parameters, sizes(parameters.values()), strict=True))
    for numbers in torch.split(torch.arange(cotangents.shape[0] * cotangents.shape[1]), row_functions.at_once(module)):
        rows = some_rows(numbers)
        parts = [
            rows[name] if name in rows else torch.zeros(len(numbers), width, device=cotangents.device)
            for name, width in widths.items()
        ]
        yield torch.cat([part.double() for part in parts], 1)
