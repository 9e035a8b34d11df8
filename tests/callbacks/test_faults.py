"""ErrorPolicy injected at every stage of a measurement: the run goes on as if nothing had been measured."""

from __future__ import annotations

import copy
import gc
import math
import random
import signal
import sys
import threading
import warnings
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import assert_identical, run
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, curves, loader, trainer
from torch import Tensor, nn

from lightning_info import (
    EffectiveInfoCallback,
    FisherTraceCallback,
    InfoPlaneCallback,
    StabilityCallback,
    WeightInfoCallback,
)
from lightning_info.gradients import plan
from lightning_info.gradients.batches import num_samples
from lightning_info.replica.isolation import Exited

EVERY = 2  # steps; an epoch has three

ERRORS = {
    "error": RuntimeError("broken"),
    "assertion": AssertionError("broken"),
    "exit": SystemExit("broken"),
    "memory": torch.OutOfMemoryError("CUDA out of memory"),
    "allocator": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
}


class Net(Classifier):
    def __init__(self):
        super().__init__(dropout=0.5, batch_norm=True)


def fisher(**options) -> FisherTraceCallback:
    defaults = {"num_samples": 8, "every_n_train_steps": EVERY, "batch_norm": "reference", "summary": True}
    return FisherTraceCallback(**{**defaults, **options})


# Where a stage is found, and whether its fault costs the values of the point.
STAGES = {
    "replica": ("lightning_info.callbacks.session.replicate", True),
    "capture": ("lightning_info.replica.prediction.prediction_of", True),
    "batch norm": ("lightning_info.replica.snapshot.use_statistics_of", True),
    "scores": ("lightning_info.quantities.fisher_trace.sampling.output_fisher_trace", True),
    "cotangents": ("lightning_info.quantities.fisher_trace.sampling.fisher_cotangent", True),
    "engine": ("lightning_info.gradients.plan.ENGINES", True),
    "estimator": ("lightning_info.quantities.fisher_trace.sampling.trace_estimate", True),
    "figure": ("lightning_info.quantities.fisher_trace.quantity.layer_heat_map", False),
    "figure sink": ("lightning_info.callbacks.points.report_figure", False),
    "layout": ("lightning_info.callbacks.session.write_layout", False),
    "summary": ("lightning_info.callbacks.preparing.summary_text", False),
    "cost": ("lightning_info.callbacks.forecast.training_pass", False),
    "table": ("lightning_info.callbacks.session.closing_table", False),
}


PLANE_STAGES = {
    "layers": ("lightning_info.replica.snapshot.LayerCapture", True),
    "reader": ("lightning_info.quantities.information_plane.features.targets_of", True),
    "labels": ("lightning_info.quantities.information_plane.quantity.labels_told", True),
    "information": ("lightning_info.quantities.information_plane.estimates.bin_codes", True),
    "decoders": ("lightning_info.quantities.information_plane.label_information.usable_information", True),
    "artefacts": ("lightning_info.quantities.information_plane.quantity.shuffled", True),
    "plane figure": ("lightning_info.quantities.information_plane.pictures.information_plane", False),
    "histogram": ("lightning_info.callbacks.points.report_histogram", False),
    "verdict": ("lightning_info.quantities.information_plane.quantity.judge", False),
}


WEIGHT_STAGES = {
    "curvature": ("lightning_info.quantities.weight_information.curvature.decomposed", True),
    "noise": ("lightning_info.quantities.weight_information.noisy_loss.moved", True),
    "weight information": ("lightning_info.quantities.weight_information.rate_distortion.weight_information", True),
    "rate-distortion figure": ("lightning_info.quantities.weight_information.quantity.rate_distortion", False),
}


EFFECTIVE_STAGES = {
    "diagonal": ("lightning_info.quantities.weight_information.curvature.fisher_cotangent", True),
    "activations": ("lightning_info.quantities.effective_information.quantity.noisy_activations", True),
    "effective information": ("lightning_info.quantities.effective_information.quantity.effective_information", True),
    "effective figure": ("lightning_info.quantities.effective_information.pictures.information_plane", False),
}


