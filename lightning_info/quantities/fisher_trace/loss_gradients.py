"""The squared gradients of the losses of single samples, for a loss without a known likelihood."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Generator, Tensor

from lightning_info.functional.fisher import TraceEstimate, trace_estimate
from lightning_info.gradients.batches import num_samples, spread, take
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.real import as_real
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

TAG = "fisher/loss_gradient_trace"
TOLERANCE = 1e-3
"""Relative error within which a loss and its gradient must agree with those of its terms, in single precision."""

Terms = Literal["mean", "sum"]


class NoTerms(NoPrediction):
    """A loss is neither the mean nor the sum of the losses of its samples; the message says what was seen."""


def loss_gradient_trace(snapshot: ModelSnapshot, draws: int | None, generator: Generator) -> TraceEstimate:
    r"""Return ``(1/n) sum_n ‖∇ ℓ_n‖²`` for the training loss ``ℓ_n`` of sample n alone, in the unit of the loss.

    This is the empirical trace of the loss: labels are those of the data, and no predictive distribution is involved.

    Args:
        snapshot: The replica and the reference samples.
        draws: Number of samples drawn without replacement; None, or at least as many as there are: all of them.
        generator: Source of the draws.

    Returns:
        The mean, and its standard error over samples.

    Raises:
        Unavailable: A gradient is not finite, or the loss is no longer a mean or sum over samples.
    """
    try:
        terms_of(snapshot, gradients=False)
    except NoTerms as error:
        raise Unavailable(str(error)) from error
    size = snapshot.size
    chosen = torch.randperm(size, generator=generator)[: size if draws is None else draws].sort().values

    def of_part() -> Tensor:
        values = []
        for batch, places in snapshot.drawn(chosen[snapshot.workers.part(len(chosen))]):
            for number in range(len(places)):
                gradient = loss_and_gradients(snapshot, take(batch, slice(number, number + 1)))[1]
                values.append(torch.stack([as_real(one).double().square().sum() for one in gradient]).sum())
        return torch.stack(values).cpu() if values else torch.zeros(0, dtype=torch.float64)

    found = torch.cat(snapshot.workers.gather("gradients of single losses", of_part))
    if not found.isfinite().all():
        raise Unavailable(
            f"the loss gradients of {int((~found.isfinite()).sum())} of {len(found)} samples are not finite"
        )
    return trace_estimate(found)


def terms_of(snapshot: ModelSnapshot, *, gradients: bool = True) -> Terms:
    """Test whether the loss of a batch is the mean or the sum of those of its samples alone, on a few and half of them.

    Args:
        snapshot: The replica and the samples; the first of these are used.
        gradients: Whether to test the gradients as well.

    Raises:
        NoTerms: It is neither, or cannot be computed for one sample.
    """
    few = snapshot.to_device(spread(snapshot.groups[0], min(CHECK_SAMPLES, snapshot.chunk)))
    size = num_samples(few)
    if size < 2:
        raise NoTerms("whether its loss is a mean over samples cannot be seen from a single sample")
    try:
        alone = [loss_and_gradients(snapshot, take(few, slice(n, n + 1)), gradients) for n in range(size)]
        parts = [
            (count, loss_and_gradients(snapshot, take(few, slice(0, count)), gradients))
            for count in {size, (size + 1) // 2}
        ]
    except NoPrediction as error:
        raise NoTerms(f"its loss has no value for one sample alone: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NoTerms(f"its loss has no value for one sample alone ({type(error).__name__}: {error})") from error
    losses = torch.stack([loss for loss, _ in alone])
    kinds: list[Terms] = ["mean", "sum"]
    for kind in kinds:
        if all(_agree(whole, alone[:count], kind) for count, whole in parts):
            return kind
    whole = parts[0][1][0].item()
    raise NoTerms(
        f"its loss is neither the mean nor the sum of the losses of its samples alone, as with a loss that compares "
        f"samples: that of {parts[0][0]} samples is {whole:.4g}, and those of each alone have the mean "
        f"{losses[: parts[0][0]].mean().item():.4g}"
    )


def _agree(whole: tuple[Tensor, list[Tensor]], alone: list[tuple[Tensor, list[Tensor]]], kind: Terms) -> bool:
    share = 1 / len(alone) if kind == "mean" else 1.0
    losses = torch.stack([loss for loss, _ in alone])
    if abs(whole[0] - share * losses.sum()) > TOLERANCE * share * losses.abs().sum():
        return False
    if not whole[1]:
        return True
    total = [share * torch.stack(column).sum(0) for column in zip(*(found for _, found in alone), strict=True)]
    error = sum((one - other).abs().square().sum() for one, other in zip(total, whole[1], strict=True))
    size = sum(share * torch.stack(column).abs().square().sum() for column in zip(*(g for _, g in alone), strict=True))
    return bool(torch.as_tensor(error) <= TOLERANCE**2 * torch.as_tensor(size) + 1e-24)


def loss_and_gradients(snapshot: ModelSnapshot, batch: Any, wanted: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Return the trained loss of a batch, float64 without a graph, and its gradients in the trained weights.

    Args:
        snapshot: The replica.
        batch: On its device.
        wanted: Whether gradients are needed.
    """
    loss = snapshot.predictor.trained_loss(snapshot.module, batch)
    if not wanted:
        return loss.detach().double(), []
    parameters = list(trainable(snapshot.module).values())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    gradients = [torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g for g, p in pairs]
    return loss.detach().double(), gradients
