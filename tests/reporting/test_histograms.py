from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info.reporting.histograms import MAX_VALUES, report_histogram

TAG = "activations/net.0:1"


def report(values, *loggers, step=7, is_global_zero=True):
    return report_histogram(SimpleNamespace(loggers=loggers, is_global_zero=is_global_zero), TAG, values, step)


def tensorboard():
    return SimpleNamespace(experiment=SimpleNamespace(add_histogram=Mock()))


def handed_over(values):
    """What TensorBoard is given."""
    board = tensorboard()
    assert report(values, board) == []
    ((tag, taken),) = [mock_call.args for mock_call in board.experiment.add_histogram.mock_calls]
    assert tag == TAG
    return taken


def test_tensorboard_writes_a_histogram_of_the_finite_values(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    values = torch.randn(50, 20, requires_grad=True)
    damaged = torch.cat([values.flatten(), torch.tensor([torch.nan, torch.inf, -torch.inf])])
    assert report(damaged, logger, step=120) == []
    logger.experiment.flush()
    (event,) = EventAccumulator(logger.log_dir).Reload().Histograms(TAG)
    histogram = event.histogram_value
    assert (event.step, histogram.num) == (120, 1000)
    assert (histogram.min, histogram.max) == (values.min().item(), values.max().item())
    assert histogram.sum == pytest.approx(values.double().sum().item())
    low = np.concatenate([[-np.inf], histogram.bucket_limit[:-1]])
    for left, right, count in zip(low, histogram.bucket_limit, histogram.bucket, strict=True):
        assert count == ((values > left) & (values <= right)).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_any_real_type_in_any_shape(dtype):
    values = torch.tensor([[0, 1], [1, 1]]).to(dtype).T
    np.testing.assert_array_equal(handed_over(values), [0.0, 1.0, 1.0, 1.0])


def test_no_more_values_than_allowed_taken_evenly():
    count = 3 * MAX_VALUES + 17
    taken = handed_over(torch.arange(count, dtype=torch.float64))
    assert len(taken) == MAX_VALUES
    assert np.diff(taken).min() > 0
    assert np.diff(taken).max() <= 6
    np.testing.assert_array_equal(taken, handed_over(torch.arange(count, dtype=torch.float64)))
    assert len(handed_over(torch.ones(MAX_VALUES))) == MAX_VALUES


@pytest.mark.parametrize("units", [2, 64, 100])
def test_thinning_does_not_fall_into_step_with_the_units(units):
    values = torch.arange(units).repeat(64 * MAX_VALUES // units)
    shares = np.bincount(handed_over(values).astype(int), minlength=units) / MAX_VALUES
    np.testing.assert_allclose(shares, 1 / units, rtol=0.1)


@pytest.mark.parametrize("values", [torch.empty(0), torch.full((3,), torch.nan)])
def test_no_values_no_histogram(values):
    board = tensorboard()
    assert report(values, board) == []
    assert board.experiment.add_histogram.mock_calls == []


def test_wandb_gets_its_own_histogram_where_it_is_installed(monkeypatch):
    images = SimpleNamespace(log_image=Mock(), log_metrics=Mock())
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert report(torch.ones(3), images) == []
    assert images.log_metrics.mock_calls == []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Histogram=lambda values: ("histogram", values.tolist())))
    assert report(torch.ones(3), images) == []
    assert images.log_metrics.mock_calls == [call({TAG: ("histogram", [1.0, 1.0, 1.0])}, step=7)]


def test_loggers_without_histograms_are_passed_over(tmp_path):
    metrics = Mock()
    mlflow = SimpleNamespace(experiment=SimpleNamespace(log_figure=Mock()), run_id="abc", log_metrics=metrics)
    assert report(torch.ones(3), mlflow, SimpleNamespace(), CSVLogger(tmp_path), DummyLogger()) == []
    assert metrics.mock_calls == mlflow.experiment.log_figure.mock_calls == []


def test_a_logger_that_fails_does_not_keep_the_histogram_from_the_next():
    error = ConnectionError("server gone")
    failing, board = tensorboard(), tensorboard()
    failing.experiment.add_histogram.side_effect = error
    assert report(torch.ones(3), failing, board) == [error]
    board.experiment.add_histogram.assert_called_once()


def test_only_the_first_process_hands_histograms_over():
    board = tensorboard()
    assert report(torch.ones(3), board, is_global_zero=False) == []
    assert board.experiment.add_histogram.mock_calls == []