STABILITY_STAGES = {
    "output kl": ("lightning_info.quantities.stability.weight_change.output_kl", True),
    "fisher distance": ("lightning_info.quantities.stability.weight_change.fisher_distance", True),
    "sample alone": ("lightning_info.quantities.stability.quantity.sample_loss", True),
}


class Breaks:
    """A function that raises from the second batch on, or always if it does not belong to a measurement."""

    def __init__(self, function, error, callback, always):
        self.function, self.error, self.callback, self.always, self.raised = function, error, callback, always, 0

    def __call__(self, *args, **kwargs):
        if self.always or self.callback.last_step is not None:
            torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 (it fails half-way)
            self.raised += 1
            raise copy.copy(self.error)  # one that keeps no frames alive
        return self.function(*args, **kwargs)


def break_stage(monkeypatch, stage, error, callback) -> Breaks:
    path, costs = (STAGES | PLANE_STAGES | WEIGHT_STAGES | EFFECTIVE_STAGES | STABILITY_STAGES)[stage]
    if stage == "engine":
        broken = Breaks(plan.ENGINES["backpack"], error, callback, not costs)
        monkeypatch.setitem(plan.ENGINES, "backpack", broken)
        return broken
    module, _, name = path.rpartition(".")
    broken = Breaks(getattr(sys.modules[module], name), error, callback, not costs)
    monkeypatch.setattr(path, broken)
    return broken


@pytest.fixture(scope="module")
def plain():
    return run(Net)


@pytest.mark.parametrize(
    ("stage", "error"),
    [(stage, "error") for stage in STAGES]
    + [
        (stage, error)
        for stage in ("replica", "capture", "engine", "estimator")
        for error in ERRORS
        if error != "error"
    ],
)
def test_a_fault_is_one_warning_a_gap_and_nothing_else(monkeypatch, plain, stage, error):
    callback = fisher()
    broken = break_stage(monkeypatch, stage, ERRORS[error], callback)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disturbed = run(Net, callback)
    assert broken.raised
    assert_identical(plain, disturbed)
    _, costs = STAGES[stage]
    for curve in curves(callback).values():
        assert [step for step, _ in curve] == [0, 2, 4, 6]
        assert [math.isnan(value) for _, value in curve] == [False, costs, costs, costs]
    said = [str(w.message) for w in caught if "FisherTraceCallback" in str(w.message)]
    halved = [line for line in said if "out of memory at step 2; it is measured in chunks of 4" in line]
    assert len(halved) == (error in ("memory", "allocator"))
    assert len([line for line in said if "failed and training goes on" in line]) == (stage != "cost"), said
    assert len(said) - len(halved) == (stage != "cost")


OTHERS = {
    "info_plane/I_XT/net.2": (
        PLANE_STAGES,
        lambda **common: InfoPlaneCallback(bins=3, batch_norm="reference", **common),
    ),
    "weight_info/kl": (
        WEIGHT_STAGES,
        lambda **common: WeightInfoCallback(draws=2, batch_norm="reference", **common),
    ),
    "effective_info/I_XZ/net.1": (
        EFFECTIVE_STAGES,
        lambda **common: EffectiveInfoCallback(beta=0.1, draws=2, **common),
    ),
    "stability/output_kl": (
        STABILITY_STAGES,
        lambda **common: StabilityCallback(0, 1, batch_norm="reference", **common),
    ),
}


@pytest.mark.parametrize(("tag", "stage"), [(tag, stage) for tag, (stages, _) in OTHERS.items() for stage in stages])
def test_a_fault_of_another_callback_is_one_warning_a_gap_and_nothing_else(monkeypatch, plain, tag, stage):
    monkeypatch.setattr("lightning_info.quantities.weight_information.curvature.EXACT_OUTPUTS", 0)
    stages, make = OTHERS[tag]
    callback = make(num_samples=8, every_n_train_steps=EVERY)
    broken = break_stage(monkeypatch, stage, ERRORS["error"], callback)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disturbed = run(Net, callback)
    assert broken.raised
    assert_identical(plain, disturbed)
    costs = stages[stage][1]
    assert [(step, math.isnan(value)) for step, value in callback.history[tag]] == [
        (0, False),
        (2, costs),
        (4, costs),
        (6, costs),
    ]
    said = [line for w in caught if type(callback).__name__ in (line := str(w.message)) and "failed and" in line]
    assert len(said) == (3 if stage == "information" else 1)  # it is needed for the figure and at the end, too


