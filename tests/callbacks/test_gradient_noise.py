"""``GradientNoiseCallback`` in a training: beside other callbacks, over several points, in the event file."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, curves, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info import GradientNoiseCallback, WeightInfoCallback

OPTIONS = {"num_samples": 32, "every_n_train_steps": 4, "on_error": "raise", "summary": False}


class Sgd(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def fit(*callbacks, module=Sgd, **options):
    torch.manual_seed(0)
    model = module()
    trainer(*callbacks, max_epochs=1, **options).fit(model, loader())
    return model


@pytest.mark.parametrize("module", [Sgd, Classifier])
def test_the_free_energy_takes_the_measured_temperature_of_a_callback_before_it(module):
    noise, weights, alone, after = GradientNoiseCallback(**OPTIONS), *(WeightInfoCallback(**OPTIONS) for _ in range(3))
    fit(noise, weights, module=module)
    fit(alone, module=module)
    fit(after, GradientNoiseCallback(**OPTIONS), module=module)
    found, plain = ({tag: dict(curve) for tag, curve in one.history.items()} for one in (weights, alone))
    assert curves(after) == curves(alone)
    if module is Classifier:  # Adam has no temperature of its noise
        assert curves(weights) == curves(alone)
        return
    for step, temperature in noise.history["gradient_noise/temperature"]:
        assert found["weight_info/temperature"][step] == temperature
        half = plain["weight_info/free_energy"][step] - plain["weight_info/loss"][step]
        expected = half * temperature / plain["weight_info/temperature"][step]
        actual = found["weight_info/free_energy"][step] - found["weight_info/loss"][step]
        assert actual == pytest.approx(expected, rel=1e-6)
    assert [step for step, _ in noise.history["gradient_noise/temperature"]] == [0, 4, 8]


def test_without_the_noise_at_a_step_there_is_no_free_energy_of_another_temperature():
    noise = GradientNoiseCallback(**{**OPTIONS, "every_n_train_steps": 8})
    weights, early = WeightInfoCallback(**OPTIONS), WeightInfoCallback(**{**OPTIONS, "num_samples": 8})
    fit(noise, weights)
    found = dict(weights.history["weight_info/free_energy"])
    assert [step for step, value in found.items() if math.isnan(value)] == [4]
    fit(noise, early)  # its samples are complete before the noise has a value
    found = dict(early.history["weight_info/free_energy"])
    assert [step for step, value in found.items() if math.isnan(value)] == [0, 4]


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
