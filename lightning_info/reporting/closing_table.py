"""The table printed at the end of fit: what was measured and what it means, within 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_info.reporting.description import Description
from lightning_info.reporting.table import Curve, lost_since

WIDTH = 79
TITLE = 28
"""Width of a row's title, plus what the first number leaves free; a longer title has its own line."""
COLUMNS = ("start", "peak (step)", "end", "± stderr")
WIDTHS = (10, 18, 10, 8)
STEADY, FOLD = 0.05, 1.5
"""Relative change below which there is no sentence, and ratio from which on the ratio is stated."""


@dataclass(frozen=True)
class Row:
    """One curve of the table.

    Attributes:
        group: What it shares with the rows that are described together: the tag, without the layer if it has one.
        title: What distinguishes it in the group, such as the layer; empty if it is alone.
        curve: Steps and values.
        error: Steps and standard errors; empty if there are none.
        description: Its meaning, if that is known.
    """

    group: str
    title: str
    curve: Curve
    error: Curve = ()
    description: Description | None = None


def closing_table(rows: Sequence[Row]) -> str:
    """Return start, peak and end of each curve with the error of the end, and a sentence on what it did and means.

    Rows of one group (a quantity by layer) follow one another below the group's name, with one sentence for all.

    Args:
        rows: The rows in their order; those of a group are put together.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    lines = [_line("", COLUMNS)]
    for name, members in groups.items():
        known = members[0].description
        unit = f" [{known.unit}]" if known and known.unit else ""
        told = _sentences(members)
        if len(members) == 1 and not members[0].title:
            cells = _cells(members[0])
            if _fits(name + unit, cells):
                lines.append(_line(name + unit, cells))
            else:
                lines.append(_line(name, cells))
                told = f"{unit} {told}".lstrip()
        else:
            lines.append(f"{name}{unit}")
            lines += [_line(f"  {row.title}", _cells(row)) for row in members]
        lines += textwrap.wrap(told, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def within_width(line: str) -> list[str]:
    """Wrap a line of text to 79 columns; a table row, which has two consecutive spaces, stays as it is."""
    return [line] if "  " in line.strip() or not line else textwrap.wrap(line, WIDTH)


def _line(title: str, cells: Sequence[str]) -> str:
    if not _fits(title, cells):
        return f"{title}\n{_line('', cells)}"
    numbers = " " * TITLE + _numbers(cells)
    return title + numbers[len(title) :].rstrip()


def _fits(title: str, cells: Sequence[str]) -> bool:
    """Tell whether there is a space between a title and the first number behind it in one line."""
    numbers = _numbers(cells)
    return len(title) < TITLE + len(numbers) - len(numbers.lstrip())


def _numbers(cells: Sequence[str]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def _cells(row: Row) -> tuple[str, ...]:
    curve = _finite(row.curve)
    if not curve:
        return ("-", "-", "-", "-")
    step, peak = max(curve, key=lambda point: point[1])
    end_step, end = curve[-1]
    is_lost = lost_since(row.curve) is not None
    error = math.nan if is_lost else dict(row.error).get(end_step, math.nan)
    return (
        f"{curve[0][1]:.4g}",
        f"{peak:.4g} ({step})",
        "lost" if is_lost else f"{end:.4g}",
        f"{error:.2g}" if math.isfinite(error) else "-",
    )


def _sentences(rows: Sequence[Row]) -> str:
    """Say what the curves of a group did, and what that means."""
    moves: dict[str, list[Row]] = {}
    for row in rows:
        moves.setdefault(_kind(row), []).append(row)
    return " ".join(_sentence(kind, members, len(members) == len(rows)) for kind, members in moves.items())


def _sentence(kind: str, rows: Sequence[Row], are_all: bool) -> str:
    known, several = rows[0].description, len(rows) > 1
    if not are_all or several:
        return _of_layers(kind, rows, are_all)
    if kind in ("rose", "fell"):
        meaning = (known.rises if kind == "rose" else known.falls) if known else ""
        told = f"{kind.capitalize()} {_by(rows[0])}{_peak(rows[0])}"
        return f"{told}: {meaning}." if meaning else f"{told}."
    if kind == "steady":
        return f"It ends where it started{_peak(rows[0])}."
    if kind == "lost":
        last_step, last = _finite(rows[0].curve)[-1]
        since = f"since step {lost_since(rows[0].curve)} (the last is {last:.4g}, at step {last_step})"
        return f"It is lost {since}; the warnings tell why."
    return "It has one point only." if kind == "one point" else "It has no value at any point; the warnings tell why."


def _of_layers(kind: str, rows: Sequence[Row], are_all: bool) -> str:
    """Say the same for several layers; the amounts are in their rows."""
    known = rows[0].description
    subject = "All" if are_all else ", ".join(row.title for row in rows)
    if kind in ("rose", "fell"):
        meaning = (known.rises if kind == "rose" else known.falls) if known else ""
        return f"{subject} {kind}: {meaning}." if meaning else f"{subject} {kind}."
    if kind == "lost":
        return f"{subject} lost since step {min(lost_since(row.curve) or 0 for row in rows)} (see the warnings)."
    return f"{subject}: {'steady' if kind == 'steady' else f'{kind} only' if kind == 'one point' else kind}."


def _kind(row: Row) -> str:
    """Tell whether the curve rose or fell after its first point, stayed, or is lost."""
    curve = _finite(row.curve)
    if not curve:
        return "no value"
    if lost_since(row.curve) is not None:
        return "lost"
    if len(curve) == 1:
        return "one point"
    (_, start), (step, end) = curve[0], curve[-1]
    error = dict(row.error).get(step, 0.0)
    noise = max(STEADY * max(abs(start), abs(end)), 2 * error if math.isfinite(error) else 0.0)
    return "steady" if abs(end - start) <= noise else "rose" if end > start else "fell"


def _peak(row: Row) -> str:
    """Return the text about the peak, if it is well above both ends."""
    curve = _finite(row.curve)
    step, peak = max(curve, key=lambda point: point[1])
    is_above = peak > max(curve[0][1], curve[-1][1]) + STEADY * abs(peak)
    return f" after a peak of {peak:.4g} at step {step}" if is_above else ""


def _by(row: Row) -> str:
    """Return the amount of a change: a ratio if both ends are well above zero, else a difference."""
    ends = _finite(row.curve)[0][1], _finite(row.curve)[-1][1]
    if min(ends) > 0 and max(ends) >= FOLD * min(ends):
        return f"{max(ends) / min(ends):.3g}-fold"
    return f"by {abs(ends[1] - ends[0]):.3g}"


def _finite(curve: Curve) -> Curve:
    return [(step, value) for step, value in curve if math.isfinite(value)]


def parts_of(tag: str) -> tuple[str, str]:
    """Return the group of a tag without prefix, and its layer: ``("info_plane/I_XT", "net.0")``."""
    family, _, rest = tag.partition("/")
    kind, _, layer = rest.partition("/")
    return f"{family}/{kind}", layer
