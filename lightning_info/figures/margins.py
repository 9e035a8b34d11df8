"""Where the axes of a figure are, by margins in inches.

A layout engine measures every text of a figure several times, which takes longer than all the drawing. So does the
place of a title that is not told one: ``set_title(..., y=1)``.
"""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.figure import Figure

LINE = 1.6
"""Height of a line in units of its font size, with the space to the next one."""
LETTER = 0.62
"""Width of a letter, on the generous side."""


def set_margins(
    figure: Figure, left: float, right: float, bottom: float, top: float, across: float = 0.0, down: float = 0.0
) -> None:
    """Place the axes of a figure's grid, which are of equal size.

    Args:
        figure: With its axes.
        left: Margin, inches.
        right: Margin, inches.
        bottom: Margin, inches.
        top: Margin, inches.
        across: Between columns, inches.
        down: Between rows, inches.
    """
    width, height = figure.get_size_inches()
    grids = [axes.get_gridspec() for axes in figure.axes]
    columns, rows = (max((getattr(g, n) for g in grids if g is not None), default=1) for n in ("ncols", "nrows"))
    figure.subplots_adjust(
        left / width,
        bottom / height,
        1 - right / width,
        1 - top / height,
        across * columns / (width - left - right - across * (columns - 1)),
        down * rows / (height - bottom - top - down * (rows - 1)),
    )


def lines_height(text: str, size: float) -> float:
    """Height of a text, inches; 0 for none.

    Args:
        text: With its line breaks.
        size: Of the font, points.
    """
    return LINE * size * (text.count("\n") + 1) / 72 if text else 0.0


def widest(texts: Iterable[str], size: float) -> float:
    """Width of the longest of some texts of a line each, inches.

    Args:
        texts: The texts.
        size: Of the font, points.
    """
    return LETTER * size * max(map(len, texts), default=0) / 72
