"""The trace of the Fisher information over the reference samples: forward passes, draws, one backward per draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from lightning_info.functional.draws import EachSample
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
from lightning_info.gradients.norms import squared_norm
from lightning_info.gradients.plan import coverage
from lightning_info.gradients.real import as_real
from lightning_info.quantities.fisher_trace.scale_invariance import squared_weight_norms
from lightning_info.replica.activations import Activation, Layer
from lightning_info.replica.alone import Alone, NotItsOwn
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

COTANGENT = "cotangent"
"""Name of the engine that needs no per-sample gradients."""
GROUPS = 16

Estimator = Literal["importance", "rademacher", "sampled", "exact", "empirical"]


@dataclass
class PoolTrace:
    """Trace over the pool of reference samples.

    Attributes:
        estimate: The trace and its standard error; the error does not cover samples outside the pool.
        per_parameter: The contribution of each trainable parameter, by name; they sum to the trace.
        scale_invariant: Their sum with the squared norm of each parameter as its weight, see :mod:`.scale_invariance`.
        coverage: Share of the trainable weights whose per-sample norm was computed exactly.
    """

    estimate: TraceEstimate
    per_parameter: dict[str, float]
    scale_invariant: TraceEstimate
    coverage: float


def pool_trace(
    snapshot: ModelSnapshot, plan: Plan, estimator: Estimator, draws: int | None, generator: Generator
) -> PoolTrace:
    """Estimate ``tr F`` (or the empirical trace) over the pool.

    ``draws`` samples are drawn with replacement, with probability proportional to ``tr H(z_n)`` (empirical: to
    ``‖∂loss_n/∂z‖²``) and a tenth uniform. If the pool is not larger, or for ``"exact"``, or with ``draws=None``, every
    sample is taken once.

    Every draw has random numbers of its own, so the values depend neither on chunks nor on the number of processes that
    share the work (but for labels that ``torch.distributions`` draws). Each takes a part of the draws, and one gather
    gives the norms of all.

    With the engine ``"cotangent"`` the samples taken go backward in sixteen groups, each with random signs: for a group
    of m, ``‖sum_n s_n J_nᵀ u_n‖²`` has the expectation ``sum_n ‖J_nᵀ u_n‖²``, so one backward pass per group is an
    unbiased estimate without any per-sample gradient; the spread of the groups is the error.

    Raises:
        Unavailable: Outputs or gradients are not finite.
        NotCovered: The plan's engine no longer fits the replica, or (:class:`~.alone.Misattributed`) these samples: one
            of those drawn goes through the replica alone, and its norms are compared with the engine's.
    """
    scores = _all_scores(snapshot, estimator)
    size = len(scores)
    index, probabilities = torch.arange(size), None
    if draws is not None and draws < size and estimator != "exact":
        distribution = sampling_probabilities(scores)
        index = draw_samples(distribution, draws, generator=generator)
        probabilities = distribution[index]
    seeds = torch.randint(2**62, (len(index),), generator=generator)
    if plan.engine == COTANGENT:
        factors = torch.ones(len(index)).double() if probabilities is None else (size * probabilities).rsqrt()
        return _by_cotangents(snapshot, index, factors, estimator, seeds, generator)

    parts = snapshot.workers.gather(
        f"{estimator} gradients of {len(index)} draws", partial(_norms_of_part, snapshot, plan, estimator, index, seeds)
    )
    norms, order = _joined([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    values = torch.stack(list(norms.values())).sum(0)
    _check_finite(values, "samples")
    probabilities = None if probabilities is None else probabilities[order]
    estimate = trace_estimate(values, probabilities, size)
    scaled = trace_estimate(_times_weight_norms(norms, snapshot.module), probabilities, size)
    if estimator == "exact":
        estimate, scaled = (TraceEstimate(one.trace, 0.0) for one in (estimate, scaled))
    per_parameter = {name: trace_estimate(norm, probabilities, size).trace for name, norm in norms.items()}
    return PoolTrace(estimate, per_parameter, scaled, coverage(snapshot.module, norms))


def sample_norms(snapshot: ModelSnapshot, plan: Plan, estimator: Estimator, generator: Generator) -> Tensor:
    """Return ``‖J_nᵀ u_n‖²`` of every sample of the pool once, in its order, ``(P,)`` float64; raises as above."""
    found = []
    for batch in snapshot.parts():
        forward = _Forward(snapshot, batch, plan.makes_one_pass)
        norms = plan.squared_norms(snapshot.module, forward.outputs, batch, forward.cotangents(estimator, generator))
        found.append(torch.stack(list(norms.values())).double().sum(0).cpu())
    return torch.cat(found)


def _norms_of_part(
    snapshot: ModelSnapshot, plan: Plan, estimator: Estimator, index: Tensor, seeds: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the squared norms of this process's draws, and the numbers of these draws."""
    columns: list[dict[str, Tensor]] = []
    order = [torch.zeros(0, dtype=torch.int64)]
    own = index.argsort(stable=True)[snapshot.workers.part(len(index))].sort().values
    looked_at = int(snapshot.audit.spot * len(index))
    for batch, some in snapshot.drawn(index[own]):
        places = own[some]
        forward = _Forward(snapshot, batch, plan.makes_one_pass)
        cotangents = forward.cotangents(estimator, EachSample(seeds[places]))
        found = (places == looked_at).nonzero().flatten().tolist()
        one = Alone(batch, found[0]) if found and len(places) > 1 else None
        norms = plan.squared_norms(
            snapshot.module, forward.outputs, batch, cotangents if one is None else one.noting(cotangents)
        )
        if one is not None:
            _compare_alone(snapshot, one, forward.prediction, norms)
        columns.append(norms)
        order.append(places)
    return {name: values.cpu() for name, values in _joined(columns).items()}, torch.cat(order)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the norms of all parts; those without draws have none."""
    found = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in found]) for name in (found[0] if found else ())}


def _times_weight_norms(norms: Mapping[str, Tensor], module: nn.Module) -> Tensor:
    """Return ``Σ_t ‖w_t‖² ‖J_tᵀ u_n‖²`` of each sample or group."""
    weights = squared_weight_norms(module)
    return torch.stack([weights[name] * norm for name, norm in norms.items()]).sum(0)


class _Forward:
    """The prediction for a batch, from which cotangents are made.

    Args:
        snapshot: The snapshot with the replica.
        batch: The batch, on the replica's device.
        is_shared: Whether the engine makes one pass before it takes the first cotangent, which is then reused.
    """

    def __init__(self, snapshot: ModelSnapshot, batch: Any, is_shared: bool) -> None:
        self._snapshot, self._is_shared = snapshot, is_shared
        self.prediction: Prediction
        if not is_shared:
            self.prediction = snapshot.predictor(snapshot.module, batch)

    def outputs(self, module: nn.Module, batch: Any) -> Tensor:
        """See :meth:`~.ModelSnapshot.outputs`."""
        prediction = self._snapshot.predictor(module, batch)
        if self._is_shared:
            self.prediction = prediction
        return prediction.outputs

    def cotangents(self, estimator: Estimator, generator: Generator) -> Iterator[Tensor]:
        """Yield cotangents, computed when they are requested."""
        yield from _cotangents(self.prediction, estimator, generator)


def _compare_alone(snapshot: ModelSnapshot, one: Alone, whole: Prediction, norms: dict[str, Tensor]) -> None:
    alone = snapshot.predictor(snapshot.module, one.part)
    try:
        one.compare_outputs(alone, whole)
    except NotItsOwn as error:
        raise Unavailable(str(error)) from error
    one.compare_norms(snapshot.module, alone, norms)


@dataclass(frozen=True)
class SamplingScores:
    """Reads what determines the probability of drawing a sample; outputs are not kept."""

    estimator: Estimator

    layers: ClassVar[tuple[Layer, ...]] = ()

    def __call__(self, prediction: Prediction, activations: Mapping[str, Activation]) -> dict[str, Tensor]:
        """Return ``scores`` and whether the outputs are ``finite``, ``(N,)`` each."""
        outputs = prediction.outputs.detach()
        finite = torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
        if not (outputs.amax().isfinite() and outputs.amin().isfinite()):  # NaN if anything is
            finite = outputs.flatten(1).isfinite().all(1)
        return {"scores": scores_of(prediction, self.estimator), "finite": finite}


def _all_scores(snapshot: ModelSnapshot, estimator: Estimator) -> Tensor:
    read = snapshot.read(SamplingScores(estimator))
    not_finite = int((~read["finite"]).sum())
    if not_finite:
        raise Unavailable(f"the outputs of {not_finite} of {snapshot.size} reference samples are not finite")
    return read["scores"]


def scores_of(prediction: Prediction, estimator: Estimator) -> Tensor:
    """Return ``tr H(z_n)``, or for the empirical Fisher the squared gradient of the loss in the outputs, ``(N,)``."""
    if estimator == "empirical":
        return squared_norm(prediction.loss_gradient()).double()
    return output_fisher_trace(prediction.outputs, prediction.likelihood, prediction.mask)


def _by_cotangents(
    snapshot: ModelSnapshot,
    index: Tensor,
    factors: Tensor,
    estimator: Estimator,
    seeds: Tensor,
    generator: Generator,
) -> PoolTrace:
    order = torch.randperm(len(index), generator=generator)
    groups = torch.tensor_split(order, min(GROUPS, len(index)))
    signs = 2.0 * torch.randint(0, 2, (len(index),), generator=generator) - 1.0
    weight = signs * factors * (len(groups) / len(index)) ** 0.5  # groups of another size count in proportion
    parameters = trainable(snapshot.module)

    def of_group(group: Tensor) -> Tensor:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for batch, places in snapshot.drawn(index[group]):
            prediction = snapshot.predictor(snapshot.module, batch)
            (u,) = _cotangents(prediction, estimator, EachSample(seeds[group[places]]))
            u = weight[group[places]].to(u).reshape(-1, *(1,) * (u.dim() - 1)) * u
            outputs = prediction.outputs
            gradients = torch.autograd.grad(outputs, list(parameters.values()), u.to(outputs), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
        return torch.stack([as_real(gradient).double().square().sum() for gradient in total.values()]).cpu()

    own = groups[snapshot.workers.part(len(groups))]
    parts = snapshot.workers.gather(f"{estimator} gradients of {len(groups)} groups", lambda: list(map(of_group, own)))
    norms = torch.stack([row for part in parts for row in part], 1)
    _check_finite(norms.sum(0), "groups")
    by_name = dict(zip(parameters, norms, strict=True))
    scaled = trace_estimate(_times_weight_norms(by_name, snapshot.module))
    per_parameter = {name: norm.mean().item() for name, norm in by_name.items()}
    return PoolTrace(trace_estimate(norms.sum(0)), per_parameter, scaled, 0.0)


def _check_finite(values: Tensor, of: str) -> None:
    if not values.isfinite().all():
        raise Unavailable(f"the gradients of {int((~values.isfinite()).sum())} of {len(values)} {of} are not finite")


def _cotangents(prediction: Prediction, estimator: Estimator, generator: Generator) -> Iterable[Tensor]:
    if estimator == "empirical":
        return [prediction.loss_gradient()]
    outputs, likelihood, mask = prediction.outputs.detach(), prediction.likelihood, prediction.mask
    if estimator == "exact":
        return exact_cotangents(outputs, likelihood, mask)
    dtype = outputs.dtype  # that of the backward pass
    return [fisher_cotangent(outputs, likelihood, estimator, generator=generator, mask=mask, dtype=dtype)]
