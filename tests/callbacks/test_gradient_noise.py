"""``GradientNoiseCallback`` in a training: beside other callbacks, over several points, in the event file."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from models import CLASSES, Classifier, curves, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info import GradientNoiseCallback, InfoCallback, WeightInfoCallback
from lightning_info.quantities import Quantity

OPTIONS = {"num_samples": 32, "every_n_train_steps": 4, "on_error": "raise", "summary": False}


class Sgd(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class Regression(Sgd):
    """No bounds of errors, which take long."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), F.one_hot(y, CLASSES).to(x))


class Reader(Quantity):
    """Reads what was measured beside it."""

    name = "reader"

    def measure(self, snapshot, point):
        return {"reader/temperature": point.beside.get("gradient_noise/temperature", -1.0)}


def fit(*callbacks, module=Sgd, **options):
    torch.manual_seed(0)
    model = module()
    trainer(*callbacks, max_epochs=1, **options).fit(model, loader())
    return model


def test_the_free_energy_takes_the_measured_temperature_of_a_callback_before_it():
    noise, after = (GradientNoiseCallback(prefix=prefix, **OPTIONS) for prefix in (None, "after"))
    weights, plain = (WeightInfoCallback(draws=2, prefix=prefix, **OPTIONS) for prefix in (None, "after"))
    fit(noise, weights, plain, after, module=Regression)
    found, usual = ({tag.removeprefix("after/"): dict(c) for tag, c in one.history.items()} for one in (weights, plain))
    assert [step for step, _ in noise.history["gradient_noise/temperature"]] == [0, 4, 8]
    for step, temperature in noise.history["gradient_noise/temperature"]:
        assert found["weight_info/temperature"][step] == temperature
        assert usual["weight_info/temperature"][step] == 0.05 / (2 * 8)
        half = usual["weight_info/free_energy"][step] - usual["weight_info/loss"][step]
        expected = half * temperature / usual["weight_info/temperature"][step]
        actual = found["weight_info/free_energy"][step] - found["weight_info/loss"][step]
        assert actual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("module", "options", "expected"),
    [
        (Sgd, {}, "measured"),
        (Classifier, {}, [-1.0, -1.0, -1.0]),  # Adam has no temperature of its noise
        (Sgd, {"every_n_train_steps": 8}, [1.0, math.nan, 1.0]),
        (Sgd, {"num_samples": 64}, [math.nan, math.nan, 1.0]),  # complete after the other's samples
    ],
)
def test_a_callback_sees_what_those_before_it_measured_at_the_step_and_nothing_else(module, options, expected):
    noise = GradientNoiseCallback(**{**OPTIONS, **options})
    reader = InfoCallback(Reader(), **OPTIONS)
    fit(noise, reader, module=module)
    found = [value for _, value in reader.history["reader/temperature"]]
    if expected == "measured":
        expected = [value for _, value in noise.history["gradient_noise/temperature"]]
    else:
        found = [value if math.isnan(value) or value < 0 else 1.0 for value in found]
    assert found == pytest.approx(expected, nan_ok=True, rel=0)


def test_the_event_file_has_the_values_and_what_they_mean(tmp_path):
    callback = GradientNoiseCallback(per_layer=True, **OPTIONS)
    fit(callback, logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path / "lightning_logs/version_0")).Reload()
    for tag, curve in curves(callback).items():
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in logged] == [step for step, _ in curve]
        assert [v for _, v in logged] == pytest.approx([v for _, v in curve], rel=1e-6, nan_ok=True), tag
        assert callback.describe(tag).text in events.summary_metadata[tag].summary_description
    assert {"gradient_noise_layers/net.0", "gradient_noise_trace_layers/net.4"} <= callback.history.keys()
    parts = [dict(curve) for tag, curve in callback.history.items() if tag.startswith("gradient_noise_trace_layers/")]
    for step, trace in callback.history["gradient_noise/trace"]:
        assert sum(part[step] for part in parts) == pytest.approx(trace, rel=1e-9)
    assert "gradient_noise/layers" in events.Tags()["images"]


def test_training_does_not_notice():
    callback = GradientNoiseCallback(**OPTIONS)
    with_it, without = fit(callback), fit()
    assert all(map(torch.equal, with_it.parameters(), without.parameters()))
    assert len(callback.history["gradient_noise/trace"]) == 3
