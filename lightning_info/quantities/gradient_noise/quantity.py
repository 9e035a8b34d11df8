"""``GradientNoiseScale``: tr Σ and |G|² of the training loss, the noise scale and the temperature of SGD."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

from matplotlib.figure import Figure
from typing_extensions import override

from lightning_info import validation
from lightning_info.figures.layer_heat_map import layer_heat_map
from lightning_info.functional.gradient_noise import measured_temperature
from lightning_info.gradients import EngineName, NotCovered, Plan, choose_engine
from lightning_info.gradients.batches import num_samples, spread, take
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.real import sizes
from lightning_info.quantities.fisher_trace.loss_gradients import NoTerms, Terms, terms_of
from lightning_info.quantities.gradient_noise.descriptions import DESCRIPTIONS
from lightning_info.quantities.gradient_noise.loss_gradient import LossForm, OtherLoss, loss_form
from lightning_info.quantities.gradient_noise.pooled import (
    GROUPS,
    AloneGradients,
    LikelihoodGradients,
    PooledNoise,
    pooled_noise,
)
from lightning_info.quantities.quantity import Point, Quantity, Record
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.replica.alone import Misattributed
from lightning_info.replica.label_dependence import label_dependence
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.timing import training_pass, trial
from lightning_info.reporting.layout import Chart

LAYERS, TRACES = "gradient_noise_layers/", "gradient_noise_trace_layers/"
"""First parts of the tags of modules."""
SCALE, LOW, HIGH = (f"gradient_noise/scale{end}" for end in ("", "_low", "_high"))
TEMPERATURE = "gradient_noise/temperature"


class GradientNoiseScale(Quantity):
    """See :class:`~.GradientNoiseCallback` for the arguments.

    Attributes:
        plan: The engine in use; None before :meth:`prepare`, and where every sample goes backward alone.
    """

    name = "gradient_noise"
    needs_likelihood = False
    unit = "samples"
    descriptions = DESCRIPTIONS

    def __init__(self, per_layer: bool, engine: EngineName) -> None:
        self.per_layer, self.engine = per_layer, engine
        self.reset()

    @override
    def check(self, owner: str) -> None:
        validation.one_of(owner, "engine", self.engine, get_args(EngineName))

    @override
    def reset(self) -> None:
        self.plan: Plan | None = None
        self._form, self._no_temperature = LossForm(), ""
        self._terms: Terms | None = None
        self._batch_size = 0
        self._set_tags(with_temperature=True)

    def _set_tags(self, with_temperature: bool) -> None:
        parts = ["scale", "scale_low", "scale_high", "trace", "trace_stderr", "squared_norm", "squared_norm_stderr"]
        parts += ["temperature", "temperature_stderr"] if with_temperature else []
        self.tags = tuple(f"gradient_noise/{part}" for part in parts)
        self.table = ((LOW, None), (TEMPERATURE, f"{TEMPERATURE}_stderr"))  # the scale itself may be infinite

    # ---- before the first step

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        self._terms = None
        rows = {
            "measures": "noise of the gradients of the training loss: tr Σ, |G|² and the noise scale tr Σ/|G|²",
            "interval": "95 %; where |G|² is not resolved, scale_high and perhaps scale are infinite",
        }
        if reason := self._objection(snapshot):
            try:
                self._terms = terms_of(snapshot)
            except NoTerms as error:
                raise NoPrediction(f"{reason}; and {error}") from error
            rows["engine"] = f"one backward pass a sample, as {reason}"
        else:
            self.plan = self._choose(snapshot)
            skipped = "".join(f"; not {name!r}: {why}" for name, why in self.plan.reasons.items())
            rows["engine"] = f"{self.plan.engine!r}, exact for all trainable weights; {self.plan.describe()}{skipped}"
        _, self._no_temperature = self._temperature(point.setup)
        self._set_tags(not self._no_temperature)
        if self._no_temperature:
            rows["temperature"] = f"none: {self._no_temperature}"
        return rows

    def _objection(self, snapshot: ModelSnapshot) -> str:
        """Return why the loss must be taken as it is, one sample at a time; empty if the likelihood tells it."""
        prediction = snapshot.predictor(snapshot.module, snapshot.to_device(snapshot.groups[0]))
        if prediction.unknown:
            return prediction.unknown
        if reason := label_dependence(snapshot):
            if not snapshot.predictor.runs_step:
                raise NoPrediction(reason)
            return reason
        try:
            self._form = loss_form(snapshot)
        except OtherLoss as error:
            return str(error)
        return ""

    def _choose(self, snapshot: ModelSnapshot, samples: Any = None) -> Plan:
        few = samples
        if few is None:
            few = snapshot.to_device(spread(snapshot.groups[0], min(CHECK_SAMPLES, snapshot.chunk)))
        return choose_engine(snapshot.module, snapshot.outputs, few, self.engine)

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        batch = snapshot.first_chunk()
        if self.plan is None:
            return training_pass(snapshot, take(batch, slice(0, 1))) * (samples + CHECK_SAMPLES)
        few = take(batch, slice(0, max(1, samples // GROUPS)))
        gradients = LikelihoodGradients(snapshot, self.plan, self._form)
        gradients.is_checked = True
        return trial(lambda: gradients(few, {}), snapshot.device) * samples / num_samples(few)

    # ---- a point

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        found = self._alone(snapshot, point) if self._terms else self._pooled(snapshot, point)
        noise, setup = found.noise, point.setup
        self._batch_size = setup.batch_size if setup.group else 0
        values = {
            SCALE: noise.scale,
            LOW: noise.low,
            HIGH: noise.high,
            "gradient_noise/trace": noise.trace,
            "gradient_noise/trace_stderr": noise.trace_stderr,
            "gradient_noise/squared_norm": noise.squared_norm,
            "gradient_noise/squared_norm_stderr": noise.squared_norm_stderr,
        }
        if TEMPERATURE in self.tags:
            unit, reason = self._temperature(setup)
            if reason:
                point.warn(f"no gradient_noise/temperature (NaN): {reason}", "temperature")
            weights = sum(sizes(trainable(snapshot.module).values()))
            values[TEMPERATURE] = measured_temperature(unit, noise.trace, weights)
            values[f"{TEMPERATURE}_stderr"] = measured_temperature(unit, noise.trace_stderr, weights)
        return values | self._by_module(found)

    def _by_module(self, found: PooledNoise) -> dict[str, float]:
        traces: dict[str, float] = {}
        squares: dict[str, float] = {}
        for parameter, trace in found.traces.items():
            module = parameter.rpartition(".")[0] or "root"
            traces[module] = traces.get(module, 0.0) + trace
            squares[module] = squares.get(module, 0.0) + found.squared_norms[parameter]
        scales = {m: trace / squares[m] if squares[m] > 0 else math.nan for m, trace in traces.items()}
        return {f"{LAYERS}{m}": scale for m, scale in scales.items()} | {f"{TRACES}{m}": t for m, t in traces.items()}

    def _alone(self, snapshot: ModelSnapshot, point: Point) -> PooledNoise:
        try:
            terms_of(snapshot, gradients=False)
        except NoTerms as error:
            raise Unavailable(str(error)) from error
        return pooled_noise(snapshot, AloneGradients(snapshot), {}, point.generator)

    def _pooled(self, snapshot: ModelSnapshot, point: Point) -> PooledNoise:
        if self.plan is None or self.plan.checked < min(2, snapshot.chunk):
            try:
                self.plan = self._choose(snapshot)
            except NotCovered as error:
                raise Unavailable(f"no engine gives exact per-sample gradients here: {error}") from error
        try:
            return self._with(self.plan, snapshot, point)
        except NotCovered as error:  # the module changed its structure, or reads these samples in another way
            try:
                self.plan = self._choose(snapshot, error.samples if isinstance(error, Misattributed) else None)
                return self._with(self.plan, snapshot, point)
            except NotCovered as again:
                raise Unavailable(f"no engine gives exact per-sample gradients here: {again}") from again

    def _with(self, plan: Plan, snapshot: ModelSnapshot, point: Point) -> PooledNoise:
        gradients = LikelihoodGradients(snapshot, plan, self._form)
        return pooled_noise(snapshot, gradients, gradients.rest(), point.generator)

    def _temperature(self, setup: TrainingSetup) -> tuple[float, str]:
        """Return the temperature for noise of unit variance, and why there is none."""
        reason = setup.no_temperature
        if not reason and not self._form.is_known:
            reason = "an adapter does not tell the scale of the trained loss"
        is_sum = (self._terms or self._form.reduction) == "sum"
        return math.nan if reason else setup.temperature * (setup.loss_samples if is_sum else 1), reason

    # ---- what is shown

    @override
    def is_logged(self, tag: str) -> bool:
        return self.per_layer or not tag.startswith((LAYERS, TRACES))

    @override
    def charts(self) -> Mapping[str, Chart]:
        return {"Gradient noise scale [samples] with its 95 % interval": ("Multiline", [SCALE, LOW, HIGH])}

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        curves = {tag.removeprefix(LAYERS): curve for tag, curve in record.curves.items() if tag.startswith(LAYERS)}
        if not curves:
            return {}
        return {"gradient_noise/layers": partial(layer_heat_map, curves, "Gradient noise scale by module", self.unit)}

    @override
    def conclusions(self, record: Record) -> Mapping[str, Any]:
        last = [dict(record.curves.get(tag, ())).get(record.last_step, math.nan) for tag in (SCALE, LOW, HIGH)]
        batch = "cannot be told"
        if self._batch_size and self._batch_size < last[1]:
            batch = "below the noise scale"
        elif self._batch_size and self._batch_size > last[2]:
            batch = "above the noise scale"
        return {
            "scale": last[0],
            "scale_low": last[1],
            "scale_high": last[2],
            "batch_size": self._batch_size or None,
            "batch": batch,
            "no_temperature": self._no_temperature,
        }

    @override
    def closing_text(self, record: Record) -> str:
        found = self.conclusions(record)
        if math.isnan(found["scale_low"]):
            return ""
        if found["scale_low"] == 0:
            told = "not resolved, as a few samples carry the noise"
        elif math.isinf(found["scale_high"]):
            told = f"above {found['scale_low']:.3g} samples (95 %)"
        else:
            told = f"{found['scale']:.3g} samples (95 %: {found['scale_low']:.3g} to {found['scale_high']:.3g})"
        text = f"Gradient noise scale at the end: {told}."
        if not found["batch_size"]:
            return text
        reading = {
            "below the noise scale": "below it: a larger batch would make steps more useful, almost in proportion",
            "above the noise scale": "above it: a larger batch would hardly make steps more useful",
            "cannot be told": "not clearly on one side of it",
        }[found["batch"]]
        text += f" The batch of {found['batch_size']} is {reading}."
        return f"{text} No temperature: {found['no_temperature']}." if found["no_temperature"] else text
