from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lightning_info.reporting.figures import layer_heat_map

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
    figure.canvas.draw()


def test_a_layer_that_is_trained_later_starts_later():
    mesh = layer_heat_map({"early": [(0, 1.0), (5, 2.0)], "late": [(5, 4.0)]}, "title", "nats").axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array().filled(-1), [[1, 2], [-1, 4]])


def test_heat_map_of_many_layers_keeps_its_labels_apart():
    rows = {f"layer{i}": [1.0, 2.0, 3.0] for i in range(300)}
    figure = layer_heat_map(curves(rows), "title", "nats")
    assert figure.get_size_inches()[1] < 15
    assert len(figure.axes[0].get_yticks()) <= 61
