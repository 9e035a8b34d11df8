"""Loss under weight noise against the information in the weights over training, measured and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_info.figures.interactive.style import MARKERS, SEQUENCE, Figure, axis, empty, layout, numbers, short

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RatePath:
    """Where a group of runs was in the plane, point by point.

    Attributes:
        group: The runs.
        steps: ``n`` of them.
        information: Nats that the weights hold, ``(n,)``.
        loss: Expected loss under the noise, as measured.
        half: Half the width of its 95 % band.
        predicted: The loss as the quadratic approximation has it; NaN where it is not known.
    """

    group: str
    steps: Sequence[int]
    information: Array
    loss: Array
    half: Array
    predicted: Array


def rate_distortion(paths: Sequence[RatePath], x_title: str) -> Figure:
    """Measured points joined in the order of training, the later the lighter; the prediction as a cross, joined to it.

    Args:
        paths: A group of runs each.
        x_title: Which information.
    """
    paths = [path for path in paths if np.isfinite(path.information * path.loss).any()]
    if not paths:
        return empty("no point has both the information and the loss")
    latest = max(path.steps[-1] for path in paths)
    data: list[dict[str, Any]] = []
    for number, path in enumerate(paths):
        x = numbers(path.information)
        fall = [
            v
            for a, b, c in zip(x, numbers(path.loss), numbers(path.predicted), strict=True)
            for v in ((a, b), (a, c), (None, None))
        ]
        data.append(
            {
                "x": [a for a, _ in fall],
                "y": [b for _, b in fall],
                "mode": "lines",
                "line": {"color": "#bbb", "width": 1},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
        mark = {"size": 6, "symbol": "x-thin", "line": {"width": 1.5, "color": "#D55E00"}}
        told = {"name": "predicted", "showlegend": number == 0, "customdata": list(path.steps)}
        hover = "predicted %{y:.4g} at step %{customdata}<extra></extra>"
        data.append(
            {"x": x, "y": numbers(path.predicted), "mode": "markers", "marker": mark, **told, "hovertemplate": hover}
        )
        marker = {
            "size": 9,
            "symbol": MARKERS[number % len(MARKERS)],
            "color": list(path.steps),
            "cmin": 0,
            "cmax": max(latest, 1),
            "colorscale": SEQUENCE,
            "line": {"width": 0.8, "color": "#222"},
            "showscale": number == 0,
            "colorbar": {"title": {"text": "optimiser steps", "side": "right"}, "thickness": 14},
        }
        data.append(
            {
                "x": x,
                "y": numbers(path.loss),
                "mode": "lines+markers",
                "line": {"color": "#888", "width": 1},
                "marker": marker,
                "error_y": {
                    "type": "data",
                    "array": [h or 0 for h in numbers(path.half)],
                    "color": "#666",
                    "thickness": 1,
                },
                "name": f"measured · {short(path.group)}" if len(paths) > 1 else "measured",
                "customdata": list(path.steps),
                "hovertemplate": "%{y:.4g} at %{x:.4g} nats, step %{customdata}<extra>%{fullData.name}</extra>",
            }
        )
    below = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return {
        "data": data,
        "layout": layout(
            440,
            xaxis=axis(x_title),
            yaxis=axis("expected loss [nats per sample]"),
            legend=below,
            margin={"l": 70, "r": 20, "t": 50, "b": 50},
            meta={"controls": ["log", "log_x"]},
        ),
    }
