"""Gradient noise over the reference samples: per-sample norms and the summed gradients of groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_info.functional.gradient_noise import GradientNoise, gradient_noise_scale
from lightning_info.gradients import Plan
from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import add_gradients, trainable
from lightning_info.gradients.real import as_real, flat, sizes
from lightning_info.quantities.fisher_trace.loss_gradients import loss_and_gradients
from lightning_info.quantities.gradient_noise.loss_gradient import LossForm, rest_gradient, sample_gradients
from lightning_info.replica.alone import Alone, NotItsOwn
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

GROUPS = 8
"""Number of groups whose mean gradients tell the errors."""
WIDTH = 1 << 20
"""Numbers that are kept of a group's gradient. A longer one is folded to that length with random signs, which leaves
inner products as they are in expectation; only the errors are computed from it."""

Gradients = Callable[[Any, dict[str, Tensor]], Mapping[str, Tensor]]
"""``(batch, sums) -> squared norms (N,) by parameter``; adds the gradients summed over the samples to ``sums``."""


@dataclass
class PooledNoise:
    """Gradient noise over the reference samples.

    Attributes:
        noise: Of all trained weights.
        traces: ``tr Σ`` of each trained parameter, by name; they sum to the whole.
        squared_norms: ``|G|²`` of each, in the same form.
    """

    noise: GradientNoise
    traces: dict[str, float]
    squared_norms: dict[str, float]


def pooled_noise(
    snapshot: ModelSnapshot, gradients: Gradients, rest: Mapping[str, Tensor], generator: Generator
) -> PooledNoise:
    """Measure every reference sample once, in random groups.

    Args:
        snapshot: The replica and the samples.
        gradients: Gives the gradients of a batch.
        rest: Gradient of what the loss holds beyond its samples, by parameter, added to every mean.
        generator: Deals the samples to groups, and draws the signs that fold long gradients.

    Raises:
        Unavailable: There is only one sample, or a gradient is not finite.
    """
    size = snapshot.size
    if size < 2:
        raise Unavailable("the noise of gradients cannot be seen from a single sample")
    parts = torch.tensor_split(torch.randperm(size, generator=generator), min(GROUPS, size))
    fold = _Fold(snapshot, int(torch.randint(1 << 31, (1,), generator=generator)))
    total: dict[str, Tensor] = {}
    columns: list[Mapping[str, Tensor]] = []
    rows, beside = [], []
    for part in parts:
        own: dict[str, Tensor] = {}
        columns.extend(gradients(batch, own) for batch, _ in snapshot.drawn(part))
        add_gradients(total, own, own.values())
        own = {name: own[name] / len(part) if name in own else torch.zeros_like(p) for name, p in fold.parameters}
        beside.append(2 * _product(own, rest))
        rows.append(fold({name: value + rest[name] if name in rest else value for name, value in own.items()}))
    norms = {name: torch.cat([column[name] for column in columns]).cpu().double() for name in columns[0]}
    groups = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    # only means over groups count, so that of what the rest adds to the squares is enough
    values = (
        torch.stack(list(norms.values())).sum(0)
        + torch.tensor(beside, dtype=torch.float64)[groups]
        + _product(rest, rest)
    )
    if not values.isfinite().all():
        raise Unavailable(f"the gradients of {int((~values.isfinite()).sum())} of {size} samples are not finite")
    mean = {name: value / size for name, value in total.items()}
    traces = {}
    for name, norm in norms.items():
        square = _product({name: mean[name]}, mean) if name in mean else 0.0
        traces[name] = size / (size - 1) * max(0.0, norm.mean().item() - square)
    add_gradients(mean, rest, rest.values())
    squares = {name: _product({name: mean[name]}, mean) if name in mean else 0.0 for name in norms}
    kept = torch.stack(rows).double()
    noise = gradient_noise_scale(values, groups, (kept @ kept.T).cpu(), sum(squares.values()))
    return PooledNoise(noise, traces, {name: square - traces[name] / size for name, square in squares.items()})


@dataclass
class LikelihoodGradients:
    """Gradients of the trained losses of samples, by an engine for per-sample gradients.

    Attributes:
        snapshot: The replica and the samples.
        plan: The engine.
        form: Of the loss.
        is_checked: One of the samples was compared with plain autograd on it alone.
    """

    snapshot: ModelSnapshot
    plan: Plan
    form: LossForm
    is_checked: bool = field(default=False, init=False)

    def __call__(self, batch: Any, sums: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """See :data:`Gradients`.

        Raises:
            Unavailable: The outputs of a sample depend on the others.
            NotCovered: The engine no longer fits the replica, or these samples.
        """
        module, predictor = self.snapshot.module, self.snapshot.predictor
        seen: list[Prediction] = []

        def outputs(module: Any, batch: Any) -> Tensor:
            prediction = predictor(module, batch)
            if self.plan.makes_one_pass or not seen:
                seen.append(prediction)
            return prediction.outputs

        def cotangents() -> Iterator[Tensor]:
            yield sample_gradients(seen[-1], self.form.reduction)

        if not self.plan.makes_one_pass:
            outputs(module, batch)
        one = None
        if not self.is_checked and num_samples(batch) > 1:
            self.is_checked = True
            one = Alone(batch, int(self.snapshot.audit.spot * num_samples(batch)))
        given: Iterable[Tensor] = cotangents() if one is None else one.noting(cotangents())
        norms = self.plan.squared_norms(module, outputs, batch, given, sums)
        if one is not None:
            alone = predictor(module, one.part)
            try:
                one.compare_outputs(alone, seen[-1])
            except NotItsOwn as error:
                raise Unavailable(str(error)) from error
            one.compare_norms(module, alone, norms)
        return norms

    def rest(self) -> dict[str, Tensor]:
        """Return the gradient of what the loss holds beyond the likelihood, by parameter; empty if that is nothing."""
        if not self.form.has_rest:
            return {}
        return rest_gradient(
            self.snapshot.module, self.snapshot.predictor(self.snapshot.module, self.snapshot.first_chunk())
        )


@dataclass
class AloneGradients:
    """Gradients of the losses of samples, each alone in its batch: one backward pass a sample."""

    snapshot: ModelSnapshot

    def __call__(self, batch: Any, sums: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """See :data:`Gradients`."""
        names, rows = list(trainable(self.snapshot.module)), []
        for number in range(num_samples(batch)):
            found = loss_and_gradients(self.snapshot, take(batch, slice(number, number + 1)))[1]
            rows.append(torch.stack([as_real(one).double().square().sum() for one in found]))
            add_gradients(sums, names, found)
        return dict(zip(names, torch.stack(rows, 1), strict=True))


class _Fold:
    """Brings gradients to at most :data:`WIDTH` numbers, with the same random signs for all."""

    def __init__(self, snapshot: ModelSnapshot, seed: int) -> None:
        self.parameters = list(trainable(snapshot.module).items())
        self.is_folded = sum(sizes(p for _, p in self.parameters)) > WIDTH
        self._seed = seed

    def __call__(self, gradients: Mapping[str, Tensor]) -> Tensor:
        vectors = [flat(gradients[name]) for name, _ in self.parameters]
        if not self.is_folded:
            return torch.cat(vectors)
        row = torch.zeros(WIDTH, dtype=vectors[0].dtype, device=vectors[0].device)
        generator = torch.Generator(row.device).manual_seed(self._seed)
        for part in (part for vector in vectors for part in torch.split(vector, WIDTH)):
            signs = torch.randint(2, part.shape, generator=generator, device=part.device, dtype=torch.int8)
            row[: len(part)] += (2 * signs - 1) * part
        return row


def _product(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the inner product of two gradients by parameter."""
    pairs = [(as_real(value), as_real(other[name])) for name, value in one.items() if name in other]
    return sum((a.double() * b.double()).sum().item() for a, b in pairs)
