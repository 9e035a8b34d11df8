"""Evaluation of ``effective_information.py``: claims with computed verdicts, tables, the figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from saxe2018.claims import Claim

LAYERS = ("hidden 1", "hidden 2", "logits")
LEVELS = {
    "binned": "bins over the layer's range",
    "0.05": "weight noise, loss + 0.05",
    "0.5": "weight noise, loss + 0.5",
}
NAMES = {"tanh": "tanh", "relu": "ReLU"}
CHANGE = 0.5 * math.log(2)
"""Nats of a rise or a fall that counts: the half bit of InfoPlaneCallback."""
CROSSING = 0.1


class Run(NamedTuple):
    """Measurements of one training.

    Attributes:
        steps: Optimiser steps taken, ``(T,)``.
        curves: Nats ``(T, layers)`` by (level, ``"input"`` or ``"label"``); NaN where a distortion is not reached.
        crossing: Largest amount by which a layer's bound lay below that of a later one, nats, by level.
    """

    steps: Sequence[int]
    curves: Mapping[tuple[str, str], np.ndarray]
    crossing: Mapping[str, float]


class Pair(NamedTuple):
    """A net and its twin.

    Attributes:
        outputs: Largest difference between their outputs, as a share of the largest output.
        net: Nats of the layers about the input, ``(layers,)``, by level; ``"fixed"`` are bins from -1 to 1.
        twin: The same for the other.
        effective: Largest difference in any effective information that at least one of them has, nats.
    """

    outputs: float
    net: Mapping[str, np.ndarray]
    twin: Mapping[str, np.ndarray]
    effective: float


class Way(NamedTuple):
    """Return a curve's first value, its step, its peak and its end; NaN where there is none."""

    first: float
    step: int
    peak: float
    end: float

    @classmethod
    def of(cls, steps: Sequence[int], curve: np.ndarray) -> Way:
        known = np.flatnonzero(~np.isnan(curve))
        if not known.size:
            return cls(math.nan, steps[-1], math.nan, math.nan)
        return cls(float(curve[known[0]]), steps[known[0]], float(curve[known].max()), float(curve[-1]))


def judge(runs: Mapping[str, Sequence[Run]], pairs: Sequence[Pair]) -> list[Claim]:
    """Return criteria on the curves of all seeds; the nets share one claim if the paper makes no difference."""

    def falls(act: str, level: str) -> list[float]:
        found = [[Way.of(run.steps, curve) for curve in run.curves[level, "input"].T] for run in runs[act]]
        return [max(way.peak - way.end for way in ways) for ways in found]

    text = "the layer that falls most falls from its peak to the end by"
    claims = [
        Claim("binned", f"tanh: {text}", falls("tanh", "binned"), CHANGE, unit="nats"),
        Claim("binned", f"ReLU: {text}", falls("relu", "binned"), at_most=CHANGE, unit="nats"),
    ]
    for level in ("0.05", "0.5"):
        name, every = f"effective, {level}", [run for act in NAMES for run in runs[act]]
        claims += [
            Claim(name, f"{label}: {text}", falls(act, level), CHANGE, unit="nats", source="here")
            for act, label in NAMES.items()
        ]
        logits = [Way.of(run.steps, run.curves[level, "input"][:, -1]) for run in every]
        rises, crossing = [way.peak - way.first for way in logits], [run.crossing[level] for run in every]
        text_of_crossing = "both: a bound is below a later layer's by"
        claims += [
            Claim(name, "both: the logits rise before, by", rises, CHANGE, unit="nats", source="here"),
            Claim(name, text_of_crossing, crossing, at_most=CROSSING, unit="nats", source="here"),
        ]
    name, outputs = "same function", [p.outputs for p in pairs]
    claims.append(Claim(name, "largest difference of outputs, of the largest", outputs, at_most=1e-5))
    for level, what in (("fixed", "bins from -1 to 1"), ("binned", LEVELS["binned"])):
        changes = [float(abs(p.net[level] - p.twin[level])[:-1].max()) for p in pairs]
        claims.append(Claim(name, f"{what}: a hidden layer's I(X;T) differs by", changes, CHANGE, unit="nats"))
    values = [p.effective for p in pairs]
    claims.append(Claim(name, "any effective information differs by", values, at_most=1e-4, unit="nats", source="here"))
    return claims


