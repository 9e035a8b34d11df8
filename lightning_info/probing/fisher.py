"""The trace of the Fisher information over the reference samples: forward passes, draws, one backward per draw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lightning_info.functional.fisher import (
    TraceEstimate,
    draw_samples,
    exact_cotangents,
    fisher_cotangent,
    output_fisher_trace,
    sampling_probabilities,
    trace_estimate,
)
from lightning_info.gradients import Plan
from lightning_info.gradients.plan import coverage
from lightning_info.gradients.samples import take
from lightning_info.probing.probe import PoolPrediction, Probe, Unavailable

Estimator = Literal["importance", "rademacher", "sampled", "exact", "empirical"]


@dataclass
class PoolTrace:
    """Trace over the pool of reference samples.

    Attributes:
        estimate: The trace and its standard error beyond which the pool says nothing.
        per_parameter: The contribution of each trainable parameter, by name; they sum to the trace.
        coverage: Share of the trainable elements whose per-sample norm was computed exactly.
    """

    estimate: TraceEstimate
    per_parameter: dict[str, float]
    coverage: float


def pool_trace(probe: Probe, plan: Plan, estimator: Estimator, draws: int | None, generator: Generator) -> PoolTrace:
    """Estimate ``tr F`` (or the empirical trace) over the pool.

    ``draws`` samples are drawn with replacement, with probability proportional to ``tr H(z_n)`` (empirical: to
    ``‖∂loss_n/∂z‖²``) and a tenth uniform. If the pool is not larger, or for ``"exact"``, or with ``draws=None``, every
    sample is taken once.

    Raises:
        Unavailable: Outputs or gradients are not finite.
        NotCovered: The plan's engine does not fit the replica any more.
    """
    empirical = estimator == "empirical"
    pools = list(probe.predictions(with_loss_gradient=empirical))
    scores = torch.cat([_scores(pool, empirical).cpu() for pool in pools])
    size = len(scores)
    index, probabilities = torch.arange(size), None
    if draws is not None and draws < size and estimator != "exact":
        distribution = sampling_probabilities(scores)
        index = draw_samples(distribution, draws, generator=generator).sort().values
        probabilities = distribution[index]

    columns: list[dict[str, Tensor]] = []
    offset = 0
    for pool in pools:
        local = index[(index >= offset) & (index < offset + len(pool.outputs))] - offset
        offset += len(pool.outputs)
        for part in torch.split(local, probe.chunk) if len(local) else ():
            batch = probe.to_device(take(pool.batch, part))
            cotangents = _cotangents(pool, part, estimator, generator)
            columns.append(plan.squared_norms(probe.module, probe.outputs, batch, cotangents))
    norms = {name: torch.cat([column[name] for column in columns]).cpu() for name in columns[0]}

    values = torch.stack(list(norms.values())).sum(0)
    if not values.isfinite().all():
        raise Unavailable(f"the gradients of {int((~values.isfinite()).sum())} of {len(values)} samples are not finite")
    estimate = trace_estimate(values, probabilities, size)
    if estimator == "exact":
        estimate = TraceEstimate(estimate.trace, 0.0)
    per_parameter = {name: trace_estimate(norm, probabilities, size).trace for name, norm in norms.items()}
    return PoolTrace(estimate, per_parameter, coverage(probe.module, norms))


def _scores(pool: PoolPrediction, empirical: bool) -> Tensor:
    if pool.loss_gradient is not None and empirical:
        return pool.loss_gradient.reshape(len(pool.loss_gradient), -1).square().sum(1)
    return output_fisher_trace(pool.outputs, pool.likelihood, pool.mask)


def _cotangents(pool: PoolPrediction, part: Tensor, estimator: Estimator, generator: Generator) -> Iterable[Tensor]:
    part = part.to(pool.outputs.device)
    if estimator == "empirical":
        assert pool.loss_gradient is not None
        return [pool.loss_gradient[part]]
    outputs, mask = pool.outputs[part], None if pool.mask is None else pool.mask[part]
    if estimator == "exact":
        return exact_cotangents(outputs, pool.likelihood, mask)
    return [fisher_cotangent(outputs, pool.likelihood, estimator, generator=generator, mask=mask)]
