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
from lightning_info.gradients.norms import squared_norm
from lightning_info.gradients.real import as_real, flat, sizes
from lightning_info.quantities.fisher_trace.loss_gradients import loss_and_gradients
from lightning_info.quantities.gradient_noise.loss_gradient import LossForm, rest_gradient, sample_gradients
from lightning_info.replica.alone import Alone, NotItsOwn
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

GROUPS = 8
"""Number of groups whose mean gradients tell the errors."""
WIDTH = 1 << 17
"""Numbers that are kept of a group's gradient. A longer one is folded to that length with random signs, which leaves
inner products as they are in expectation, with an error of 0.3 % of the norms; only the errors are computed from it."""

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
    kept = _GroupSums(snapshot, generator)
    columns: list[Mapping[str, Tensor]] = []
    along_rest = torch.zeros(len(parts), dtype=torch.float64)
    for number, part in enumerate(parts):
        sums: dict[str, Tensor] = {}
        columns.extend(gradients(batch, sums) for batch, _ in snapshot.drawn(part))
        kept.add(sums)
        along_rest[number] = _product(sums, rest) / len(part)
    norms = {name: torch.cat([column[name] for column in columns]).cpu() for name in columns[0]}
    values = torch.stack(list(norms.values())).sum(0)
    if not values.isfinite().all():
        raise Unavailable(f"the gradients of {int((~values.isfinite()).sum())} of {size} samples are not finite")
    squares = kept.squared_means(size, {})
    traces = {name: size / (size - 1) * max(0.0, norm.mean().item() - squares[name]) for name, norm in norms.items()}
    if rest:  # g_i + p, with the products of group means s_a + p
        squares = kept.squared_means(size, rest)
    lengths = torch.tensor([len(part) for part in parts])
    groups, own = torch.arange(len(parts)).repeat_interleave(lengths), _product(rest, rest)
    products = kept.products() / (lengths[:, None] * lengths) + along_rest[:, None] + along_rest + own
    noise = gradient_noise_scale(values + 2 * along_rest[groups] + own, groups, products, sum(squares.values()))
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


class _GroupSums:
    """Keeps the summed gradients of all samples, and those of groups, folded with the same signs if they are long."""

    def __init__(self, snapshot: ModelSnapshot, generator: Generator) -> None:
        self._parameters = trainable(snapshot.module)
        self._total: dict[str, Tensor] = {}
        self._rows: list[Tensor] = []
        size = sum(sizes(self._parameters.values()))
        self._is_folded = size > WIDTH
        if self._is_folded:  # each block reads the signs from a place of its own
            self._signs = (2.0 * torch.randint(2, (2 * WIDTH,), generator=generator) - 1).to(snapshot.device)
            blocks = 1 + size // WIDTH + len(self._parameters)
            self._places = torch.randperm(WIDTH, generator=generator)[:blocks].tolist()

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Take the sum of a group's gradients by parameter; a missing one is 0."""
        found = {n: flat(sums[n] if n in sums else torch.zeros_like(p)) for n, p in self._parameters.items()}
        if not self._total:
            self._total = {name: torch.zeros_like(vector) for name, vector in found.items()}
        row, places = next(iter(found.values())).new_zeros(WIDTH), iter(self._places if self._is_folded else ())
        for name, vector in found.items():
            for part, total in zip(torch.split(vector, WIDTH), torch.split(self._total[name], WIDTH), strict=True):
                total += part
                if self._is_folded:
                    place = next(places)
                    row[: len(part)] += part * self._signs[place : place + len(part)].to(part)
        self._rows.append(row if self._is_folded else torch.cat(list(found.values())))

    def squared_means(self, samples: int, rest: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the squared norm of the mean gradient by parameter, with that of the rest added to it."""
        moved = {n: v + samples * flat(rest[n]) if n in rest else v for n, v in self._total.items()}
        return {name: squared_norm(vector[None]).item() / samples**2 for name, vector in moved.items()}

    def products(self) -> Tensor:
        """Return the inner products of the groups' sums, ``(G, G)`` float64."""
        rows = torch.stack(self._rows)
        return (rows @ rows.T).double().cpu()


def _product(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the inner product of two gradients by parameter."""
    pairs = [(as_real(value), as_real(other[name])) for name, value in one.items() if name in other]
    return sum((a.double() * b.double()).sum().item() for a, b in pairs)
