"""Rows ``J_nᵀ u_nc`` whole and one by one, by ``torch.func`` or plain autograd: for modules that taps do not take."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.gradients.attributes import kept
from lightning_info.gradients.batches import split_samples
from lightning_info.gradients.contract import NotCovered, Predict, first_line, trainable
from lightning_info.gradients.func import _Caller
from lightning_info.gradients.loop import alone, fitted
from lightning_info.gradients.memory import BUDGET, is_out_of_memory
from lightning_info.gradients.real import flat

SomeRows = Callable[[Tensor], dict[str, Tensor]]
"""Numbers of r rows, those of each sample in turn -> ``(r, real numbers)`` by parameter."""


def at_once(module: nn.Module) -> int:
    """How many rows, twice, stay within the budget."""
    size = sum(p.numel() * p.element_size() for p in trainable(module).values())
    return max(1, BUDGET // max(1, 2 * size))


def by_func(module: nn.Module, predict: Predict, batch: Any, columns: Tensor) -> SomeRows:
    """By ``vmap`` of vector-Jacobian products."""
    caller = _Caller(module, predict)
    parameters = {name: p.detach() for name, p in trainable(caller).items()}
    leaves, rebuild = split_samples(batch)

    def one_row(sample: list[Tensor], u: Tensor) -> dict[str, Tensor]:
        single = rebuild([leaf.unsqueeze(0) for leaf in sample])

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            row: Tensor = torch.func.functional_call(caller, parameters, (single,)).squeeze(0)
            return row

        row, pullback = torch.func.vjp(outputs, parameters)[:2]
        (gradients,) = pullback(u.to(row.dtype))
        return {name.removeprefix("module."): flat(gradient) for name, gradient in gradients.items()}

    def some_rows(numbers: Tensor) -> dict[str, Tensor]:
        n, c = numbers // len(columns), numbers % len(columns)
        samples = [leaf[n.to(leaf.device)] for leaf in leaves]
        u = columns[c.to(columns.device), n.to(columns.device)].to(leaves[0].device)
        try:
            with kept(module), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                rows: dict[str, Tensor] = torch.vmap(one_row, randomness="different")(samples, u)
        except Exception as error:  # whatever the module's own code raises under vmap
            if is_out_of_memory(error):
                raise
            raise NotCovered(f"the module does not vmap ({first_line(error)})") from error
        return rows

    return some_rows


def by_loop(module: nn.Module, predict: Predict, batch: Any, columns: Tensor) -> SomeRows:
    """By plain autograd on batches of one."""
    parameters = trainable(module)

    def one_row(outputs: Tensor, u: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(
            outputs, list(parameters.values()), u.to(outputs), retain_graph=True, allow_unused=True
        )
        pairs = zip(parameters.values(), gradients, strict=True)
        return [flat((torch.zeros_like(p) if g is None else g.to_dense()).detach()) for p, g in pairs]

    def some_rows(numbers: Tensor) -> dict[str, Tensor]:
        rows = []
        last, outputs = -1, torch.empty(0)
        for n, c in zip((numbers // len(columns)).tolist(), (numbers % len(columns)).tolist(), strict=True):
            if n != last:
                last, outputs = n, alone(module, predict, batch, n)
            rows.append(one_row(outputs, fitted(columns[c, n], outputs)))
        return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}

    return some_rows
