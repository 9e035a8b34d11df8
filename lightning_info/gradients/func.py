"""``torch.func``: every sample's gradient by ``vmap`` of a vector-Jacobian product, for modules that vmap."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.gradients.attributes import kept
from lightning_info.gradients.batches import split_samples
from lightning_info.gradients.contract import Norms, NotCovered, Predict, first_line, trainable
from lightning_info.gradients.memory import BUDGET, is_out_of_memory
from lightning_info.gradients.real import as_real


class _Caller(nn.Module):
    """Gives ``predict`` the form that ``functional_call`` needs."""

    def __init__(self, module: nn.Module, predict: Predict) -> None:
        super().__init__()
        self.module, self.predict = module, predict

    def forward(self, batch: Any) -> Tensor:
        outputs: Tensor = self.predict(self.module, batch)
        return outputs


def squared_norms(module: nn.Module, predict: Predict, batch: Any, cotangents: Iterable[Tensor]) -> Norms:
    """Per-sample squared gradient norms by ``torch.func`` (an :class:`~.contract.Engine`)."""
    caller = _Caller(module, predict)
    parameters = {name: p.detach() for name, p in trainable(caller).items()}
    leaves, rebuild = split_samples(batch)

    def one_sample(sample: list[Tensor], u: Tensor) -> dict[str, Tensor]:
        single = rebuild([leaf.unsqueeze(0) for leaf in sample])

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            row: Tensor = torch.func.functional_call(caller, parameters, (single,)).squeeze(0)
            return row

        row, pullback = torch.func.vjp(outputs, parameters)[:2]
        (gradients,) = pullback(u.to(row.dtype))
        return {name: as_real(gradient).square().sum().double() for name, gradient in gradients.items()}

    bytes_per_sample = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, BUDGET // max(1, bytes_per_sample))
    total: dict[str, Tensor] = {}
    try:
        for u in cotangents:
            u = u.to(leaves[0].device)
            # the fused attention kernels have no batching rule; where others lack one it is slower, not wrong
            with kept(module), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                norms = torch.vmap(one_sample, randomness="different", chunk_size=chunk)(leaves, u)
            total = {name: total.get(name, 0) + norm for name, norm in norms.items()}
    except Exception as error:  # whatever the module's own code raises under vmap
        if is_out_of_memory(error):
            raise
        raise NotCovered(f"the module does not vmap ({first_line(error)})") from error
    total = {name.removeprefix("module."): norm for name, norm in total.items()}
    return Norms(total, dict.fromkeys(total, "torch.func"))
