"""Nothing of a figure is cut off or written over something else, without an engine that lays it out."""

from __future__ import annotations

import itertools

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_info.figures.curve_panels import curve_panels
from lightning_info.figures.information_plane import PlaneCurve, information_plane
from lightning_info.figures.layer_heat_map import layer_heat_map
from lightning_info.figures.margins import LETTER, lines_height, set_margins, widest
from lightning_info.figures.rate_distortion import rate_distortion
from lightning_info.figures.stability_paths import stability_paths
from lightning_info.functional.rate_distortion import RatePoint
from lightning_info.quantities.stability.loss_landscape import Ellipse, LossLandscape
from lightning_info.quantities.stability.weight_trajectory import Paths


def heat_map(layers: int, name: str = "layer{}", last: int = 1000, size: float = 1.0) -> Figure:
    curves = {name.format(i): [(last * k // 20, size * (1 + i) / (1 + k)) for k in range(21)] for i in range(layers)}
    return layer_heat_map(curves, "Fisher trace by module", "nats per squared weight change")


def panels(count: int, size: float) -> Figure:
    curves = {f"fisher/quantity_{k}": [(10_000 * i, size * (-1) ** i) for i in range(9)] for k in range(count)}
    return curve_panels(curves, {})


def weights(size: float, caption: str = "", negative: bool = False) -> Figure:
    levels = [10 ** (i / 2 - 8) for i in range(17)]
    curves = {
        epoch: [
            RatePoint(b, 0.1, 500 / b**0.5, 3.0, size * (b + 0.1), 0.01, size * (b * (1 - 2 * negative) + 0.1), 0.1)
            for b in levels
        ]
        for epoch in (0.0, 1.0, 30.0)
    }
    return rate_distortion(curves, levels[8], caption)


def paths(width: float, share: float, title: str, caption: str) -> Figure:
    along = torch.linspace(0, 8, 10).double()
    run, twin = torch.stack([along, 0 * along], 1), torch.stack([along, width * along / 8], 1)
    x, y = torch.linspace(-1, 11, 15).double(), torch.linspace(-4, 5, 15).double()
    ellipses = {name: Ellipse(size * torch.eye(2).double(), 1 / size) for name, size in (("F", 1.0), ("diag F", 100.0))}
    shown = Paths(list(range(10)), run, twin, share, torch.tensor([0.01, 0.02]), 0.25)
    loss = (x - 8).square() + 2 * y[:, None].square()
    return stability_paths(LossLandscape(shown, ellipses, x, y, loss, 64, "twin"), title=title, caption=caption)


def plane(layers: int) -> Figure:
    curves = [PlaneCurve(f"layer{i}.relu", [(s, 9.0 - i, 0.1 * s) for s in range(9)]) for i in range(layers)]
    options = {"ceiling_x": 10.0, "ceiling_y": 1.0, "epochs": {s: float(s) for s in range(9)}}
    return information_plane(curves, title="binning, 30 bins, 1024 samples", caption="what one must know", **options)


FIGURES = {
    "map of one layer": lambda: heat_map(1),
    "map of many layers": lambda: heat_map(200, last=10**7),
    "map of long names": lambda: heat_map(5, "model.encoder.blocks.17.attention.self.query_projection.WM{}"),
    "map of tiny values": lambda: heat_map(3, size=1e-30),
    "one panel": lambda: panels(1, 1.0),
    "panels of large values": lambda: panels(5, 99_999.0),
    "panels of small values": lambda: panels(24, 0.00123),
    "weights": lambda: weights(1.0),
    "weights of small losses": lambda: weights(1e-9, "what one must know of it; " * 15, negative=True),
    "plane": lambda: plane(8),
    "paths below one another": lambda: paths(0.2, 1.0, "sample 3 replaced " * 10, "β = 1"),
    "paths of a share": lambda: paths(3.0, 0.01, "sample 3 replaced", "β = 1; " * 20),
}


def boxes(figure: Figure) -> list:
    """Where axes with their labels, titles, legends and other texts of the figure are, pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    below = [text for text in (*figure.texts, *figure.legends) if not hasattr(text, "get_text") or text.get_text()]
    parts = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.axison]
    return [*parts, *(part.get_window_extent(renderer) for part in below)]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_axes_texts_and_legends_do_not_overlap(name):
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    found = boxes(figure)
    assert found
    for number, box in enumerate(found):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        for other in found[:number]:
            width, height = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(width, height) < 1


@pytest.mark.parametrize("name", [name for name in FIGURES if "panel" not in name and "long names" not in name])
def test_texts_can_be_read_where_tensorboard_shows_a_figure_300_pixels_wide(name):
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    least = min(text.get_fontsize() for text in shown)
    assert least / 72 * 300 / figure.get_figwidth() > 5  # pixels a line


def seen(colour: str) -> torch.Tensor:
    """A colour as the eye without red cones sees it (Viénot, Brettel & Mollon 1999), linear red and green."""
    red, green, blue = (torch.tensor(to_rgb(colour)) ** 2.2).tolist()
    return torch.tensor([0.1124 * red + 0.8876 * green, 0.004 * red - 0.004 * green + blue])


def test_lines_have_colours_that_everybody_tells_apart():
    curves = {f"plane/I_XT/net.{i}": [(0, 1.0 + i), (8, 2.0 * i)] for i in range(6)}
    (axes,) = (axes for axes in curve_panels(curves, {}).axes if axes.axison)
    paths_of = {line.get_color() for line in paths(0.2, 1.0, "", "").axes[0].lines if line.get_linestyle() == "-"}
    for found in ([line.get_color() for line in axes.lines], sorted(paths_of)):
        assert len(found) >= 2
        for one, other in itertools.combinations(found, 2):
            assert (seen(one) - seen(other)).norm() > 0.05, (one, other)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3)])
def test_margins_are_as_wide_as_said(rows, columns):
    figure = Figure(figsize=(9, 7))
    axes = figure.subplots(rows, columns, squeeze=False)
    set_margins(figure, left=1.0, right=0.5, bottom=0.75, top=0.25, across=0.6, down=0.4)
    places = torch.tensor([[one.get_position().extents for one in row] for row in axes]) * torch.tensor([9, 7, 9, 7])
    x, y = places[..., [0, 2]], places[..., [1, 3]]
    assert (x[0, 0, 0], x[0, -1, 1], y[-1, 0, 0], y[0, 0, 1]) == pytest.approx((1.0, 8.5, 0.75, 6.75))
    torch.testing.assert_close(x[:, 1:, 0] - x[:, :-1, 1], torch.full((rows, columns - 1), 0.6).double())
    torch.testing.assert_close(y[:-1, :, 0] - y[1:, :, 1], torch.full((rows - 1, columns), 0.4).double())


@pytest.mark.parametrize("text", ["features.0.relu", "layer4.1.conv2", "1234567890", "two\nlines of text", "a\nb\nc"])
def test_texts_are_no_larger_than_estimated(text):
    figure = Figure()
    drawn = figure.text(0.1, 0.1, text, fontsize=8)
    box = drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert box.height / figure.dpi <= lines_height(text, 8)
    assert box.width / figure.dpi <= widest(text.split("\n"), 8) + LETTER * 8 / 72


def test_no_text_takes_no_space():
    assert lines_height("", 8) == widest([], 8) == 0.0
