"""``torch.func``: every sample's gradient by ``vmap`` of a vector-Jacobian product, for modules that vmap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.gradients.attributes import kept
from lightning_info.gradients.batches import select, split_samples
from lightning_info.gradients.contract import (
    Norms,
    NotCovered,
    OutputGradients,
    Predict,
    add_plain_gradients,
    first_line,
    trainable,
)
from lightning_info.gradients.memory import LIMITS, is_out_of_memory
from lightning_info.gradients.real import as_real, flat


def squared_norms(
    module: nn.Module,
    predict: Predict,
    batch: Any,
    cotangents: Iterable[Tensor],
    sums: dict[str, Tensor] | None = None,
) -> Norms:
    """Per-sample squared gradient norms by ``torch.func`` (an :class:`~.contract.Engine`)."""
    gradients = _Gradients(module, predict, batch, lambda gradient: as_real(gradient).square().sum().double())
    total: dict[str, Tensor] = {}
    for u in cotangents:
        if sums is not None:
            add_plain_gradients(sums, module, predict, batch, [u])
        found = gradients(gradients.leaves, u)
        total = {name: total.get(name, 0) + norm for name, norm in found.items()}
    return Norms(total, dict.fromkeys(total, "torch.func"))


def output_gradients(module: nn.Module, predict: Predict, batch: Any, columns: Tensor) -> OutputGradients:
    """Per-output gradients ``J_nᵀ u_nc`` by ``torch.func``.

    Args:
        module: The module; never changed.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples.
        columns: The cotangents, ``(C, *outputs.shape)``.
    """
    gradients = _Gradients(module, predict, batch, flat)

    def some(numbers: Tensor) -> dict[str, Tensor]:
        n, c = numbers // len(columns), numbers % len(columns)
        return gradients(select(gradients.leaves, n), columns[c.to(columns.device), n.to(columns.device)])

    return some


class _Caller(nn.Module):
    """Gives ``predict`` the form that ``functional_call`` needs."""

    def __init__(self, module: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.module, self.predict = module, predict

    def forward(self, batch: Any) -> Tensor:
        outputs: Tensor = self.predict(self.module, batch)
        return outputs


class _Gradients:
    """Gradients of samples, each for a cotangent of its own and reduced as soon as it is there."""

    def __init__(self, module: nn.Module, predict: Predict, batch: Any, reduce: Callable[[Tensor], Tensor]) -> None:
        self.caller = _Caller(module, predict)
        self.parameters = {name: p.detach() for name, p in trainable(self.caller).items()}
        self.leaves, self.rebuild = split_samples(batch)
        self.reduce = reduce
        bytes_per_sample = sum(p.numel() * p.element_size() for p in self.parameters.values())
        self.chunk = max(1, LIMITS.copies // max(1, bytes_per_sample))

    def __call__(self, leaves: list[Tensor], u: Tensor) -> dict[str, Tensor]:
        """What the gradients of R samples and cotangents ``(R, ...)`` are reduced to, ``(R, ...)`` by parameter.

        Raises:
            NotCovered: The module does not vmap.
        """
        try:
            # the fused attention kernels have no batching rule; where others lack one it is slower, not wrong
            with kept(self.caller.module), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                chunk = self.chunk if self.chunk < len(u) else None
                vmapped = torch.vmap(self._one_sample, randomness="different", chunk_size=chunk)
                found: dict[str, Tensor] = vmapped(leaves, u.to(leaves[0].device))
        except Exception as error:  # whatever the module's own code raises under vmap
            if is_out_of_memory(error):
                raise
            raise NotCovered(f"the module does not vmap ({first_line(error)})") from error
        return {name.removeprefix("module."): values for name, values in found.items()}

    def _one_sample(self, sample: list[Tensor], u: Tensor) -> dict[str, Tensor]:
        single = self.rebuild([leaf.unsqueeze(0) for leaf in sample])

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            row: Tensor = torch.func.functional_call(self.caller, parameters, (single,)).squeeze(0)
            return row

        row, pullback = torch.func.vjp(outputs, self.parameters)[:2]
        (gradients,) = pullback(u.to(row.dtype))
        return {name: self.reduce(gradient) for name, gradient in gradients.items()}