@pytest.mark.parametrize("stage", ["capture", "engine", "figure sink", "layout", "summary"])
def test_a_fault_ends_the_run_if_asked(monkeypatch, stage):
    callback = fisher(on_error="raise")
    break_stage(monkeypatch, stage, RuntimeError("broken"), callback)
    with pytest.raises(RuntimeError, match="broken"):
        run(Net, callback)


# ---- memory


class Limited:
    """An engine for which more than a few samples are too many."""

    def __init__(self, engine, most):
        self.engine, self.most, self.refused = engine, most, 0

    def __call__(self, module, predict, batch, cotangents, sums=None):
        if num_samples(batch) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.engine(module, predict, batch, cotangents, sums)


@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_the_chunk_until_it_fits(monkeypatch, most):
    def fit():
        torch.manual_seed(0)
        callback = FisherTraceCallback("exact", num_samples=32, every_n_train_steps=3, engine="loop", summary=False)
        trainer(callback).fit(Classifier(), loader(64, 16))
        return callback

    free = fit()
    limited = Limited(plan.ENGINES["loop"], most)
    monkeypatch.setattr(plan, "CHECK_SAMPLES", 1)
    monkeypatch.setitem(plan.ENGINES, "loop", limited)
    with pytest.warns(UserWarning, match=r"out of memory at step 0; it is measured in chunks of 8 samples") as caught:
        tight = fit()
    assert len([w for w in caught if "out of memory" in str(w.message)]) == 1
    assert limited.refused == {1: 4, 3: 3}[most] + 1  # 16, 8, 4, (2); and the trial of the cost
    for tag, curve in curves(free).items():
        assert curves(tight)[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve], tag


# ---- exits


class Guarded(Classifier):
    """Ends the run where its loss is not finite, which happens at noisy weights only."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([0.15]))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]) * self.temperature.sqrt(), batch[1])
        if not torch.isfinite(loss):
            sys.exit("the loss is not finite")
        return loss


def test_a_guard_that_ends_the_run_where_noise_is_too_large_ends_nothing():
    callback = WeightInfoCallback(num_samples=8, draws=2, summary=False, on_error="raise", every_n_train_steps=EVERY)
    with pytest.warns(UserWarning, match=r"Guarded.training_step ended with SystemExit.* not finite") as caught:
        disturbed = run(Guarded, callback)
    assert len([w for w in caught if "ended with" in str(w.message)]) == 1
    assert_identical(run(Guarded), disturbed)
    assert all(math.isnan(value) for _, value in callback.history["weight_info/expected_loss"])
    assert all(value > 0 for _, value in callback.history["weight_info/kl"])


class Ends(BaseException):
    pass


class Exits(Classifier):
    """Exits wherever it is looked at."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def training_step(self, batch, batch_idx):
        if self.stage == "training_step" and not self.training and self.global_step > 0:
            sys.exit(3)
        return super().training_step(batch, batch_idx)

    def __getstate__(self):
        if self.stage == "copy" and self._trainer is not None and self.global_step > 0:
            raise Ends(3)
        return super().__getstate__()


@pytest.mark.parametrize("stage", ["training_step", "copy"])
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_an_exit_in_a_measurement_is_a_fault_of_it(stage, on_error):
    callback = fisher(on_error=on_error, summary=False)
    if on_error == "raise":
        with pytest.raises(Exited, match=r"(SystemExit|Ends)\(3\)"):
            run(partial(Exits, stage), callback)
        return
    with pytest.warns(UserWarning, match=r"(SystemExit|Ends)\(3\)"):
        disturbed = run(partial(Exits, stage), callback)
    assert_identical(run(partial(Exits, stage)), disturbed)
    assert [math.isnan(value) for _, value in callback.history["fisher/trace"]] == [False, True, True, True]


