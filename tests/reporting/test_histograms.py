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
        assert count == ((values.double() > left) & (values.double() <= right)).sum()


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0],
        [-3.0],
        [1.0, 1.0 + 2**-52],
        [0.0, 5e-324, 1.5e-323],
        [-1e308, 0.0, 1.7e308],
        [1e20, 1e30],
        [-sys.float_info.max, sys.float_info.max],
    ],
)
def test_every_finite_value_is_in_a_bin(values, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    assert report(torch.tensor(values, dtype=torch.float64), logger) == []
    logger.experiment.flush()
    (event,) = EventAccumulator(logger.log_dir).Reload().Histograms(TAG)
    histogram, expected = event.histogram_value, np.array(values)
    assert (histogram.min, histogram.max, sum(histogram.bucket)) == (min(values), max(values), len(values))
    assert np.diff(histogram.bucket_limit).min(initial=0) >= 0
    for limit, below in zip(histogram.bucket_limit, np.cumsum(histogram.bucket), strict=True):
        assert (expected < limit).sum() <= below <= (expected <= limit).sum()


def test_a_thinned_histogram_has_the_shares_of_all_values_but_for_chance(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    values = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0)).relu()
    assert report(values, logger) == []
    logger.experiment.flush()
    histogram = EventAccumulator(logger.log_dir).Reload().Histograms(TAG)[0].histogram_value
    assert histogram.num == MAX_VALUES
    below = np.cumsum(histogram.bucket) / MAX_VALUES
    shares = np.array([(values < limit).double().mean() for limit in histogram.bucket_limit])
    assert np.abs(below - shares)[:-1].max() < 4 * np.sqrt(0.25 / MAX_VALUES)


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
