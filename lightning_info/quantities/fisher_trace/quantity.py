"""``FisherTrace``: tr F over training, by an estimator, with its standard error and its share by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from lightning_info import validation
from lightning_info.figures.layer_heat_map import layer_heat_map
from lightning_info.functional.likelihoods import likelihood_named
from lightning_info.gradients import EngineName, NotCovered, Plan, choose_engine
from lightning_info.gradients.batches import num_samples, spread, take
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.quantities.fisher_trace.descriptions import DESCRIPTIONS
from lightning_info.quantities.fisher_trace.hessian import check_hessian, hessian_trace
from lightning_info.quantities.fisher_trace.loss_gradients import TAG, NoTerms, loss_gradient_trace, terms_of
from lightning_info.quantities.fisher_trace.sample_table import sample_table
from lightning_info.quantities.fisher_trace.sampling import (
    COTANGENT,
    GROUPS,
    Estimator,
    PoolTrace,
    SamplingScores,
    pool_trace,
    scores_of,
)
from lightning_info.quantities.fisher_trace.scale_invariance import check_rao_norm, rao_norm
from lightning_info.quantities.quantity import NotMeasurable, Point, Quantity, Record
from lightning_info.replica.alone import Misattributed
from lightning_info.replica.label_dependence import label_dependence
from lightning_info.replica.predicted import NoPrediction, Prediction
from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot, Unavailable
from lightning_info.replica.timing import training_pass, trial
from lightning_info.replica.user_warning import warn
from lightning_info.reporting.layout import Chart

RAO: Literal["rao_norm"] = "rao_norm"
SCALED = "fisher/scale_invariant_trace"
Also = Literal["empirical", "exact", "hessian", "rao_norm"]
Engine = EngineName | Literal["cotangent"]
LAYERS = "fisher_layers/"
"""First part of the tags of modules."""
FEWEST_DRAWS = 8
"""That they are brought down to where a point has to be cheaper."""


class FisherTrace(Quantity):
    """See :class:`~.FisherTraceCallback` for the arguments.

    Attributes:
        plan: The engine in use; None before :meth:`prepare`.
        of_loss: Whether no likelihood is known, so the loss's own gradients are measured, under their own tag.
    """

    name = "fisher"
    needs_likelihood = False
    unit = "nats/weight²"
    descriptions = DESCRIPTIONS
    table = (
        ("fisher/trace", "fisher/trace_stderr"),
        ("fisher/empirical_trace", "fisher/empirical_trace_stderr"),
        ("fisher/exact_trace", "fisher/exact_trace_stderr"),
        ("fisher/hessian_trace", "fisher/hessian_trace_stderr"),
        (TAG, f"{TAG}_stderr"),
    )

    def __init__(
        self, estimator: Estimator, draws: int | None, also: Sequence[Also] | Also, per_layer: bool, engine: Engine
    ) -> None:
        self.estimator, self.draws, self.per_layer, self.engine = estimator, draws, per_layer, engine
        self.also: tuple[Also, ...] = (also,) if isinstance(also, str) else tuple(also)
        self.reset()

    @override
    def check(self, owner: str) -> None:
        validation.one_of(owner, "estimator", self.estimator, get_args(Estimator))
        validation.one_of(owner, "engine", self.engine, (*get_args(EngineName), COTANGENT))
        if self.draws is not None:
            validation.positive_integer(owner, "draws", self.draws, 64)
        for extra in self.also:
            validation.one_of(owner, "also", extra, get_args(Also))
        if self.engine == COTANGENT and "exact" in (self.estimator, *self.also):
            raise ValueError(f"{owner}: the engine 'cotangent' is never exact; choose another engine or estimator")
        if self.estimator == "sampled":
            warn(
                f"{owner}: with estimator='sampled' a confident network's trace is carried by labels that are almost "
                f"never drawn; its stderr then covers the truth in one case of ten. The default 'importance' does not"
            )

    @override
    def reset(self) -> None:
        self.plan: Plan | None = None
        self.of_loss = False
        self._draws = self.draws
        scaled = "scale_invariant_trace", "scale_invariant_trace_stderr"
        parts = "trace", "trace_stderr", "trace_low", "trace_high", "coverage", *scaled
        traces = [name for name in self.also if name != RAO]
        further = (f"{name}_trace{tail}" for name in traces for tail in ("", "_stderr"))
        rest = [RAO] if RAO in self.also else []
        self.tags = tuple(f"fisher/{name}" for name in (*parts, *further, *rest))

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        prediction = snapshot.predictor(snapshot.module, snapshot.to_device(snapshot.groups[0]))
        if prediction.unknown:
            if not prediction.is_hand_written:
                raise NoPrediction(prediction.unknown)
            return self._prepare_loss(snapshot, prediction.unknown, point)
        if reason := label_dependence(snapshot):
            if not snapshot.predictor.runs_step:
                raise NoPrediction(reason)
            return self._prepare_loss(snapshot, reason, point)
        if "exact" in (self.estimator, *self.also) and not _is_exact(prediction):
            raise NotMeasurable(
                f"the Fisher information of {prediction.likelihood} has no closed form here, so nothing is exact; "
                f"leave out estimator='exact' and also='exact'"
            )
        if "empirical" in (self.estimator, *self.also):
            prediction.loss_gradient()  # needs targets
        if "hessian" in self.also:
            check_hessian(snapshot)
        if RAO in self.also:
            check_rao_norm(snapshot)
        self.plan = self._choose(snapshot)
        draws = "" if self._draws is None or self.estimator == "exact" else f", {self._draws} draws"
        further = f"; also {', '.join(self.also)}" if self.also else ""
        if self.plan.engine == COTANGENT:
            engine = f"{COTANGENT!r}: no per-sample gradients (coverage 0), unbiased with a larger error"
        else:
            checked = (
                f"{self.plan.checked} samples agree with plain autograd"
                if self.plan.checked
                else "not yet compared with autograd"
            )
            skipped = "".join(f"; not {name!r}: {reason}" for name, reason in self.plan.reasons.items())
            engine = f"{self.plan.engine!r}, exact for all trainable weights ({checked}); {self.plan.describe()}"
            engine += skipped
        return {
            "measures": f"trace of the Fisher information ({self.estimator} estimator{draws}{further})",
            "engine": engine,
        }

    def _prepare_loss(self, snapshot: ModelSnapshot, unknown: str, point: Point) -> Mapping[str, str]:
        try:
            terms = terms_of(snapshot)
        except NoTerms as error:
            raise NoPrediction(f"{unknown}; and {error}") from error
        self.of_loss, self.tags = True, (TAG, f"{TAG}_stderr")
        point.warn(
            f"{unknown}. There is no fisher/trace of this run, but {TAG}, the mean squared gradient of the losses of "
            f"single samples, at the labels of the data. An adapter that says what the module predicts, as in the "
            f"documentation, gives fisher/trace: FisherTraceCallback(adapter=...)",
            "no likelihood",
        )
        return {
            "measures": f"{TAG}, the mean of ‖∇ loss‖² over samples, each alone; not the Fisher information, as no "
            f"likelihood is known",
            "engine": f"one backward pass a sample; the loss and its gradient are the {terms} of those of its samples",
        }

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        if self.of_loss:
            drawn = samples if self._draws is None else min(self._draws, samples)
            return training_pass(snapshot, take(snapshot.first_chunk(), slice(0, 1))) * (drawn + CHECK_SAMPLES)
        assert self.plan is not None
        plan, module, batch = self.plan, snapshot.module, snapshot.first_chunk()
        size, outputs = num_samples(batch), snapshot.outputs(module, batch).detach()
        many = take(batch, torch.arange(min(samples, max(size, snapshot.at_once))) % size)
        scores = lambda: scores_of(snapshot.predictor(module, many), self.estimator)  # noqa: E731
        forward = trial(scores, snapshot.device) / num_samples(many)
        drawn = samples if self._draws is None else min(self._draws, samples)
        few = take(batch, slice(0, drawn))
        cotangent = torch.ones_like(outputs[:drawn])

        def norms(columns: int) -> float:
            if plan.engine == COTANGENT:
                group = max(1, drawn // GROUPS)
                return training_pass(snapshot, take(batch, slice(0, group))) / group
            run = lambda: plan.squared_norms(module, snapshot.outputs, few, [cotangent] * columns)  # noqa: E731
            return trial(run, snapshot.device) / len(cotangent)

        first, cost = norms(1), 0.0
        for estimator in (self.estimator, *self.also):
            cost += (samples if plan.makes_one_pass else samples + drawn) * forward + drawn * first
            if estimator == RAO:  # three passes over all
                cost += 3 * samples * (forward + first)
            if estimator == "hessian":  # a backward pass through a backward pass
                cost += 2 * drawn * first
            if estimator == "exact":
                further = max(0.0, (norms(3) - first) / 2)
                cost += (samples - drawn) * first + samples * (outputs[0].numel() - 1) * further
        return cost

    @override
    def cheaper(self) -> str:
        if self._draws is None or self._draws <= FEWEST_DRAWS or self.estimator == "exact":
            return ""
        before, self._draws = self._draws, max(FEWEST_DRAWS, self._draws // 2)
        return f"{self._draws} draws instead of {before}"

    def _choose(self, snapshot: ModelSnapshot, samples: Any = None) -> Plan:
        few = samples
        if few is None:
            few = snapshot.to_device(spread(snapshot.groups[0], min(CHECK_SAMPLES, snapshot.chunk)))
        if self.engine == "cotangent":  # no per-sample gradients, but samples must be independent: one alone shows
            return Plan(COTANGENT, choose_engine(snapshot.module, snapshot.outputs, few, "loop").checked)
        return choose_engine(snapshot.module, snapshot.outputs, few, self.engine)

    @override
    def statistics(self) -> list[ForwardStatistic]:
        if self.of_loss:
            return []
        names = (name for name in (self.estimator, *self.also) if name != "hessian" and name != "rao_norm")
        return [SamplingScores(name) for name in names]

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        if self.of_loss:
            estimate = loss_gradient_trace(snapshot, self._draws, point.generator)
            return {TAG: estimate.trace, f"{TAG}_stderr": estimate.stderr}
        if self.plan is None or self.plan.checked < min(2, snapshot.chunk):
            try:
                self.plan = self._choose(snapshot)
            except NotCovered as error:
                raise Unavailable(f"no engine gives exact per-sample gradients here: {error}") from error
        main = self._trace(snapshot, self.estimator, point)
        values = {
            "fisher/trace": main.estimate.trace,
            "fisher/trace_stderr": main.estimate.stderr,
            "fisher/trace_low": main.estimate.low,
            "fisher/trace_high": main.estimate.high,
            "fisher/coverage": main.coverage,
            SCALED: main.scale_invariant.trace,
            f"{SCALED}_stderr": main.scale_invariant.stderr,
        }
        for name in self.also:
            if name == RAO:
                values[f"fisher/{RAO}"] = rao_norm(snapshot)
                continue
            if name == "hessian":
                estimate = hessian_trace(snapshot, self._draws, point.generator)
            else:
                estimate = self._trace(snapshot, name, point).estimate
            values[f"fisher/{name}_trace"], values[f"fisher/{name}_trace_stderr"] = estimate
        for parameter, value in main.per_parameter.items():
            tag = f"{LAYERS}{parameter.rpartition('.')[0] or 'root'}"
            values[tag] = values.get(tag, 0.0) + value
        return values

    def sample_table(self, snapshot: ModelSnapshot, point: Point) -> dict[str, Tensor]:
        """Return the columns of a table of the reference samples, see :mod:`.sample_table`; none without a plan."""
        return {} if self.plan is None else sample_table(snapshot, self.plan, self.estimator, point.generator)

    def passes_of_table(self, samples: int) -> float:
        """Return the backward passes that the table takes, as a multiple of those of a point."""
        each = samples if self._draws is None or self.estimator == "exact" else min(self._draws, samples)
        return 2 * samples / each

    def _trace(self, snapshot: ModelSnapshot, estimator: Estimator, point: Point) -> PoolTrace:
        assert self.plan is not None
        try:
            return pool_trace(snapshot, self.plan, estimator, self._draws, point.generator)
        except NotCovered as error:  # the module changed its structure, or reads these samples in another way
            try:
                self.plan = self._choose(snapshot, error.samples if isinstance(error, Misattributed) else None)
                return pool_trace(snapshot, self.plan, estimator, self._draws, point.generator)
            except NotCovered as again:
                raise Unavailable(f"no engine gives exact per-sample gradients here: {again}") from again

    @override
    def settings(self) -> Mapping[str, object]:
        return {"estimator": "loss_gradient" if self.of_loss else self.estimator}

    @override
    def is_logged(self, tag: str) -> bool:
        return self.per_layer or not tag.startswith(LAYERS)

    @override
    def charts(self) -> Mapping[str, Chart]:
        if self.of_loss:
            return {}
        band = ("fisher/trace", "fisher/trace_low", "fisher/trace_high")
        return {
            "Fisher trace (tr F) with its 95 % band": ("Margin", band),
            "tr F whatever the scale of the weights": ("Multiline", [SCALED]),
        }

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        curves = {tag.removeprefix(LAYERS): curve for tag, curve in record.curves.items() if tag.startswith(LAYERS)}
        if not curves:
            return {}
        return {"fisher/layers": partial(layer_heat_map, curves, "Fisher trace by module (tr F)", self.unit)}


def _is_exact(prediction: Prediction) -> bool:
    return likelihood_named(prediction.likelihood, "FisherTrace").is_exact
