"""How a configuration is judged: without our callbacks, with them, and with a saboteur in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Trace, differences, first_difference, run
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import public_callbacks

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)


def callbacks_under_test(**options: Any) -> list[Any]:
    """Every callback of the package, all at once; no clock decides how many points there are."""
    common = {"num_samples": 12, "on_error": "raise", "summary": False, **options}
    often = {**common, "every_n_train_steps": 1}
    configured = [
        FisherTraceCallback("importance", draws=5, prefix="drawn", **often),
        FisherTraceCallback("exact", also=("empirical",), batch_norm="reference", prefix="reference", **often),
        FisherTraceCallback(prefix="default", max_overhead=1.0, log_hyperparams=True, **common),
        InfoPlaneCallback(estimator=["binning", "mixture", "gaussian"], bin_range=["global", "fixed"], **often),
        WeightInfoCallback(lambda_=0.1, draws=4, **often),
        EffectiveInfoCallback(beta=0.1, draws=2, **often),
        StabilityCallback(0, 1, **often),
    ]
    rest = [kind(**often) for kind in public_callbacks() if not any(type(one) is kind for one in configured)]
    return rest + configured


@dataclass
class Case:
    """A module, callbacks beside ours, arguments of ours, and options of ``harness.run`` and the Trainer."""

    module: Callable[[], Any]
    callbacks: Callable[[], list[Callback]] = list
    measure: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Verdict:
    """What became of a case.

    Attributes:
        disturbed: Name of what differs with our callbacks -> the first recording in which it does.
        points: Points of each callback at which all values are finite; without StabilityCallback where it refused, or
            said that its twin was lost.
        caught: The harness found both acts of the saboteur in the recording that follows them.
    """

    disturbed: dict[str, int]
    points: list[int]
    caught: bool

    @property
    def passed(self) -> bool:
        """Identical, really measured, and able to fail."""
        return not self.disturbed and all(self.points) and self.caught


class Saboteur(Callback):
    """Before one batch, moves one weight to the next number that there is, and draws one random number."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.batch == 0:
            torch.rand(1)
            weight = next(pl_module.parameters()).data
            first = (0,) * weight.dim()
            weight[first] = torch.nextafter(weight[first], torch.full_like(weight[first], math.inf))
            trace = next(callback.trace for callback in trainer.callbacks if hasattr(callback, "trace"))
            self.recorded = {name: len(values) for name, values in trace.items()}
        self.batch -= 1

    def is_caught(self, plain: Trace, sabotaged: Trace) -> bool:
        """Whether the weight and the generator differ in the very next recording."""
        found = {
            name.partition("/")[0]
            for name in differences(plain, sabotaged)
            if first_difference(plain, sabotaged, name) == self.recorded.get(name, 0)
        }
        return {"weight", "rng"} <= found


def judge(case: Case) -> Verdict:
    """Train a case; with other callbacks in it once with ours before them, and once after."""
    plain = run(case.module, *case.callbacks(), **case.options)
    disturbed = {}
    for before in [True, False][: 1 + bool(case.callbacks())]:
        ours, trace = _with_ours(case, before)
        disturbed |= {name: first_difference(plain, trace, name) for name in differences(plain, trace)}
    saboteur = Saboteur(len(plain["batch/tensors"]) // 2)
    sabotaged = run(case.module, saboteur, *case.callbacks(), **case.options)
    measured = [points(callback) for callback in ours if "the twin was lost" not in callback.report()]
    return Verdict(disturbed, measured, saboteur.is_caught(plain, sabotaged))


def _with_ours(case: Case, before: bool) -> tuple[list[Any], Trace]:
    ours = callbacks_under_test(**case.measure)
    while True:
        others = case.callbacks()
        try:
            return ours, run(case.module, *(ours + others if before else others + ours), **case.options)
        except MisconfigurationException as error:
            if len(ours) < len(callbacks_under_test()) or not str(error).startswith("StabilityCallback: "):
                raise
            ours = callbacks_under_test(**case.measure)[:-1]


def points(callback: Any) -> int:
    """Steps at which all that was measured is finite; but for what optimisers without a learning rate do not have, and
    ratios to a mean gradient that is not resolved."""
    finite: dict[int, bool] = {}
    apart = ("/temperature", "/free_energy", "gradient_noise/scale", "gradient_noise/scale_high")
    for tag, curve in callback.history.items():
        for step, value in () if tag.endswith(apart) or tag.startswith("gradient_noise_layers/") else curve:
            finite[step] = finite.get(step, True) and math.isfinite(value)
    return sum(finite.values())
