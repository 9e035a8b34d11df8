"""The bar of a long measurement."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from models import Classifier, loader, trainer

from lightning_info import FisherTraceCallback
from lightning_info.callbacks import progress as module
from lightning_info.callbacks.progress import progress


class RichProgressBar:
    is_enabled = True


class TQDMProgressBar:
    is_enabled = True


def shown(capsys, bar, seconds, expected=4.0, rank_zero=True):
    trainer = SimpleNamespace(progress_bar_callback=bar, is_global_zero=rank_zero)
    with progress(trainer, "FisherTraceCallback", 8, expected):
        time.sleep(seconds)
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)


def test_a_long_measurement_is_shown_with_what_it_was_expected_to_take(capsys):
    assert "FisherTraceCallback at step 8: 0 s of about 4 s" in shown(capsys, TQDMProgressBar(), 0.3)
    assert "of about" not in shown(capsys, TQDMProgressBar(), 0.3, expected=float("nan"))


def test_beside_rich_it_is_a_line(capsys):
    assert shown(capsys, RichProgressBar(), 0.3) == "FisherTraceCallback at step 8 takes a while, about 4 s\n"


def test_a_short_one_is_not_shown_nor_where_the_trainer_has_no_bar_nor_in_other_processes(capsys):
    assert shown(capsys, TQDMProgressBar(), 0.0) == ""
    assert shown(capsys, None, 0.3) == ""
    assert shown(capsys, TQDMProgressBar(), 0.3, rank_zero=False) == ""


def test_an_error_inside_ends_it(capsys):
    trainer = SimpleNamespace(progress_bar_callback=TQDMProgressBar(), is_global_zero=True)
    with pytest.raises(RuntimeError, match="inside"), progress(trainer, "X", 0, 1.0):
        raise RuntimeError("inside")
    assert capsys.readouterr().out == ""


class Seen(Callback):
    def __init__(self):
        self.shown = []

    def on_train_batch_end(self, trainer, *args):
        self.shown.append(trainer.progress_bar_metrics.get("mine/fisher/trace"))


@pytest.mark.parametrize("prog_bar", [True, False])
def test_the_headline_is_in_the_progress_bar_if_that_is_wanted(prog_bar):
    options = {"num_samples": 8, "every_n_train_steps": 4, "on_error": "raise", "summary": False}
    callback, seen = FisherTraceCallback(prefix="mine", prog_bar=prog_bar, **options), Seen()
    trainer(callback, seen, max_epochs=2, limit_train_batches=6).fit(Classifier(), loader())
    curve = dict(callback.history["mine/fisher/trace"])
    shown = [pytest.approx(curve[4 * (step // 4)], rel=1e-6) for step in range(12)]  # of the last point so far
    assert seen.shown == (shown if prog_bar else [None] * 12)
