from __future__ import annotations

import itertools
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.transforms import Bbox

from lightning_info.figures.information_plane import PlaneCurve, information_plane

GREY = to_rgba("0.75")
STEPS = (0, 1, 2, 4, 8, 10, 20, 30)
EPOCHS = {step: step / 10 for step in STEPS}


def layer(name, start, end, saturated=False, steps=STEPS):
    """A straight path from one pair of values to another."""
    points = np.linspace(start, end, len(steps)).tolist()
    return PlaneCurve(name, [(step, *pair) for step, pair in zip(steps, points, strict=True)], saturated)


FIRST, SECOND = layer("net.0", (10.0, 0.9), (9.0, 1.0)), layer("net.1", (6.0, 0.2), (5.0, 0.8))
FLAT = layer("net.flat", (11.5, 1.0), (11.9, 1.0), saturated=True)


def draw(*curves, ceiling_x=12.0, ceiling_y=1.0, epochs=EPOCHS, **options):
    options = {"title": "binning, range global", **options}
    figure = information_plane(curves, ceiling_x=ceiling_x, ceiling_y=ceiling_y, epochs=epochs, **options)
    FigureCanvasAgg(figure).draw()
    assert not plt.get_fignums()
    return figure


def without_targets(curve):
    return PlaneCurve(curve.layer, [(step, x, math.nan) for step, x, _ in curve.points], curve.saturated)


def points(figure):
    """All points and the outlined last ones of each layer."""
    found = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return list(zip(found[::2], found[1::2], strict=True))


def offsets(collection):
    return np.ma.getdata(collection.get_offsets()).tolist()


def segments(figure):
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    return [path.vertices for path in lines.get_paths()], lines


def dashed(figure):
    return [line.get_data() for line in figure.axes[0].lines if line.get_linestyle() == "--"]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()], figure.legends[0].get_title().get_text()


def test_points_lie_in_the_plane_and_the_layers_of_an_epoch_are_joined_in_order():
    figure = draw(FIRST, SECOND)
    for curve, (path, last) in zip((FIRST, SECOND), points(figure), strict=True):
        np.testing.assert_allclose(offsets(path), [pair for _, *pair in curve.points])
        np.testing.assert_allclose(offsets(last), [curve.points[-1][1:]])
        assert last.get_sizes()[0] > path.get_sizes()[0]
        np.testing.assert_array_equal(last.get_edgecolor(), [to_rgba("black")])
    joined, lines = segments(figure)
    np.testing.assert_allclose(joined, [[a[1:], b[1:]] for a, b in zip(FIRST.points, SECOND.points, strict=True)])
    np.testing.assert_array_equal(lines.get_colors()[:, :3], points(figure)[0][0].get_facecolor()[:, :3])
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("I(X;T) [bits]", "I(T;Y) [bits]")
    assert figure.get_suptitle() == "binning, range global"


def test_colour_is_the_epoch_and_keeps_early_and_late_points_apart():
    steps = [0, *(2**k for k in range(8)), *range(200, 20001, 200)]  # 8 in the first of 100 epochs
    epochs = {step: step / 200 for step in steps}
    figure = draw(layer("net.0", (10, 0.1), (5, 0.9), steps=steps), epochs=epochs)
    colour_bar = figure.axes[1]
    assert colour_bar.get_ylabel() == "epoch"
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))
    places = [np.abs(shades - colour).sum(1).argmin() for colour in points(figure)[0][0].get_facecolor()]
    assert (places[0], places[-1]) == (0, 255)
    assert np.diff(places[:9]).min() >= 5
    assert np.diff(places).min() >= 1
    labels = [label.get_text() for label in colour_bar.get_yticklabels()]
    assert labels == sorted(labels, key=float)
    assert {"0", "1", "100"} <= set(labels)
    where = dict(zip(labels, colour_bar.get_yticks() * 255, strict=True))
    assert where["1"] == pytest.approx(places[steps.index(200)], abs=1)


def test_each_layer_has_its_marker_and_its_entry():
    curves = [layer(f"net.{i}", (i, 0.1), (i + 1, 0.9)) for i in range(8)]
    figure = draw(*curves)
    shapes = {path.get_paths()[0].vertices.tobytes() for path, _ in points(figure)}
    assert len(shapes) == 8
    names, note = legend(figure)
    assert names == [curve.layer for curve in curves]
    assert note == "outlined: last point"
    markers = {handle.get_marker() for handle in figure.legends[0].legend_handles}
    assert len(markers) == 8


