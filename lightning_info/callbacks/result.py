"""The result of :func:`~.measure`: values with their errors, as numbers, tables and figures."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_info.figures.curve_panels import curve_panels
from lightning_info.reporting.table import Curve, curves_table, error_of, is_error

COLUMNS = ("tag", "step", "value", "stderr")
SUFFIXES = (".csv", ".json")
"""Kinds of files that :meth:`MeasureResult.save` writes."""

MOST_COLUMNS = 12
"""Largest number of columns of a table."""

NO_VALUE = "no values; the warnings tell why"
"""Text in place of the table if there are no values."""


@dataclass(frozen=True)
class MeasureResult:
    """Quantities over the steps at which they were measured.

    Attributes:
        history: ``tag -> [(step, value), ...]``, with the tags of the callbacks; NaN where a point has no
            value. Tags without a value at any point, such as the temperature of an optimiser, are absent.
        drawings: The callbacks' own figures, by tag; each is drawn when it is called.
        report: How it was measured, as the callbacks say before the first step.
    """

    history: Mapping[str, Curve]
    drawings: Mapping[str, Callable[[], Figure]] = field(default_factory=dict, repr=False)
    report: str = field(default="", repr=False)

    def __getitem__(self, tag: str) -> float:
        """Return the last value of a tag, for example ``result["fisher/trace"]``.

        Raises:
            KeyError: There is no such tag; the message lists the tags.
        """
        if tag not in self.history:
            raise KeyError(f"no tag {tag!r}; there are {', '.join(self.history) or NO_VALUE}")
        return self.history[tag][-1][1]

    def __add__(self, other: MeasureResult) -> MeasureResult:
        """Join two results into curves over the steps of both, as in a loop; figures are those of the later one."""
        joined = {tag: dict(curve) for tag, curve in self.history.items()}
        for tag, curve in other.history.items():
            joined.setdefault(tag, {}).update(curve)
        history = {tag: sorted(points.items()) for tag, points in joined.items()}
        return MeasureResult(history, {**self.drawings, **other.drawings}, other.report or self.report)

    def __repr__(self) -> str:
        """Return a table with one row per step, or for a single step one row per tag, with its standard error."""
        steps = {step for curve in self.history.values() for step, _ in curve}
        if len(steps) > 1:
            return self.table()
        if not steps:
            return NO_VALUE
        width = max(map(len, self.history))
        rows = []
        for tag in self._values():
            step, value = self.history[tag][-1]
            error = self.error(tag, step)
            rows.append(f"{tag:<{width}}  {value:.5g}" + ("" if math.isnan(error) else f" ± {error:.2g}"))
        return "\n".join(rows)

    def table(self) -> str:
        """Return a row for each step and a column for each tag but errors; with many tags, none of single layers."""
        tags = self._values()
        shown = tags if len(tags) <= MOST_COLUMNS else ([tag for tag in tags if not _is_of_layer(tag)] or tags)
        shown = shown[:MOST_COLUMNS]
        left_out = len(tags) - len(shown)
        more = f"\nand {left_out} more, in history, save() and plot()" if left_out else ""
        return curves_table({tag: self.history[tag] for tag in shown}) + more

    def error(self, tag: str, step: int) -> float:
        """Return the standard error of a tag at a step; NaN if none is known."""
        return error_of(self.history, tag, step)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with the columns tag, step, value, stderr (NaN where none is known).

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=COLUMNS)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a row for each value, with the columns tag, step, value, stderr.

        Args:
            path: Path of a ``.csv`` file, with ``nan`` where no standard error is known; or of a ``.json`` file, a list
                of objects with ``null`` there.

        Raises:
            ValueError: The path has another ending.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ValueError(f"MeasureResult.save: {path} must end in {' or '.join(SUFFIXES)}")
        with path.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".csv":
                csv.writer(file).writerows([COLUMNS, *self._rows()])
                return
            finite = [[None if isinstance(v, float) and not math.isfinite(v) else v for v in r] for r in self._rows()]
            json.dump([dict(zip(COLUMNS, row, strict=True)) for row in finite], file, indent=1)

    def plot(self) -> Figure:
        """Draw a panel for each quantity, with all layers in one, and bands of 1.96 standard errors."""
        errors = {tag: {step: self.error(tag, step) for step, _ in self.history[tag]} for tag in self._values()}
        return curve_panels({tag: self.history[tag] for tag in self._values()}, errors)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write curves and figures for TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter  # takes long to import

        with SummaryWriter(os.fspath(folder)) as writer:
            for tag, curve in self.history.items():
                for step, value in curve:
                    writer.add_scalar(tag, value, step)
            last = max((curve[-1][0] for curve in self.history.values() if curve), default=0)
            for tag, draw in self.drawings.items():
                writer.add_figure(tag, draw(), last)

    def _rows(self) -> list[tuple[str, int, float, float]]:
        return [(tag, step, v, self.error(tag, step)) for tag in self._values() for step, v in self.history[tag]]

    def _values(self) -> list[str]:
        """Return all tags except those of errors and ends of bands."""
        return [tag for tag in self.history if not is_error(tag)]


def _is_of_layer(tag: str) -> bool:
    family, _, rest = tag.partition("/")
    return family.endswith("_layers") or "/" in rest
