"""The trace of the Fisher information over the reference samples: forward passes, draws, one backward per draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.plan import coverage
from lightning_info.gradients.samples import take
from lightning_info.probing.probe import PoolPrediction, Probe, Unavailable

COTANGENT = "cotangent"
"""Name of the engine that needs no per-sample gradients."""
GROUPS = 8

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

    With the engine ``"cotangent"`` the samples taken go backward in eight groups, each with random signs: for a group
    of m, ``‖sum_n s_n J_nᵀ u_n‖²`` has the expectation ``sum_n ‖J_nᵀ u_n‖²``, so that one backward pass a group is an
    unbiased estimate without any per-sample gradient; the spread of the groups is the error.

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
        index = draw_samples(distribution, draws, generator=generator)
        probabilities = distribution[index]
    if plan.engine == COTANGENT:
        order = torch.randperm(len(index), generator=generator)
        scale = 1.0 if probabilities is None else (size * probabilities[order]).rsqrt()
        return _by_cotangents(probe, pools, index[order], scale * torch.ones(len(index)).double(), estimator, generator)

    index, order = index.sort()
    probabilities = None if probabilities is None else probabilities[order]
    columns: list[dict[str, Tensor]] = []
    for pool, part, _ in _parts(pools, index, probe.chunk):
        batch = probe.to_device(take(pool.batch, part))
        cotangents = _cotangents(pool, part, estimator, generator)
        columns.append(plan.squared_norms(probe.module, probe.outputs, batch, cotangents))
    norms = {name: torch.cat([column[name] for column in columns]).cpu() for name in columns[0]}

    values = torch.stack(list(norms.values())).sum(0)
    _check_finite(values, "samples")
    estimate = trace_estimate(values, probabilities, size)
    if estimator == "exact":
        estimate = TraceEstimate(estimate.trace, 0.0)
    per_parameter = {name: trace_estimate(norm, probabilities, size).trace for name, norm in norms.items()}
    return PoolTrace(estimate, per_parameter, coverage(probe.module, norms))


def _by_cotangents(
    probe: Probe, pools: list[PoolPrediction], index: Tensor, scale: Tensor, estimator: Estimator, generator: Generator
) -> PoolTrace:
    parameters = trainable(probe.module)
    groups = torch.tensor_split(torch.arange(len(index)), min(GROUPS, len(index)))
    signs = 2.0 * torch.randint(0, 2, (len(index),), generator=generator) - 1.0
    weight = signs * scale * (len(groups) / len(index)) ** 0.5  # groups of another size count in proportion
    rows = []
    for group in groups:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for pool, part, places in _parts(pools, index[group], probe.chunk):
            outputs = probe.outputs(probe.module, probe.to_device(take(pool.batch, part)))
            (u,) = _cotangents(pool, part, estimator, generator)
            factors = weight[group[places]].to(u).reshape(-1, *(1,) * (u.dim() - 1))
            gradients = torch.autograd.grad(
                outputs, list(parameters.values()), (factors * u).to(outputs), allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
        rows.append(torch.stack([gradient.double().square().sum() for gradient in total.values()]))
    norms = torch.stack(rows, 1).cpu()
    _check_finite(norms.sum(0), "groups")
    return PoolTrace(trace_estimate(norms.sum(0)), dict(zip(parameters, norms.mean(1).tolist(), strict=True)), 0.0)


def _parts(pools: list[PoolPrediction], index: Tensor, chunk: int) -> Iterator[tuple[PoolPrediction, Tensor, Tensor]]:
    """Samples of the whole pool by number -> their group, their numbers in it and their places in ``index``."""
    offset = 0
    for pool in pools:
        places = ((index >= offset) & (index < offset + len(pool.outputs))).nonzero().squeeze(1)
        for some in torch.split(places, chunk) if len(places) else ():
            yield pool, index[some] - offset, some
        offset += len(pool.outputs)


def _check_finite(values: Tensor, of: str) -> None:
    if not values.isfinite().all():
        raise Unavailable(f"the gradients of {int((~values.isfinite()).sum())} of {len(values)} {of} are not finite")


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
