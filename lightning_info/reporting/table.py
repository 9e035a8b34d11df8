"""Tables of curves, of last values and of verdicts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

Curve = Sequence[tuple[int, float]]


def lost_since(curve: Curve) -> int | None:
    """Return the first step of the points without a value at the end of a curve; None if its end has a value."""
    since = None
    for step, value in reversed(curve):
        if math.isfinite(value):
            break
        since = step
    return since


def error_of(history: Mapping[str, Curve], tag: str, step: int) -> float:
    """Return the standard error of a tag at a step; NaN if none is known.

    Args:
        history: ``tag -> [(step, value), ...]``.
        tag: The tag.
        step: The step.
    """
    family, _, rest = tag.partition("/")
    for name in (f"{tag}_stderr", f"{family}_stderr/{rest}"):
        if name in history:
            return dict(history[name]).get(step, math.nan)
    return math.nan


def is_error(tag: str) -> bool:
    """Tell whether a tag is that of an error, or of the end of a band."""
    family, _, rest = tag.partition("/")
    return family.endswith("_stderr") or rest.endswith(("_stderr", "_low", "_high"))


def last_values(history: Mapping[str, Curve]) -> str:
    """Return a row for each tag: step and value of its last point, and the standard error if one is known.

    Args:
        history: ``tag -> [(step, value), ...]``.
    """
    rows = [("last point", "step", "value", "± stderr")]
    for tag, curve in history.items():
        if not is_error(tag) and curve:
            step, value = curve[-1]
            error = error_of(history, tag, step)
            told = ["-" if math.isnan(v) else f"{v:.5g}" for v in (value, error)]
            rows.append((tag, str(step), told[0], told[1]))
    return _aligned(rows) if len(rows) > 1 else ""


def curves_table(curves: Mapping[str, Curve]) -> str:
    """Return a row for each step, a column for each curve; ``-`` where it has no value.

    Args:
        curves: ``tag -> [(step, value), ...]``.
    """
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    columns = [dict(curve) for curve in curves.values()]
    cells = [[column.get(step, math.nan) for column in columns] for step in steps]
    rows = [[f"{value:.4g}" if math.isfinite(value) else "-" for value in row] for row in cells]
    lines = [["step", *curves], *([str(step), *row] for step, row in zip(steps, rows, strict=True))]
    return _aligned(lines, text=())


def verdict_table(
    falls: Mapping[str, Mapping[str, float]],
    verdicts: Mapping[str, str],
    unit: str = "bits",
    beside: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return a table of the falls of information from peak to end, by layer and by range, with verdicts.

    Args:
        falls: ``layer -> range policy -> fall``; NaN and missing ones are shown as ``-``.
        verdicts: Verdicts by layer.
        unit: Unit of the falls.
        beside: Further cells: ``title -> layer -> text``.

    Returns:
        A table of fixed width, layers in the order of ``falls``.
    """
    policies = list(dict.fromkeys(policy for row in falls.values() for policy in row))
    beside = beside or {}
    lines = [(f"fall of I(X;T), {unit}", *policies, *beside, "verdict")]
    for layer, row in falls.items():
        values = [row.get(policy, math.nan) for policy in policies]
        cells = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        cells += [column.get(layer, "-") for column in beside.values()]
        lines.append((layer, *cells, verdicts.get(layer, "-")))
    return _aligned(lines, text=(0, len(lines[0]) - 1))


def _aligned(lines: Sequence[Sequence[str]], text: Collection[int] = (0,)) -> str:
    """Align cells in columns: text to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in text else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