def test_saturated_layers_are_grey_and_the_legend_says_why():
    figure = draw(FLAT, SECOND)
    (flat, flat_last), (coloured, _) = points(figure)
    for collection in (flat, flat_last):
        np.testing.assert_allclose(np.unique(collection.get_facecolor(), axis=0), [GREY])
    assert not (coloured.get_facecolor() == GREY).all(1).any()
    assert [to_rgba(handle.get_color()) for handle in figure.legends[0].legend_handles] == [GREY, to_rgba("0.3")]
    assert legend(figure)[1] == "outlined: last point; grey: within 1 bit of log$_2$ N, not informative"


def test_ceilings_are_dashed_named_and_in_view():
    figure = draw(FIRST, SECOND)
    (x, _), (_, y) = dashed(figure)
    assert (list(x), list(y)) == ([12, 12], [1, 1])
    assert [text.get_text() for text in figure.axes[0].texts] == ["log$_2$ N = 12", "H(Y) = 1"]
    assert figure.axes[0].get_xlim()[1] > 12
    assert figure.axes[0].get_ylim()[1] > 1


@pytest.mark.parametrize(("ceilings", "drawn"), [((math.inf, 1.0), 1), ((12.0, math.inf), 1), ((math.inf,) * 2, 0)])
def test_infinite_ceilings_are_left_out(ceilings, drawn):
    figure = draw(FIRST, ceiling_x=ceilings[0], ceiling_y=ceilings[1])
    assert len(dashed(figure)) == len(figure.axes[0].texts) == drawn


@pytest.mark.parametrize("values", [(5.4999, 2.29), (0.0, 0.0), (0.02, 1e-6)])
@pytest.mark.parametrize("ceiling", [math.inf, 6.0])
@pytest.mark.parametrize("steps", [(0,), (0, 10)])
def test_few_points_have_axes_of_the_size_of_their_values(values, ceiling, steps):
    almost = tuple(value + 1e-7 for value in values)
    curves = [layer("a", values, almost, steps=steps), layer("b", almost, values, steps=steps)]
    axes = draw(*curves, ceiling_x=ceiling, ceiling_y=ceiling).axes[0]
    for value, (low, high) in zip(values, (axes.get_xlim(), axes.get_ylim()), strict=True):
        highest = ceiling if math.isfinite(ceiling) else max(value, 0.1)
        assert low < 0.75 * highest < highest < high < 1.15 * highest
        assert -0.15 * highest < low < value < high
        assert high - low > 0.25 * highest


def test_steps_without_values_take_no_part():
    """As where the first points of a run have none: the epoch of the only values is said, not that of the others."""
    first = PlaneCurve("a", [(0, math.nan, math.nan), (10, 3.0, 0.5)])
    figure = draw(first)
    assert len(figure.axes) == 1
    assert legend(figure)[1] == "epoch 1"
    figure = draw(without_targets(first))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1"]
    assert "no value" in legend(draw(PlaneCurve("a", [(0, math.nan, math.nan)])))[0][0]


def test_noise_does_not_fill_the_plane():
    low, high = draw(layer("net.0", (11.98, 0.999), (11.99, 1.0))).axes[0].get_xlim()
    assert high - low > 0.25 * 12


def test_without_targets_information_is_drawn_over_time():
    figure = draw(without_targets(FLAT), without_targets(SECOND))
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "I(X;T) [bits]")
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert (labels[0], labels[-1]) == ("0", "3")
    flat, second = (np.array(offsets(path)) for path, _ in points(figure))
    np.testing.assert_allclose(second[:, 1], [x for _, x, _ in SECOND.points])
    np.testing.assert_array_equal(flat[:, 0], second[:, 0])
    assert (np.diff(second[:, 0]) > 0).all()
    np.testing.assert_allclose(second[[0, -1], 0], axes.get_xticks()[[0, -1]])
    np.testing.assert_allclose(segments(figure)[0], [flat, second])
    ((_, y),) = dashed(figure)
    assert (list(y), axes.texts[0].get_text()) == ([12, 12], "log$_2$ N = 12")
    assert "grey" in legend(figure)[1]


@pytest.mark.parametrize("change", [lambda curve: curve, without_targets])
def test_a_single_point_says_its_epoch(change):
    figure = draw(
        *(change(layer(c.layer, *[c.points[0][1:]] * 2, steps=(5,))) for c in (FIRST, SECOND)), epochs={5: 0.5}
    )
    assert len(figure.axes) == 1
    assert legend(figure)[1] == "epoch 0.5"
    assert [len(offsets(path)) for path, _ in points(figure)] == [1, 1]


