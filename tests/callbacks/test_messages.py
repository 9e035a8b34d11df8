"""What is said: one line a warning, which points to the user's code; the rest is in the report."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from models import Classifier, loader, trainer

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.callbacks import messages


class Broken(Classifier):
    """Its loss cannot be computed any more after the first epoch, by the replica only."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch > 0 and not self.training:
            raise RuntimeError("no eval mode now")
        return super().training_step(batch, batch_idx)


class HandWritten(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self(x).logsumexp(1) * (y + 1.0)).mean()


def fit(module, *callbacks):
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(*callbacks, max_epochs=2).fit(module, loader())  # here
    return [w for w in caught if "Callback" in str(w.message)]


def line_of_fit():
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith("# here"))


@pytest.mark.parametrize("module", [Classifier, Broken])
def test_a_warning_is_one_line_that_points_to_the_call_of_fit(module):
    said = fit(module(), FisherTraceCallback(num_samples=16), InfoPlaneCallback(num_samples=64))
    assert len(said) > 2
    for warning in said:
        shown = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
        assert shown.startswith(f"{__file__}:{line_of_fit()}:")
        assert shown.count("\n") == 1


def test_a_fault_is_one_line_and_the_report_has_its_traceback():
    callback = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=4)
    said = [str(w.message) for w in fit(Broken(), callback) if "no logger" not in str(w.message)]
    assert len(said) == 1
    assert re.search(r"failed and training goes on: RuntimeError: no eval mode now \(test_messages\.py:\d+", said[0])
    report = callback.report()
    assert "Traceback" in report
    assert 'raise RuntimeError("no eval mode now")' in report


def test_the_report_has_every_value_with_its_error_and_the_warnings():
    callback = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=4, also=["empirical"])
    fit(Classifier(), callback)
    rows = [line.split() for line in callback.report().splitlines()]
    for tag in ("fisher/trace", "fisher/empirical_trace", "fisher_layers/net.0"):
        step, value = callback.history[tag][-1]
        row = next(row for row in rows if row[:1] == [tag])
        assert row[1:3] == [str(step), f"{value:.5g}"]
    error = callback.history["fisher/empirical_trace_stderr"][-1][1]
    assert next(row for row in rows if row[:1] == ["fisher/empirical_trace"])[3] == f"{error:.5g}"


class Frozen(Classifier):
    """Nothing is trained, and cross_entropy is called."""

    def training_step(self, batch, batch_idx):
        self.requires_grad_(False)
        return super().training_step(batch, batch_idx).requires_grad_()


def test_a_frozen_net_is_not_told_that_it_calls_no_loss():
    module = Frozen().requires_grad_(False)
    (said,) = [text for w in fit(module, FisherTraceCallback()) if "is off" in (text := str(w.message))]
    assert "none of the weights of Frozen is trained" in said
    assert "likelihood" not in said
    assert "\n" not in said


def test_the_same_refusal_is_told_in_full_once():
    said = [str(w.message) for w in fit(HandWritten(), WeightInfoCallback(), EffectiveInfoCallback())]
    first, second = [text for text in said if "is off" in text]
    assert "def adapter(module, batch):" in first
    assert "is off, and training goes on" in first.splitlines()[0]
    assert second.startswith(
        "EffectiveInfoCallback: refused for the same reason as WeightInfoCallback; EffectiveInfoCallback is off"
    )
    assert "\n" not in second
    assert "Tell it what the module predicts" in first.splitlines()[0]


def test_two_callbacks_print_little(monkeypatch, capsys):
    ours = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", ours.append)
    said = fit(Classifier(), FisherTraceCallback(num_samples=16), InfoPlaneCallback(num_samples=16))
    lines = [*said, *"\n".join(ours).splitlines(), *capsys.readouterr().out.splitlines()]
    assert len(ours) == 2
    assert len(lines) <= 25


def test_a_line_says_what_is_measured_and_what_it_costs(monkeypatch):
    ours = []
    monkeypatch.setattr("lightning_info.callbacks.preparing.rank_zero_info", ours.append)
    fit(Classifier(), FisherTraceCallback(num_samples=16, every_n_epochs=1, summary=False))
    (text,) = ours
    line = " ".join(text.split())
    assert line.startswith("FisherTraceCallback: trace of the Fisher information (importance estimator, 64 ")
    assert re.search(r", 16 samples; about [\d.e-]+ s a point$", line)
    assert len(text.splitlines()) <= 2


def test_what_was_lessened_in_steps_is_told_once():
    less = [
        "64 draws instead of 128",
        "F of 32 samples instead of 64",
        "32 draws instead of 64",
        "64 samples instead of 128",
    ]
    assert messages.joined(less) == "32 draws instead of 128, F of 32 samples instead of 64, 64 samples instead of 128"