def table(runs: Mapping[str, Sequence[Run]], kind: str) -> str:
    """Return mean and standard deviation over seeds, in nats, as Markdown."""
    rows = ["| net | level | layer | first (step) | peak | end | rise | fall |", "|---|---|---|---|---|---|---|---|"]
    for act, its in runs.items():
        for level in LEVELS:
            for number, layer in enumerate(LAYERS):
                ways = [Way.of(run.steps, run.curves[level, kind][:, number]) for run in its]
                first, peak, end = (np.array([getattr(w, name) for w in ways]) for name in ("first", "peak", "end"))
                steps = sorted({way.step for way in ways})
                at = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
                cells = [f"{spread(first)} ({at})", *map(spread, (peak, end, peak - first, peak - end))]
                rows.append(f"| {NAMES[act]} | {level} | {layer} | {' | '.join(cells)} |")
    return "\n".join(rows)


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def draw(runs: Mapping[str, Sequence[Run]], pair: Pair, ceiling: float) -> Figure:
    """Draw curves, a row for each net and a column for each kind of noise; below them the pair."""
    figure = Figure(figsize=(12, 10), layout="constrained")
    grid = figure.add_gridspec(3, len(LEVELS))
    for row, (act, its) in enumerate(runs.items()):
        for column, (level, title) in enumerate(LEVELS.items()):
            axes = figure.add_subplot(grid[row, column], title=f"{NAMES[act]}: {title}", ylabel="information [nats]")
            _draw_curves(axes, its, level)
            axes.axhline(ceiling, color="0.6", linestyle=":")
            axes.set(xlabel="optimiser step", ylim=(-0.1, ceiling + 0.2))
    lines = [Line2D([], [], color=f"C{number}", label=layer) for number, layer in enumerate(LAYERS)]
    for style, colour, label in (("-", "k", "about the input"), ("--", "k", "about the label"), (":", "0.6", "log N")):
        lines.append(Line2D([], [], color=colour, linestyle=style, label=label))
    title = "Mean and standard deviation over seeds; no value where no weight noise was found that costs so much loss"
    figure.legend(handles=lines, title=title, loc="outside upper center", ncols=len(lines), frameon=False)
    _draw_pair(figure.add_subplot(grid[2, :]), pair, ceiling)
    return figure


def _draw_curves(axes: Axes, its: Sequence[Run], level: str) -> None:
    steps = its[0].steps
    for kind, style in (("input", "-"), ("label", "--")):
        curves = np.stack([run.curves[level, kind] for run in its])
        for number in range(len(LAYERS)):
            mean, sd = curves[..., number].mean(0), curves[..., number].std(0)
            axes.plot(steps, mean, style, marker=".", color=f"C{number}")
            axes.fill_between(steps, mean - sd, mean + sd, color=f"C{number}", alpha=0.2, linewidth=0)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks([0, *[step for step in steps if step > 0][::2]], minor=False)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlim(-0.1, steps[-1] * 1.2)


def _draw_pair(axes: Axes, pair: Pair, ceiling: float) -> None:
    names = {
        "fixed": "bins\nfrom -1 to 1",
        **{level: name.replace(", ", ",\n").replace("over ", "over\n") for level, name in LEVELS.items()},
    }
    groups = [(f"{LAYERS[layer]}\n{name}", layer, level) for layer in (0, 1) for level, name in names.items()]
    x = np.arange(len(groups))
    for shift, its, label in ((-0.2, pair.net, "net"), (0.2, pair.twin, "twin")):
        heights = [its[level][layer] for _, layer, level in groups]
        bars = axes.bar(x + shift, np.nan_to_num(heights), 0.38, label=label)
        axes.bar_label(bars, ["no level" if math.isnan(h) else f"{h:.2f}" for h in heights], fontsize=8)
    axes.set_xticks(x, [name for name, *_ in groups], fontsize=8)
    axes.set(title="The same function twice: a ReLU net, and its twin with rescaled units")
    axes.set(ylabel="about the input [nats]", xlim=(-0.6, len(groups) - 0.4), ylim=(0, 1.25 * ceiling))
    axes.legend(frameon=False, ncols=2, loc="upper right")