def test_missing_values_are_gaps():
    nan = math.nan
    gappy = PlaneCurve("net.2", [(0, 4.0, 0.1), (1, nan, nan), (2, 4.0, nan), (10, 3.0, 0.5), (20, math.inf, 0.5)])
    never = PlaneCurve("net.3", [(step, nan, nan) for step in STEPS])
    late = PlaneCurve("net.4", SECOND.points[4:])
    figure = draw(FIRST, gappy, never, late)
    drawn = [(offsets(path), offsets(last)) for path, last in points(figure)]
    assert drawn[1] == ([[4.0, 0.1], [3.0, 0.5]], [])  # its last point is none
    assert drawn[2] == ([], [])
    assert len(drawn[3][0]) == 4
    assert legend(figure)[0] == ["net.0", "net.2 (lost since step 20)", "net.3 (no value)", "net.4"]
    joined = np.array(segments(figure)[0])
    assert joined.shape == (len(STEPS), 4, 2)
    assert np.isnan(joined[1, 1]).all()
    assert np.isnan(joined[:, 2]).all()


def test_another_representation_in_another_unit():
    figure = draw(FLAT, SECOND, unit="nats", symbol="Z", caption="256 reference samples")
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("I(X;Z) [nats]", "I(Z;Y) [nats]")
    assert axes.get_title() == "256 reference samples"
    assert axes.texts[0].get_text() == "log N = 12"
    assert legend(figure)[1].endswith("grey: at log N, not informative")


def test_long_names_are_cut_but_stay_apart():
    inner = [f"model.encoder.layers.{i}.feed_forward.activation" for i in range(3)]
    names, _ = legend(draw(*(layer(name, (3, 0), (4, 1)) for name in (*inner, "head"))))
    assert names == [*(f"…{i}.feed_forward.activation" for i in range(3)), "head"]
    outer = ["encoder.blocks.feed_forward.activation", "decoder.blocks.feed_forward.activation"]
    assert legend(draw(*(layer(name, (3, 0), (4, 1)) for name in outer)))[0] == outer


@pytest.mark.parametrize("name", ["layer{}.1.relu:0", "model.encoder.layers.{}.feed_forward.intermediate_activation"])
@pytest.mark.parametrize("title", ["binning, range global", "mixture, sampled, noise of one tenth of the range " * 2])
def test_nothing_is_cut_and_nothing_overlaps(name, title):
    curves = [layer(name.format(i), (11 - i, 0.9 - i / 10), (10 - i, 1.0), saturated=i < 2) for i in range(8)]
    figure = draw(*curves, title=title, caption="1024 reference samples; channels averaged over positions " * 2)
    renderer = figure.canvas.get_renderer()
    (frame,) = figure.legends
    axes, colour_bar = figure.axes
    entries = [text.get_window_extent(renderer) for text in frame.get_texts()]
    texts = [axes.title, figure._suptitle, axes.xaxis.label, axes.yaxis.label]
    parts = [part.get_window_extent(renderer) for part in (axes, frame, *texts)] + [colour_bar.get_tightbbox(renderer)]
    for box in (*parts, *entries):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    ends = [axes.transData.transform(offsets(last)[0]) for _, last in points(figure)]
    markers = [Bbox([end - 6, end + 6]) for end in ends]  # all on the ceiling
    ceilings = [text.get_window_extent(renderer) for text in axes.texts]
    for boxes in (parts, entries, (*markers, *ceilings)):
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert axes.get_window_extent(renderer).height > 0.4 * figure.bbox.height


# ---- planes without points

EMPTY = {
    "no layers": [],
    "no points": [PlaneCurve("a", []), PlaneCurve("b", [])],
    "no value": [PlaneCurve("a", [(0, math.nan, math.nan), (1, math.nan, math.inf)])],
}


@pytest.mark.parametrize("curves", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("ceiling", [math.inf, 2.0])
def test_a_plane_without_a_value_says_so(curves, ceiling):
    figure = draw(*curves, ceiling_x=ceiling, ceiling_y=ceiling)
    assert [text.get_text() for text in figure.axes[0].texts] == ["no layer has a value at any step"]


@pytest.mark.parametrize("pair", [(1.0, 0.5), (1.0, math.nan), (math.nan, 0.5), (0.0, 0.0), (1e300, 1e-310)])
@pytest.mark.parametrize("ceiling", [math.inf, 2.0])
def test_one_point_is_drawn_or_passed_over(pair, ceiling):
    figure = draw(PlaneCurve("a", [(0, *pair)]), PlaneCurve("b", []), ceiling_x=ceiling, ceiling_y=ceiling)
    drawn = [pair] if all(map(math.isfinite, pair)) else [] if math.isnan(pair[0]) else [(0.0, pair[0])]
    (first, _), (second, _) = points(figure)
    assert [tuple(offset) for offset in offsets(first)] == drawn
    assert len(offsets(second)) == 0
