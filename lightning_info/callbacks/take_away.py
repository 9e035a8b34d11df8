"""Results to keep after training: numbers, figures and verdicts, with or without a logger."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_info.callbacks.result import MeasureResult
from lightning_info.callbacks.without_trainer import WithoutTrainer
from lightning_info.figures.curve_panels import curve_panels
from lightning_info.reporting.closing_table import closing_table
from lightning_info.reporting.explanations import reading_guide
from lightning_info.reporting.table import Curve
from lightning_info.run_logs.groups import RunGroup
from lightning_info.run_logs.run_log import EPOCH, RunLog
from lightning_info.run_logs.run_texts import GUIDE, RESULT


class TakeAway(WithoutTrainer):
    """Returns what it has measured as tables, figures and files."""

    @property
    def result(self) -> MeasureResult:
        """All that was measured so far, as :func:`~lightning_info.measure` would return it; results can be added."""
        return MeasureResult(self.history, self.drawings(), self.report())

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with the columns tag, step, value, stderr (NaN where none is known).

        Raises:
            ImportError: pandas is not installed.
        """
        return self.result.to_pandas()

    def plot(self, tag: str | None = None) -> Figure:
        """Draw a figure of what was measured so far; a notebook shows it directly.

        Args:
            tag: A scalar, drawn with its 95 % band, all layers together if it names no layer (``"info_plane/I_XT"``);
                or one of the callback's figures (``"info_plane/plane"``). By default the first of its figures, or all
                scalars if there is none yet.

        Raises:
            KeyError: There is no such tag; the message lists the tags.
        """
        drawings, result = self.drawings(), self.result
        if tag is None:
            return next(iter(drawings.values()))() if drawings else result.plot()
        if tag in drawings:
            return drawings[tag]()
        curves = {name: curve for name, curve in self.history.items() if name == tag or name.startswith(f"{tag}/")}
        if not curves:
            known = [*drawings, *self.history] or ["nothing yet"]
            raise KeyError(f"{type(self).__name__}.plot: no tag {tag!r}; there are {', '.join(known)}")
        return curve_panels(curves, {name: {s: result.error(name, s) for s, _ in c} for name, c in curves.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was measured so far to a file.

        Args:
            path: Of a ``.csv`` file, with a row for each value (tag, step, value, stderr); of a ``.json`` file with
                every value, its error, unit and meaning, the verdicts, and the report with all warnings; or of a
                ``.html`` file with charts to move in, that opens without a network (needs plotly).

        Raises:
            ValueError: It ends otherwise.
            ImportError: plotly is not installed.
        """
        path = Path(path)
        if path.suffix == ".html":
            self._write_page(path)
            return
        if path.suffix != ".json":
            self.result.save(path)
            return
        rows, result = [], self.result
        for tag, curve in self.history.items():
            known = self.describe(self._untagged(tag))
            points = [{"step": s, "value": _finite(v), "stderr": _finite(result.error(tag, s))} for s, v in curve]
            unit, meaning = (known.unit, known.text) if known else ("", "")
            rows.append({"tag": tag, "unit": unit, "meaning": meaning, "points": points})
        whole = {
            "callback": type(self).__name__,
            "curves": rows,
            "verdicts": self.quantity.conclusions(self.record()),
            "report": self.report(),
            "warnings": self._error_policy.told,
        }
        path.write_text(json.dumps(whole, indent=1, allow_nan=False), encoding="utf-8")

    def _write_page(self, path: Path) -> None:
        from lightning_info.report.page import page

        known = {tag: self.quantity.describe(self._untagged(tag)) for tag in self.history}
        told = {tag: description.text for tag, description in known.items() if description}
        end = "\n".join(["```", self.closing_table(), *self.closing_lines(), "```"])
        texts = {GUIDE: reading_guide([(self.report(), self.guide())]), RESULT: end}
        passed = [(step - 1, epoch - 1) for step, epoch in self.record().epochs.items() if step]
        name = type(self).__name__
        run = RunLog(name, {EPOCH: passed, **self.history}, told, texts)
        more = [(tag, _png(draw())) for tag, draw in self.drawings().items()]
        path.write_text(page([RunGroup(name, [run])], name, more=more), encoding="utf-8")

    def closing_table(self) -> str:
        """Return the table printed at the end of fit, for this callback alone."""
        return closing_table(self.rows(self.history))

    def last_curves(self) -> dict[str, Curve]:
        """Return the curves with a value at the last point, by full tag."""
        return {tag: curve for tag, curve in self.history.items() if curve[-1][0] == self._measured}

    def closing_lines(self) -> list[str]:
        """Return what is printed below the table at the end of fit."""
        return list(filter(None, [self.quantity.closing_text(self.record())]))

    def time_taken(self) -> tuple[str, float]:
        """Return how many points there are, and the share of the run's time that they took."""
        return f"{self.tagged(self.quantity.name)} ({self._points})", self._clock.overhead

    def __repr__(self) -> str:
        """Return the class and what was measured last."""
        shown = [(tag, curve[-1]) for tag, curve in self.history.items() if self._is_in_table(tag) and curve]
        if not shown:
            return f"{type(self).__name__}: nothing measured yet"
        tag, (step, value) = shown[0]
        error = self.result.error(tag, step)
        known = "" if math.isnan(error) else f" ± {error:.2g}"
        more = f", and {len(shown) - 1} more" if len(shown) > 1 else ""
        return f"{type(self).__name__}: {tag} = {value:.4g}{known} at step {step}{more}"

    def _repr_html_(self) -> str:
        """Return the table and the first figure, for notebooks."""
        title = f"<b>{html.escape(repr(self))}</b>"
        if not self.history:
            return title
        picture = base64.b64encode(_png(self.plot())).decode()
        text = html.escape("\n".join([self.closing_table(), *self.closing_lines()]))
        return f'{title}<pre>{text}</pre><img src="data:image/png;base64,{picture}">'

    def _is_in_table(self, tag: str) -> bool:
        return any(self.tagged(row) == tag for row, _ in self.quantity.table)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
