from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import ContourSet
from matplotlib.patches import Polygon

from lightning_info.figures.stability_paths import LEVELS, stability_paths
from lightning_info.quantities.stability.loss_landscape import Ellipse, LossLandscape
from lightning_info.quantities.stability.weight_trajectory import Paths

TRUE, LARGE = Ellipse(torch.tensor([[0.0, 0.5], [1.0, 0.0]]).double(), 1.0), Ellipse(100 * torch.eye(2).double(), 0.02)


def picture(width: float = 3.0, second: str = "twin", share: float = 1.0, **ellipses: Ellipse) -> LossLandscape:
    """Two paths of ten points, from the origin to (8, 0) and to (8, width)."""
    along = torch.linspace(0, 8, 10).double()
    run, twin = torch.stack([along, 0 * along], 1), torch.stack([along, width * along / 8], 1)
    x, y = torch.linspace(-1, 11, 15).double(), torch.linspace(-4, 5, 15).double()
    loss = (x - 8).square() + 2 * y[:, None].square()
    stderr = torch.tensor([0.01, 0.02]) * (share < 1)
    paths = Paths(list(range(10)), run, twin, share, stderr, 0.25)
    return LossLandscape(paths, ellipses or {"F": TRUE, "diag F": LARGE}, x, y, loss, 64, second)


def draw(shown: LossLandscape, **options):
    figure = stability_paths(shown, title="sample 3 replaced by sample 5", **options)
    FigureCanvasAgg(figure).draw()
    assert not plt.get_fignums()
    return figure


def outlines(axes) -> list[np.ndarray]:
    return [patch.get_xy() for patch in axes.patches if isinstance(patch, Polygon)]


def legend(figure) -> tuple[list[str], str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()], found.get_title().get_text().replace("\n", " ")


def test_both_paths_are_drawn_at_one_scale_with_their_ends():
    shown = picture()
    (axes,) = draw(shown).axes
    lines = [np.column_stack(line.get_data()) for line in axes.lines]
    for path in (shown.paths.run.numpy(), shown.paths.twin.numpy()):
        assert any(line.shape == path.shape and np.array_equal(line, path) for line in lines)
        assert any(np.array_equal(line, path[-1:]) for line in lines)
    assert axes.get_aspect() == 1
    assert axes.get_xlim() == pytest.approx((-1, 11))
    assert axes.get_ylim() == pytest.approx((-4, 5))


def test_ellipses_lie_around_the_end_of_the_run_at_the_size_that_the_legend_says():
    figure = draw(picture())
    true, large = outlines(figure.axes[0])
    np.testing.assert_allclose(((true - [8, 0]) / [0.5, 1.0]) ** 2 @ [1, 1], 1)
    np.testing.assert_allclose(((large - [8, 0]) / 2) ** 2 @ [1, 1], 1)
    names, _ = legend(figure)
    assert "drawn" not in next(name for name in names if "N P F P" in name)
    assert "drawn 0.02 times its size" in next(name for name in names if "diag F" in name)


def test_contours_are_those_of_the_loss_evenly_spaced_in_area():
    shown = picture()
    (lines,) = [c for c in draw(shown).axes[0].collections if isinstance(c, ContourSet)]
    assert LEVELS - 2 <= len(lines.levels) <= LEVELS + 2
    below = [(shown.loss.numpy() < level).mean() for level in lines.levels]
    np.testing.assert_allclose(below, np.linspace(0, 1, len(below)), atol=0.05)
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        points = path.vertices[:, 0], path.vertices[:, 1]
        np.testing.assert_allclose((points[0] - 8) ** 2 + 2 * points[1] ** 2, level, atol=0.5)  # of a coarse grid


def test_paths_that_are_hardly_apart_are_drawn_once_more_with_ellipses_at_their_size():
    shown = picture(width=0.1)
    figure = draw(shown)
    one_scale, stretched = figure.axes
    assert one_scale.get_aspect() == 1
    assert "80 times" in stretched.get_title()
    assert stretched.get_xlim() == pytest.approx((-0.8, 8.8))
    assert stretched.get_ylim() == pytest.approx((-0.01, 0.11))
    (a, b), (c, d) = stretched.transData.transform([[0, 0], [8, 0.1]])
    assert (d - b) / 0.1 == pytest.approx(80 * (c - a) / 8)
    large = outlines(stretched)[1]
    np.testing.assert_allclose(((large - [8, 0]) / 100) ** 2 @ [1, 1], 1)


def test_what_a_reader_must_know_is_said():
    _, note = legend(draw(picture(), caption="N = 500"))
    assert "64 samples" in note
    assert "up to 0.25 away from the plane" in note
    assert "½ nat" in note
    assert note.endswith("N = 500")
    assert "errors" not in note
    figure = draw(picture(share=0.13))
    _, note = legend(figure)
    assert "paths from 13 % of the weights" in figure.get_suptitle().replace("\n", " ")
    assert "0.01 along and 0.02 across" in note
    (axes,) = draw(picture(second="random")).axes
    assert "random direction" in axes.get_ylabel()


def test_contours_of_a_narrow_range_have_labels_of_their_own():
    shown = replace(picture(), loss=1.3 + 1e-4 * picture().loss)
    (lines,) = [c for c in draw(shown).axes[0].collections if isinstance(c, ContourSet)]
    assert len(lines.levels) == LEVELS + 2
    assert len({f"{level:.8g}" for level in lines.levels}) == LEVELS + 2
    assert max(len(f"{level:.8g}") for level in lines.levels) <= 7


@pytest.mark.parametrize("width", [0.0, 1e-9, 3.0])
def test_null_test_and_missing_parts_still_draw(width):
    shown = picture(width=width, second="random")
    for bare in (
        replace(shown, loss=None),
        replace(shown, loss=torch.full_like(shown.loss, torch.nan)),
        replace(shown, loss=torch.ones_like(shown.loss)),
        replace(shown, ellipses={}),
    ):
        figure = draw(bare)
        _, note = legend(figure)
        assert len(figure.axes) == 1
        assert ("contours" in note) == (bare.loss is not None)
        assert ("ellipses" in note) == bool(bare.ellipses)