def test_an_exit_of_a_logger_or_the_reference_set_does_not_end_the_run():
    class ExitingLogger(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any("fisher" in name for name in metrics):
                sys.exit(3)

    class ExitingData(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            sys.exit(3)

    with pytest.warns(UserWarning, match="the logger ExitingLogger ended with SystemExit"):
        disturbed = run(Classifier, fisher(), loggers=lambda: [ExitingLogger(".")])
    assert_identical(run(Classifier), disturbed)
    with pytest.raises(MisconfigurationException, match=r"no samples can be taken.*SystemExit\(3\)"):
        run(Classifier, fisher(reference=ExitingData(), on_error="raise"))


# ---- values that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["activations", "weights"])
def test_values_that_are_not_finite_are_a_gap_in_any_policy(value, where):
    class Breaks(Classifier):
        def forward(self, x):
            hidden = self.net[:3](x)
            if self.trainer.global_step >= 4 and where == "activations" and not self.training:
                hidden = hidden * value
            return self.net[3:](hidden)

    class Poison(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if where == "weights" and trainer.global_step == 4:
                module.net[4].bias.data[0] = value

    callback = fisher(on_error="raise", batch_norm="running")
    with pytest.warns(UserWarning, match="no value at step 4") as caught:
        trainer(Poison(), callback).fit(Breaks(), loader(24))
    assert len([w for w in caught if "no value" in str(w.message)]) == 1
    assert [math.isnan(v) for _, v in callback.history["fisher/trace"]] == [False, False, True, True]


# ---- Ctrl-C


def test_ctrl_c_in_a_measurement_ends_the_run_and_leaves_everything_as_it_was(monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    callback, before = fisher(on_error="warn"), {}

    class Notes(Callback):
        def on_train_batch_start(self, trainer, module, *args):
            before.update({name: value.clone() for name, value in module.state_dict().items()})
            before["rng"] = torch.get_rng_state()

        def on_exception(self, trainer, module, exception):
            before["exception"] = exception

    broken = break_stage(monkeypatch, "estimator", KeyboardInterrupt(), callback)
    module = Net()
    try:
        with pytest.raises(SystemExit):
            trainer(Notes(), callback).fit(module, loader(24))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert broken.raised == 1
    assert isinstance(before["exception"], KeyboardInterrupt)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before["rng"])
    assert all(part.training for part in module.modules())
    assert not [hooks for part in module.modules() for name, hooks in vars(part).items() if "_hooks" in name and hooks]


# ---- leaks


class Census(Callback):
    """Counts what measurements could leave behind."""

    def __init__(self, steps):
        self.steps, self.counts = steps, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step in self.steps:
            gc.collect()
            objects = gc.get_objects()
            self.counts[trainer.global_step] = {
                "tensors": sum(isinstance(o, Tensor) for o in objects),
                "modules": sum(isinstance(o, nn.Module) for o in objects),
                "graph nodes": sum(isinstance(o, torch.autograd.graph.Node) for o in objects),
                "hooks": sum(len(v) for part in module.modules() for k, v in vars(part).items() if "_hooks" in k),
                "parameter attributes": sum(len(vars(p)) for p in module.parameters()),
                "parameter hooks": sum(len(p._backward_hooks or ()) for p in module.parameters()),
                "threads": threading.active_count(),
                "figures": len(plt.get_fignums()),
                "attributes": sum(len(vars(part)) for part in module.modules()),
            }


@pytest.mark.parametrize("failing", [False, True])
def test_two_hundred_measurements_leave_nothing_behind(monkeypatch, failing):
    callback, census = fisher(every_n_train_steps=1, also=("exact", "empirical"), summary=False), Census((20, 220))
    if failing:
        break_stage(monkeypatch, "estimator", RuntimeError("broken"), callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(callback, census, max_epochs=-1, max_steps=221).fit(Net(), loader(24))
    assert len(callback.history["fisher/trace"]) == 222
    assert census.counts[220] == census.counts[20]
