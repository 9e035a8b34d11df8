"""Evaluation of ``nuisances.py``: claims with computed verdicts, the table, the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from saxe2018.claims import Claim
from scipy.stats import spearmanr

LAYERS = {"act1": "conv 1", "act2": "conv 2", "act3": "conv 3", "act4": "hidden", "head": "logits"}
"""Names of the measured layers by those of their modules."""
FIRST, LAST = 0, 3
"""Places of the first and of the last hidden layer."""
NUISANCES = ("rotation", "shift")
CHANGE = 0.1
"""Bits of a difference that counts."""
CORRELATION = 0.5


class Run(NamedTuple):
    """Measurements of one training.

    Attributes:
        steps: Optimiser steps taken, ``(T,)``.
        curves: Bits ``(T, layers)`` by (nuisance or ``"I_TY"``, ``"value"`` or ``"error"``).
        trace: tr F, ``(T,)``.
        accuracy: Share of test images that are classified correctly at the end.
    """

    steps: Sequence[int]
    curves: Mapping[tuple[str, str], np.ndarray]
    trace: np.ndarray
    accuracy: float

    def correlation(self, nuisance: str) -> float:
        """Return the rank correlation of the last hidden layer's I(T;N) with tr F over the points."""
        return float(spearmanr(self.curves[nuisance, "value"][:, LAST], self.trace).statistic)


def judge(runs: Mapping[str, Sequence[Run]]) -> list[Claim]:
    """Return the claims of the example on trainings by kind; a value for each seed."""
    claims = []
    for nuisance in NUISANCES:
        ends = {}
        for kind, its in runs.items():
            name, curves = f"{nuisance}, {kind}", [run.curves[nuisance, "value"] for run in its]
            falls = [float(curve[0, LAST] - curve[-1, LAST]) for curve in curves]
            gains = [float(np.diff(run.curves["I_TY", "value"][[0, -1], LAST])[0]) for run in its]
            lost = [float(curve[-1, FIRST] - curve[-1, LAST]) for curve in curves]
            claims += [
                Claim(
                    name,
                    "(a) the last hidden layer holds less than the first, by",
                    lost,
                    CHANGE,
                    unit="bits",
                    source="here",
                ),
                Claim(name, "(b) over training the last hidden layer loses", falls, CHANGE, unit="bits", source="here"),
                Claim(name, "(b) ... and its I(T;Y) gains", gains, 0.0, unit="bits", source="here"),
                Claim(
                    name,
                    "(d) rank correlation with tr F",
                    [run.correlation(nuisance) for run in its],
                    CORRELATION,
                    source="here",
                ),
            ]
            ends[kind] = [float(curve[-1, LAST]) for curve in curves]
        if len(ends) == 2:
            less = [plain - augmented for plain, augmented in zip(ends["plain"], ends["augmented"], strict=True)]
            claims.append(Claim(nuisance, "(c) augmentation leaves less, by", less, CHANGE, unit="bits", source="here"))
    return claims


def table(runs: Mapping[str, Sequence[Run]]) -> str:
    """Return start, end and change of every layer in bits, means over the seeds, as Markdown.

    The error of a change is the standard error over the seeds, and of one seed that of the decoders.
    """
    rows = ["| training | about | layer | start | end | change |", "|---|---|---|---|---|---|"]
    for kind, its in runs.items():
        for about in (*NUISANCES, "I_TY"):
            values = np.stack([run.curves[about, "value"][[0, -1]] for run in its])
            errors = np.stack([run.curves[about, "error"][[0, -1]] for run in its])
            for place, layer in enumerate(LAYERS.values()):
                start, end = values[:, :, place].mean(0)
                changes = np.diff(values[:, :, place])
                error = changes.std(ddof=1) / len(its) ** 0.5 if len(its) > 1 else np.hypot(*errors[0, :, place])
                what = "label" if about == "I_TY" else about
                rows.append(
                    f"| {kind} | {what} | {layer} | {start:.2f} | {end:.2f} | {end - start:+.2f} ± {error:.2f} |"
                )
    return "\n".join(rows)


def draw(runs: Mapping[str, Sequence[Run]]) -> Figure:
    """Draw a row for each kind of training: information over steps, and in the last hidden layer against tr F."""
    figure = Figure(figsize=(15, 3.6 * len(runs) + 0.6), layout="constrained")
    axes = figure.subplots(len(runs), 4, squeeze=False, sharex="col")
    for row, (kind, its) in zip(axes, runs.items(), strict=True):
        for ax, about in zip(row, (*NUISANCES, "I_TY"), strict=False):
            _draw_curves(ax, its, about)
            what = "I(T;Y), the label" if about == "I_TY" else f"I(T;N), {about}"
            ax.set(title=f"{kind}: {what}", ylabel="decoders tell [bits]")
        for number, nuisance in enumerate(NUISANCES):
            for run in its:
                label = nuisance if run is its[0] else None
                values = run.curves[nuisance, "value"][:, LAST]
                row[-1].plot(run.trace, values, "-", color=f"C{3 * number + 6}", marker="o", ms=3, lw=0.6, label=label)
                row[-1].plot(run.trace[-1], values[-1], "k*", zorder=3)
        row[-1].set(title=f"{kind}: hidden, against tr F", xscale="log", ylabel="I(T;N) [bits]")
        row[-1].legend(frameon=False)
    for ax in axes[-1][:-1]:
        ax.set_xlabel("optimiser step")
    axes[-1][-1].set_xlabel("tr F; star: end of a training")
    handles, labels = axes[0][0].get_legend_handles_labels()
    title = "Mean over seeds, band from the least to the largest"
    figure.legend(handles, labels, title=title, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _draw_curves(axes: Axes, its: Sequence[Run], about: str) -> None:
    curves = np.stack([run.curves[about, "value"] for run in its])
    for place, layer in enumerate(LAYERS.values()):
        colour = f"C{place}"
        axes.plot(its[0].steps, curves[..., place].mean(0), color=colour, marker=".", label=layer)
        axes.fill_between(
            its[0].steps, curves[..., place].min(0), curves[..., place].max(0), color=colour, alpha=0.2, linewidth=0
        )
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks([0, *its[0].steps[1::3]])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlim(-0.1, its[0].steps[-1] * 1.2)
