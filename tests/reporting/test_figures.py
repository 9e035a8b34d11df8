from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from unittest.mock import ANY, Mock, call

import matplotlib.pyplot as plt
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_info.figures.layer_heat_map import layer_heat_map
from lightning_info.reporting.figures import report_figure

STEPS = (0, 5, 100)


def curves(rows: dict[str, list[float]]) -> dict[str, list[tuple[int, float]]]:
    return {name: list(zip(STEPS, values, strict=True)) for name, values in rows.items()}


def test_heat_map_shows_layers_downwards_and_steps_to_the_right():
    figure = layer_heat_map(curves({"first": [1.0, 2.0, 3.0], "second": [10.0, 0.0, math.nan]}), "title", "nats")
    axes, colour_bar = figure.axes
    mesh = axes.collections[0]
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[1, 2, 3], [10, -1, -1]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "5", "100"]
    assert colour_bar.get_ylabel() == "nats"
    assert (mesh.norm.vmin, mesh.norm.vmax) == (1.0, 10.0)
    assert not plt.get_fignums()


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [math.nan] * 3, [1.0, 1.0, 1.0], [1e-30, 1.0, 1.0]])
def test_heat_map_draws_without_a_range(values):
    figure = layer_heat_map(curves({"only": values}), "title", "nats")
    FigureCanvasAgg(figure).draw()


def test_a_layer_that_is_trained_later_starts_later():
    mesh = layer_heat_map({"early": [(0, 1.0), (5, 2.0)], "late": [(5, 4.0)]}, "title", "nats").axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[1, 2], [-1, 4]])


def test_heat_map_of_many_layers_keeps_its_labels_apart():
    rows = {f"layer{i}": [1.0, 2.0, 3.0] for i in range(300)}
    figure = layer_heat_map(curves(rows), "title", "nats")
    assert figure.get_size_inches()[1] < 15
    assert len(figure.axes[0].get_yticks()) <= 61


# ---- who takes a figure; real loggers are in tests/integration/test_loggers.py


def report(figure, *loggers, is_global_zero=True):
    trainer = SimpleNamespace(loggers=loggers, is_global_zero=is_global_zero)
    return report_figure(trainer, "fisher/layers", figure, 120)


def tensorboard():
    return SimpleNamespace(experiment=SimpleNamespace(add_image=Mock()))


def wandb():
    return SimpleNamespace(experiment=SimpleNamespace(log=Mock()), log_image=Mock())


def mlflow():
    return SimpleNamespace(experiment=SimpleNamespace(log_figure=Mock()), run_id="abc")


def test_every_kind_of_logger_gets_the_figure_its_own_way():
    board, images, artifacts, figure = tensorboard(), wandb(), mlflow(), Figure(figsize=(2, 1), dpi=50)
    figure.set_facecolor("red")
    assert report(figure, board, images, artifacts) == []
    assert board.experiment.add_image.mock_calls == [call("fisher/layers", ANY, global_step=120, dataformats="HWC")]
    pixels = board.experiment.add_image.mock_calls[0].args[1]
    np.testing.assert_array_equal(pixels, np.full((50, 100, 3), (255, 0, 0), np.uint8))
    assert images.log_image.mock_calls == [call(key="fisher/layers", images=[ANY], step=120)]
    (image,) = images.log_image.mock_calls[0].kwargs["images"]
    np.testing.assert_array_equal(image, np.full((50, 100, 4), (255, 0, 0, 255), np.uint8))
    assert artifacts.experiment.log_figure.mock_calls == [
        call(run_id="abc", figure=figure, artifact_file="fisher/layers/step=000120.png")
    ]
    assert not plt.get_fignums()


def test_tensorboard_gets_the_figure_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    logger = TensorBoardLogger(tmp_path)
    assert report(Figure(figsize=(2, 1), dpi=50), logger) == []
    logger.experiment.flush()
    (event,) = EventAccumulator(logger.log_dir).Reload().Images("fisher/layers")
    assert (event.step, event.width, event.height) == (120, 100, 50)


def test_loggers_without_figures_are_passed_over(tmp_path):
    assert report(Figure(), SimpleNamespace(), CSVLogger(tmp_path), DummyLogger()) == []


def test_comet_gets_figures_by_its_own_method():
    comet, figure = SimpleNamespace(experiment=SimpleNamespace(log_figure=Mock())), Figure()
    assert report(figure, comet) == []
    (seen,) = comet.experiment.log_figure.mock_calls
    assert seen.kwargs["figure"] is figure
    assert seen.kwargs.keys() == {"figure_name", "figure", "step"}


@pytest.mark.parametrize("make", [tensorboard, wandb, mlflow])
def test_a_logger_that_fails_does_not_keep_the_figure_from_the_next(make):
    failing, others = make(), [tensorboard(), wandb(), mlflow()]
    error = ConnectionError("server gone")
    for part in (failing, failing.experiment):
        for method in vars(part).values():
            if isinstance(method, Mock):
                method.side_effect = error
    assert report(Figure(), failing, *others) == [error]
    board, images, artifacts = others
    for method in (board.experiment.add_image, images.log_image, artifacts.experiment.log_figure):
        method.assert_called_once()


def test_only_the_first_process_hands_figures_over():
    board = tensorboard()
    assert report(Figure(), board, is_global_zero=False) == []
    assert board.experiment.add_image.mock_calls == []
