"""What figures to move in have in common: colours that everybody tells apart, axes, text that stays text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figure = dict[str, Any]
"""``data``, ``layout`` and perhaps ``frames``, as plotly takes them."""

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe & Ito (2008) without its yellow, which is hard to see on white."""
SEQUENCE = "Cividis"
"""Colours of an order, of plotly: the same to eyes with and without colour vision."""
_CIVIDIS = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#e3cc50")
GREY = "#b5b5b5"
"""Of what says nothing."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "x", "star", "pentagon", "hexagon", "cross")
FONT = {"family": "Roboto, Helvetica, Arial, sans-serif", "size": 12, "color": "#333"}
_LONGEST = 40


def escaped(text: str) -> str:
    """A name as plotly shows it letter by letter, although it takes some HTML for markup."""
    return html.escape(text, quote=False)


def short(text: str) -> str:
    """The escaped end of a name that is too long for a legend."""
    return escaped(text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}")


def colours(number: int) -> list[str]:
    """Of layers in the order of depth, or of groups: the palette if it has enough, else shades of one sequence."""
    if number <= len(OKABE_ITO):
        return list(OKABE_ITO[:number])
    places = np.linspace(0, len(_CIVIDIS) - 1, number)
    return [_between(_CIVIDIS[int(p)], _CIVIDIS[min(int(p) + 1, len(_CIVIDIS) - 1)], p % 1) for p in places]


def faint(colour: str, opacity: float = 0.18) -> str:
    """A colour that lets through what is behind it."""
    return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"


def numbers(values: Iterable[float] | NDArray[np.float64]) -> list[float | None]:
    """Values for JSON: six digits, None for what is not finite."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title."""
    plain = {"zeroline": False, "gridcolor": "#eee", "linecolor": "#999", "ticks": "outside", "automargin": True}
    return {**plain, "title": {"text": title, "standoff": 8}, "showline": True, **more}


def layout(height: int, **more: Any) -> dict[str, Any]:
    """What every figure looks like.

    Args:
        height: In pixels.
        more: Of plotly's layout.
    """
    return {
        "height": height,
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 20, "b": 50},
        "hovermode": "closest",
        "hoverlabel": {"namelength": -1},
        "legend": {"font": {"size": 11}, "tracegroupgap": 2},
        **more,
    }


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> tuple[list[float], list[float | None]]:
    """The outline of a band, there and back, of the points at which both ends are known."""
    known = [i for i, ends in enumerate(zip(low, high, strict=True)) if all(map(math.isfinite, ends))]
    there, back = [x[i] for i in known], [x[i] for i in reversed(known)]
    return there + back, numbers([low[i] for i in known] + [high[i] for i in reversed(known)])


def empty(text: str, height: int = 160) -> Figure:
    """A figure that says why there is nothing in it."""
    note = {"text": escaped(text), "showarrow": False, "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"}
    nothing = {"visible": False}
    return {"data": [], "layout": layout(height, annotations=[note], xaxis=nothing, yaxis=nothing)}


def _between(one: str, other: str, place: float) -> str:
    pairs = ((int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * place):02x}" for a, b in pairs)
