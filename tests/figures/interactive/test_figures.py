"""Figures to move in: plotly takes them, they are JSON, and they show what they were given."""

import itertools
import json
import math

import numpy as np
import pytest

from lightning_info.figures.interactive.banded_curves import Below, Line, banded_curves
from lightning_info.figures.interactive.ends import EndPoint, ends
from lightning_info.figures.interactive.information_plane import PlanePath, information_plane
from lightning_info.figures.interactive.layer_heat_map import layer_heat_map
from lightning_info.figures.interactive.rate_distortion import RatePath, rate_distortion

EVIL = '<img src=x onerror="alert(1)"><b>net</b> & co'
NAN = math.nan


def line(group="run", layer="", values=(1.0, 2.0, NAN), low=(0.5, 1.5, NAN), high=(1.5, 2.5, NAN)):
    return Line(group, layer, [0, 10, 20], np.array(values), np.array(low), np.array(high), [0.0, 1.0, 2.0])


def path(name="net.0", group="run", y=(1.0, 2.0), baseline=(NAN, NAN), is_grey=False):
    half = np.array([NAN, 0.2])
    return PlanePath(name, group, np.array([4.0, 5.0]), np.array(y), half, half, np.array(baseline), is_grey)


def plane(*paths):
    return information_plane(paths, ["step 0", "step 9"], x_title="x", y_title="y", ceiling_x=(8.0, "log2 N"))


def rates(group="run"):
    at = [np.array([50.0, 40.0]), np.array([3.0, 2.0]), np.array([0.1, NAN]), np.array([2.9, 1.0])]
    return RatePath(group, [0, 10], *at)


FIGURES = {
    "curves": banded_curves([line(EVIL, EVIL), line("b", "net.1")], EVIL, [Below("loss", [line(EVIL, "train_loss")])]),
    "plane": plane(path(EVIL, EVIL, baseline=(0.5, 0.6)), path("net.1", is_grey=True)),
    "heat map": layer_heat_map(
        {EVIL: {EVIL: [(0, 1.0), (10, 100.0)], "b": [(0, 0.0)]}, "other": {"a": [(0, 2.0)]}}, EVIL
    ),
    "rate-distortion": rate_distortion([rates(EVIL), rates("b")], "nats"),
    "ends": ends(
        [EndPoint(EVIL, EVIL, 1.0, 0.1, [0.9, 1.1], [EVIL, "b"]), EndPoint("b", EVIL, 2.0, NAN, [2.0], ["c"])], EVIL
    ),
    "empty curves": banded_curves([line(values=(NAN, NAN, NAN))], "y"),
    "empty plane": plane(),
    "empty heat map": layer_heat_map({}, "nats"),
    "empty rate-distortion": rate_distortion([], "nats"),
    "empty ends": ends([], "y"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_plotly_takes_it(name):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figure = json.loads(json.dumps(FIGURES[name], allow_nan=False))
    graph_objects.Figure(figure)  # an attribute that plotly does not know is an error


@pytest.mark.parametrize("name", FIGURES)
def test_no_name_is_markup(name):
    assert "<img" not in json.dumps(FIGURES[name]).replace("<extra", "")
    assert "<b>" not in json.dumps(FIGURES[name])


@pytest.mark.parametrize("name", [name for name in FIGURES if name.startswith("empty")])
def test_a_figure_of_nothing_says_why(name):
    assert FIGURES[name]["data"] == []
    assert FIGURES[name]["layout"]["annotations"][0]["text"].startswith("no ")


def test_curves_have_their_band_and_both_axes():
    area, curve = banded_curves([line()], "y")["data"]
    assert area["y"] == [0.5, 1.5, 2.5, 1.5]
    assert area["x"] == [0, 10, 10, 0]
    assert area["meta"]["epochs"] == [0.0, 1.0, 1.0, 0.0]
    assert curve["y"] == [1.0, 2.0, None]
    assert curve["meta"] == {"steps": [0, 10, 20], "epochs": [0.0, 1.0, 2.0]}


def test_what_is_below_shares_the_axis_of_steps():
    layout = banded_curves([line()], "y", [Below("loss", [line()]), Below("accuracy", [line()])])["layout"]
    domains = [layout[name]["domain"] for name in ("yaxis3", "yaxis2", "yaxis")]
    assert all(lower[1] <= upper[0] for lower, upper in itertools.pairwise(domains))
    assert layout["xaxis"]["anchor"] == "y3"
    assert not [name for name in layout if name.startswith("xaxis") and name != "xaxis"]


def test_layers_have_colours_and_groups_strokes():
    lines = [line(group, layer) for layer in ("a", "b") for group in ("x", "y")]
    drawn = [trace for trace in banded_curves(lines, "y")["data"] if "hovertemplate" in trace]
    look = {(trace["name"]): (trace["line"]["color"], trace["line"]["dash"]) for trace in drawn}
    assert look["a · x"][0] == look["a · y"][0] != look["b · x"][0]
    assert look["a · x"][1] == look["b · x"][1] != look["a · y"][1]


def test_every_stop_of_the_plane_has_its_place():
    figure = plane(path(baseline=(0.5, 0.6)), path("net.1", y=(0.3, NAN)))
    slider = figure["layout"]["sliders"][0]
    assert [step["label"] for step in slider["steps"]] == ["step 0", "step 9"]
    assert [step["args"][0] for step in slider["steps"]] == [[frame["name"]] for frame in figure["frames"]]
    for stop, frame in enumerate(figure["frames"]):
        assert frame["traces"] == list(range(2, len(figure["data"])))
        joint, first, second, shuffled = frame["data"]
        assert first["y"] == [[1.0, 2.0][stop]]
        assert second["y"] == [[0.3, None][stop]]
        assert joint["y"] == first["y"] + second["y"]
        assert shuffled["y"] == [[0.5, 0.6][stop]]
        assert first["error_y"]["visible"] is (stop == 1)
    assert figure["data"][2:] == figure["frames"][-1]["data"]


def test_the_plane_shows_its_ceiling_and_what_is_beyond_doubt():
    figure = plane(path(), path("net.1", is_grey=True))
    assert figure["layout"]["shapes"][0]["x0"] == 8.0
    assert figure["layout"]["xaxis"]["range"][1] > 8.0
    grey = figure["data"][-1]
    assert "says nothing" in grey["name"]
    assert grey["marker"]["color"] == "#b5b5b5"


def test_fields_of_the_heat_map_have_their_value():
    (trace,) = layer_heat_map({"run": {"a": [(0, 1.0), (5, 100.0)], "b": [(5, 10.0)]}}, "nats")["data"]
    assert trace["customdata"] == [[1.0, 100.0], [None, 10.0]]
    assert trace["z"] == [[0.0, 2.0], [None, 1.0]]


def test_ends_have_a_bar_where_an_error_is_known():
    figure = ends([EndPoint("a", "", 1.0, 0.1, [0.9, 1.1], ["x", "y"]), EndPoint("b", "", 2.0, NAN, [2.0], ["z"])], "y")
    bars = [trace["error_x"]["array"] for trace in figure["data"] if "error_x" in trace]
    assert bars == [[0.1], [0]]
