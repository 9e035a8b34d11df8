"""The trace of the Hessian of the training loss, which the Fisher information approximates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.functional.fisher import TraceEstimate, trace_estimate
from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.graph import graph_of
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import as_real
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

GROUPS = 16
NO_DERIVATIVE = {"torch::autograd::Error", "torch::autograd::NotImplemented"}
"""Autograd nodes in place of a derivative that does not exist."""


def hessian_trace(snapshot: ModelSnapshot, draws: int | None, generator: Generator) -> TraceEstimate:
    r"""Estimate ``tr ∇² L`` of the mean training loss L over the reference samples, by Hutchinson's method.

    With ``v = ±1`` for every weight (both parts of a complex one), ``E[vᵀ H v] = tr H``. The samples (``draws`` of
    them, drawn uniformly with replacement; or each once, if there are no more) form sixteen groups, each with its own
    v; the spread of the groups is the error. The loss is that of :class:`~.likelihoods.Prediction`: class weights and
    label smoothing enter, ignored positions do not, the scale does not. Source: Achille, Paolini & Soatto, Lemma 2.4 (H
    = F + a residual).

    Raises:
        Unavailable: A value is not finite.
        NoPrediction: There are no targets.
    """
    size = sum(map(num_samples, snapshot.groups))
    if draws is not None and draws < size:
        index = torch.randint(0, size, (draws,), generator=generator)
    else:
        index = torch.randperm(size, generator=generator)
    groups = torch.tensor_split(index, min(GROUPS, len(index)))
    seeds = torch.randint(2**62, (len(groups),), generator=generator).tolist()

    def of_group(group: Tensor, seed: int) -> float:
        source = Generator().manual_seed(seed)
        signs = [
            2.0 * torch.randint(0, 2, p.shape, generator=source).to(p) - 1.0
            for p in map(as_real, trainable(snapshot.module).values())
        ]
        total = sum(_quadratic_form(snapshot, batch, signs) for batch, _ in snapshot.drawn(group))
        return total * len(groups) / len(index)  # groups of another size count in proportion

    own = snapshot.workers.part(len(groups))
    parts = snapshot.workers.gather(
        f"second derivatives of {len(groups)} groups", lambda: list(map(of_group, groups[own], seeds[own]))
    )
    estimate = trace_estimate(torch.tensor([value for part in parts for value in part], dtype=torch.float64))
    if not torch.tensor(estimate).isfinite().all():
        raise Unavailable("the second derivatives of the loss are not finite")
    return estimate


def check_hessian(snapshot: ModelSnapshot) -> None:
    """Differentiate twice on the snapshot's first samples.

    Raises:
        NotCovered: An operator has no second derivative.
    """
    signs = [torch.ones_like(as_real(p)) for p in trainable(snapshot.module).values()]
    try:
        _quadratic_form(snapshot, snapshot.first_chunk(), signs)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NotCovered(f"also='hessian' needs second derivatives: {str(error).splitlines()[0]}") from error


def _quadratic_form(snapshot: ModelSnapshot, batch: object, signs: Sequence[Tensor]) -> float:
    """Return ``vᵀ H v`` for the loss summed over a batch."""
    parameters = list(trainable(snapshot.module).values())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        loss = snapshot.predictor(snapshot.module, batch).summed_loss()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        pairs = zip(gradients, signs, strict=True)
        slope = torch.stack([(as_real(g) * v).sum().double() for g, v in pairs if g is not None])
        if not slope.requires_grad:  # linear in all parameters
            return 0.0
        missing = {node.name() for node in graph_of(slope).nodes} & NO_DERIVATIVE
        if missing:  # autograd would treat it as constant
            raise NotCovered("an operator of the module has no second derivative, which also='hessian' needs")
        curvature = torch.autograd.grad(slope.sum(), parameters, allow_unused=True)
    return sum((as_real(h) * v).sum().item() for h, v in zip(curvature, signs, strict=True) if h is not None)
