"""``FisherTraceCallback``: the trace of the Fisher information, live, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_info import validation as arguments
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.clock import seconds
from lightning_info.callbacks.preflight import training_pass
from lightning_info.gradients import EngineName, NotCovered, Plan, choose_engine
from lightning_info.gradients.batches import num_samples, spread, take
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.quantities.fisher_trace.hessian import check_hessian, hessian_trace
from lightning_info.quantities.fisher_trace.sampling import (
    COTANGENT,
    GROUPS,
    Estimator,
    PoolTrace,
    SamplingScores,
    pool_trace,
    scores_of,
)
from lightning_info.replica.alone import Misattributed
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot, Unavailable
from lightning_info.reporting.figures import layer_heat_map
from lightning_info.reporting.layout import Chart

Also = Literal["empirical", "exact", "hessian"]
Engine = EngineName | Literal["cotangent"]


class FisherTraceCallback(InfoCallback):
    r"""Logs the trace of the Fisher information of the weights, ``tr F``, and where in the network it sits.

    .. math:: \mathrm{tr}\, F = \mathbb{E}_x\, \mathbb{E}_{y \sim p_w(y|x)} \|\nabla_w \log p_w(y|x)\|^2

    It is the curvature of the loss as the model itself sees it (nats per unit of squared weight change): how
    sensitively its predictions depend on the weights. Labels come from the **model**, not from the data, so it does
    not vanish as the training loss does. Source: Achille, Paolini & Soatto, sections 1.2 and 4; ``docs/fisher.md``.

    Nothing in the user's code changes: outputs, targets and likelihood (``cross_entropy``, ``nll_loss``,
    ``binary_cross_entropy`` with or without logits, ``mse_loss``, ``gaussian_nll_loss``) are found in the module's
    ``training_step``. Everything is measured on a replica in eval mode (dropout off, BatchNorm as ``batch_norm``
    says), so that training is bit-identical to training without the callback.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``fisher/trace``: the trace over the reference samples, a mean per sample.
    - ``fisher/trace_stderr``, ``fisher/trace_low``, ``fisher/trace_high``: its standard error and 95 % band. They
      speak of the reference samples (draws and labels), not of samples beyond them.
    - ``fisher/coverage``: share of the trainable elements whose per-sample gradient norm was computed exactly.
    - ``fisher/overhead``: share of the run's time that this callback took so far.
    - ``fisher/empirical_trace``, ``fisher/exact_trace``, ``fisher/hessian_trace`` if asked with ``also``, each with
      ``_stderr``. The last is the trace of the Hessian of the training loss (at the labels of the data), which F stands
      in for; it may be negative.
    - ``fisher_layers/<module>``: the share of each module's own parameters (``root`` for the LightningModule's);
      always in ``history``, in the loggers with ``per_layer=True``.
    - figure ``fisher/layers``: heat map of these over training.

    Args:
        estimator: How the expectation over labels is taken. ``"importance"`` (default), ``"rademacher"`` and
            ``"sampled"`` are unbiased from one backward pass per draw; ``"sampled"`` is the textbook one, whose error
            explodes (and whose stderr is not to be trusted) once the network is confident. ``"exact"`` sums over all
            outputs for every reference sample. ``"empirical"`` takes the labels of the data: not the Fisher
            information, and it vanishes with the training loss.
        draws: Backward samples out of the reference samples, drawn in proportion to the curvature of the outputs.
            None, or at least ``num_samples``: every sample once. ``"exact"`` takes all of them in any case.
        also: Further traces beside the main one.
        per_layer: Send ``fisher_layers/<module>`` to the loggers too.
        engine: Who computes per-sample gradients: ``"backpack"`` (BackPACK rules fed by taps), ``"backpack_vmap"`` (the
            same in a forward pass under ``torch.vmap``), ``"func"`` (``torch.func``), ``"loop"`` (one backward per
            sample), or ``"auto"``, the first of them that covers every parameter. Each is exact, and is compared with
            plain autograd before the first step. ``"cotangent"``, never taken by itself, needs no per-sample
            gradients: one plain backward pass for every sixteenth of the draws, unbiased, with a larger error (in
            ``fisher/trace_stderr``) and ``fisher/coverage`` 0.
        every_n_epochs: Measure at s = 0 and after epochs n, 2n, ... (before the first step of the next epoch, so
            that ``EarlyStopping`` sees it one epoch later).
        every_n_train_steps: Measure at optimiser steps 0, n, 2n, ... Without an interval: 0, 1, 2, 4, 8, ..., and the
            end of every epoch, as far as ``max_overhead`` allows.
        num_samples: Reference samples: the first that pass in training, kept on the CPU; with several processes an
            equal number from each, which every process then measures.
        reference: Reference samples to use instead, the first ``num_samples`` of them: a Dataset (collated as a
            DataLoader does by default), or tensors such as ``(x, y)``; they must look like the batches that
            ``training_step`` gets.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)`` with ``"categorical"``
            (logits), ``"bernoulli"`` (logits) or ``"gaussian"`` (means), where the ``training_step`` hides them.
        seed: Of the draws; training's random numbers are never touched.
        prefix: Put in front of every tag, ``prefix/fisher/trace``.
        on_error: A measurement that fails becomes one warning and NaN (``"warn"``), or ends the run (``"raise"``).
        max_overhead: Largest share of the run's time; by default 0.05 without an interval and no limit with one.
        batch_norm: BatchNorm layers use their ``"running"`` statistics, as ``module.eval()`` does, or those of the
            ``"reference"`` samples at the measured weights. Running ones lag behind the weights and are arbitrary
            at initialisation: the first some 100 steps of a curve then show their warm-up more than the weights.
        summary: Print start, peak and end of the trace at the end of fit.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: sharded strategy, no likelihood found, adapter that returns
            something else, module without exact per-sample gradients.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import FisherTraceCallback

        trainer = Trainer(callbacks=[FisherTraceCallback()])
    """

    family = "fisher"
    table = (
        ("fisher/trace", "fisher/trace_stderr"),
        ("fisher/empirical_trace", "fisher/empirical_trace_stderr"),
        ("fisher/exact_trace", "fisher/exact_trace_stderr"),
        ("fisher/hessian_trace", "fisher/hessian_trace_stderr"),
    )

    def __init__(
        self,
        estimator: Estimator = "importance",
        draws: int | None = 64,
        also: Sequence[Also] = (),
        per_layer: bool = False,
        engine: Engine = "auto",
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        num_samples: int = 256,
        # LightningCLI cannot build a subclass of Dataset[Any]
        reference: Dataset | Sequence[Tensor] | None = None,  # type: ignore[type-arg]
        adapter: Adapter | None = None,
        seed: int = 0,
        prefix: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        max_overhead: float | None = None,
        batch_norm: BatchNormStatistics = "running",
        summary: bool = True,
    ) -> None:
        super().__init__(
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            num_samples=num_samples,
            reference=reference,
            adapter=adapter,
            seed=seed,
            prefix=prefix,
            on_error=on_error,
            max_overhead=max_overhead,
            batch_norm=batch_norm,
            summary=summary,
        )
        owner = type(self).__name__
        arguments.one_of(owner, "estimator", estimator, get_args(Estimator))
        arguments.one_of(owner, "engine", engine, (*get_args(EngineName), COTANGENT))
        if draws is not None:
            arguments.positive_integer(owner, "draws", draws, 64)
        extras: list[Any] = [also] if isinstance(also, str) else list(also)
        for extra in extras:
            arguments.one_of(owner, "also", extra, get_args(Also))
        if engine == COTANGENT and "exact" in (estimator, *extras):
            raise ValueError(f"{owner}: the engine 'cotangent' is never exact; choose another engine or estimator")
        self.estimator, self.draws, self.per_layer, self.engine = estimator, draws, per_layer, engine
        self.also: tuple[Also, ...] = tuple(extras)
        parts = ("trace", "trace_stderr", "trace_low", "trace_high", "coverage")
        further = (f"{name}_trace{tail}" for name in self.also for tail in ("", "_stderr"))
        self.tags = tuple(f"fisher/{name}" for name in (*parts, *further))
        self.plan: Plan | None = None
        """The engine in use, and why not the ones before it; known from the first batch on."""
        if estimator == "sampled":
            rank_zero_warn(
                f"{owner}: with estimator='sampled' a confident network's trace is carried by labels that are almost "
                f"never drawn; its stderr then covers the truth in one case of ten. The default 'importance' does not"
            )

    def _prepare(self, snapshot: ModelSnapshot) -> Mapping[str, str]:
        if "empirical" in (self.estimator, *self.also):
            snapshot.predictor(snapshot.module, snapshot.to_device(snapshot.groups[0])).loss_gradient()  # needs targets
        if "hessian" in self.also:
            check_hessian(snapshot)
        self.plan = self._choose(snapshot)
        draws = "" if self.draws is None or self.estimator == "exact" else f", {self.draws} draws"
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
            "measures": f"tr F, the trace of the Fisher information ({self.estimator} estimator{draws}{further})",
            "engine": engine,
        }

    def _cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        assert self.plan is not None
        plan, module, batch = self.plan, snapshot.module, snapshot.first_chunk()
        size, outputs = num_samples(batch), snapshot.outputs(module, batch).detach()
        scores = lambda: scores_of(snapshot.predictor(module, batch), self.estimator)  # noqa: E731
        forward = seconds(scores, snapshot.device) / size
        drawn = samples if self.draws is None else min(self.draws, samples)
        few = take(batch, slice(0, drawn))
        cotangent = torch.ones_like(outputs[:drawn])

        def norms(columns: int) -> float:
            if plan.engine == COTANGENT:
                group = max(1, drawn // GROUPS)
                return training_pass(snapshot, take(batch, slice(0, group))) / group
            run = lambda: plan.squared_norms(module, snapshot.outputs, few, [cotangent] * columns)  # noqa: E731
            return seconds(run, snapshot.device) / len(cotangent)

        first, cost = norms(1), 0.0
        for estimator in (self.estimator, *self.also):
            cost += (samples + drawn) * forward + drawn * first
            if estimator == "hessian":  # a backward pass through a backward pass
                cost += 2 * drawn * first
            if estimator == "exact":
                further = max(0.0, (norms(3) - first) / 2)
                cost += (samples - drawn) * first + samples * (outputs[0].numel() - 1) * further
        return cost

    def _choose(self, snapshot: ModelSnapshot, samples: Any = None) -> Plan:
        few = samples
        if few is None:
            few = snapshot.to_device(spread(snapshot.groups[0], min(CHECK_SAMPLES, snapshot.chunk)))
        if self.engine == "cotangent":  # no per-sample gradients, but samples must be independent: one alone tells
            return Plan(COTANGENT, choose_engine(snapshot.module, snapshot.outputs, few, "loop").checked)
        return choose_engine(snapshot.module, snapshot.outputs, few, self.engine)

    def statistics(self) -> list[ForwardStatistic]:
        return [SamplingScores(name) for name in (self.estimator, *self.also) if name != "hessian"]

    def _measure(self, snapshot: ModelSnapshot, step: int, generator: Generator) -> dict[str, float]:
        if self.plan is None or self.plan.checked < min(2, snapshot.chunk):
            try:
                self.plan = self._choose(snapshot)
            except NotCovered as error:
                raise Unavailable(f"no engine gives exact per-sample gradients here: {error}") from error
        main = self._trace(snapshot, self.estimator, generator)
        values = {
            "fisher/trace": main.estimate.trace,
            "fisher/trace_stderr": main.estimate.stderr,
            "fisher/trace_low": main.estimate.low,
            "fisher/trace_high": main.estimate.high,
            "fisher/coverage": main.coverage,
        }
        for name in self.also:
            if name == "hessian":
                estimate = hessian_trace(snapshot, self.draws, generator)
            else:
                estimate = self._trace(snapshot, name, generator).estimate
            values[f"fisher/{name}_trace"], values[f"fisher/{name}_trace_stderr"] = estimate
        for parameter, value in main.per_parameter.items():
            tag = f"fisher_layers/{parameter.rpartition('.')[0] or 'root'}"
            values[tag] = values.get(tag, 0.0) + value
        return values

    def _trace(self, snapshot: ModelSnapshot, estimator: Estimator, generator: Generator) -> PoolTrace:
        assert self.plan is not None
        try:
            return pool_trace(snapshot, self.plan, estimator, self.draws, generator)
        except NotCovered as error:  # the module changed its structure, or reads these samples in another way
            try:
                self.plan = self._choose(snapshot, error.samples if isinstance(error, Misattributed) else None)
                return pool_trace(snapshot, self.plan, estimator, self.draws, generator)
            except NotCovered as again:
                raise Unavailable(f"no engine gives exact per-sample gradients here: {again}") from again

    def _defining(self) -> Mapping[str, object]:
        return {"estimator": self.estimator}

    def _is_logged(self, tag: str) -> bool:
        return self.per_layer or not tag.startswith(self._tag("fisher_layers/"))

    def _charts(self) -> dict[str, Chart]:
        band = ("fisher/trace", "fisher/trace_low", "fisher/trace_high")
        return {"Fisher trace (tr F) with its 95 % band": ("Margin", [self._tag(tag) for tag in band])}

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        head = self._tag("fisher_layers/")
        curves = {tag.removeprefix(head): curve for tag, curve in self.history.items() if tag.startswith(head)}
        if not curves:
            return {}
        return {"fisher/layers": lambda: layer_heat_map(curves, "Fisher trace by module (tr F)", "nats / weight²")}
