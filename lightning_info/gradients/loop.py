"""Plain autograd, one backward pass per sample: works for every module whose samples are independent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import Norms, NotCovered, Predict, first_line, trainable
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import as_real
from lightning_info.gradients.samples import num_samples, take


def squared_norms(module: nn.Module, predict: Predict, batch: Any, cotangents: Iterable[Tensor]) -> Norms:
    """Per-sample squared gradient norms by a loop over batches of one (an :class:`~.contract.Engine`)."""
    parameters = trainable(module)
    columns = list(cotangents)
    rows = []
    for n in range(num_samples(batch)):
        try:
            outputs = predict(module, take(batch, slice(n, n + 1)))
        except (RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise NotCovered(f"one sample alone fails ({first_line(error)})") from error
        if outputs.shape != columns[0][n : n + 1].shape:
            raise NotCovered(
                f"one sample alone gives outputs {tuple(outputs.shape)}, in a batch {tuple(columns[0].shape)}"
            )
        rows.append(torch.stack([_squares(outputs, u[n : n + 1], parameters) for u in columns]).sum(0))
    norms = dict(zip(parameters, torch.stack(rows, dim=1), strict=True))
    return Norms(norms, dict.fromkeys(norms, "loop"))


def whole_batch(
    module: nn.Module, predict: Predict, batch: Any, cotangent: Tensor, samples: Iterable[int]
) -> dict[str, Tensor]:
    """The same for some samples, by definition: all samples go forward together, one cotangent at a time is not zero.

    Slow and free of assumptions; the two-sample check compares every engine with it.
    """
    parameters = trainable(module)
    outputs = predict(module, batch)
    rows = []
    for n in samples:
        alone = torch.zeros_like(cotangent)
        alone[n] = cotangent[n]
        rows.append(_squares(outputs, alone, parameters))
    return dict(zip(parameters, torch.stack(rows, dim=1), strict=True))


def _squares(outputs: Tensor, cotangent: Tensor, parameters: dict[str, nn.Parameter]) -> Tensor:
    """``(parameters,)`` float64."""
    gradients = torch.autograd.grad(
        outputs, list(parameters.values()), cotangent.to(outputs), retain_graph=True, allow_unused=True
    )
    zero = torch.zeros((), dtype=torch.float64, device=outputs.device)
    return torch.stack([zero if g is None else as_real(g).square().sum().double() for g in gradients])
