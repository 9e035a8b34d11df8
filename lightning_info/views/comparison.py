"""Seeds and settings beside each other: where each group of runs ended, and by how much groups differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from lightning_info.figures.interactive.ends import EndPoint, ends
from lightning_info.run_logs.groups import RunGroup, difference, ends_of, mean_end
from lightning_info.run_logs.tags import uncertainties
from lightning_info.views.curves import LATER, layer_of, rank
from lightning_info.views.panel import Contents, Panel, Plan, Table
from lightning_info.views.words import Words, words

TITLE = "Comparison"
READING = (
    "Diamonds are means over the runs of a group with their 95 % band, dots single runs. The table has each group's "
    "end, and by how much it lies above the first group: a band that leaves out 0 is a difference."
)
CAUTION = (
    "With one run in a group there is no error over seeds. Of many differences one in twenty leaves out 0 by chance."
)


def plans(contents: Contents) -> list[Plan]:
    """A panel for each quantity, and for the user's own losses and accuracies."""
    found = []
    for quantity, tags in sorted(contents.quantities.items(), key=rank):
        if contents.tags[tags[0]].kind not in LATER:
            needed = frozenset([*tags, *(end for tag in tags for end in uncertainties(tag))])
            found.append(Plan(quantity, quantity, needed, partial(panel, quantity, tags)))
    own = [tag for tag in contents.users if any(name in tag.lower() for name in ("loss", "acc"))]
    found += [Plan(tag, tag, frozenset([tag]), partial(panel, tag, [tag])) for tag in own[:6]]
    return found


def panel(quantity: str, tags: Sequence[str], groups: Sequence[RunGroup]) -> Panel:
    """Ends and differences of a quantity.

    Args:
        quantity: Its name.
        tags: Of it, those of its layers.
        groups: Runs.
    """
    told = words((run for group in groups for run in group.runs), tags[0])
    unit = f" [{told.unit}]" if told.unit else ""
    points, rows = [], []
    for tag in tags:
        layer = layer_of(tag) if len(tags) > 1 else ""
        for group in groups:
            end = mean_end(group, tag)
            if end is None:
                continue
            mean, half, count = end
            names = [run.name for run in group.runs if ends_of(RunGroup("", [run]), tag)]
            points.append(EndPoint(group.name, layer, mean, half, [v for v, _ in ends_of(group, tag)], names))
            apart = None if group is groups[0] else difference(group, groups[0], tag)
            by = "" if apart is None else told_with(*apart, sign="+")
            rows.append([*([layer] if layer else []), group.name, str(count), told_with(mean, half), by])
    columns = [*(["layer"] if len(tags) > 1 else []), "group", "runs", f"end ± 95 %{unit}", "above the first group"]
    said = Words(f"Where it ended. {told.what}".strip(), READING, f"{CAUTION} {told.caution}".strip(), told.unit)
    return Panel(quantity, ends(points, f"{quantity}{unit}"), said, table=Table(columns, rows) if rows else None)


def told_with(value: float, half: float, sign: str = "") -> str:
    """A value and its band, with as many digits as the band has meaning for."""
    if not math.isfinite(half):
        return f"{value:{sign}.4g}"
    if half == 0:
        return f"{value:{sign}.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(half)))
    if digits > 6 or half >= 1e5:
        return f"{value:{sign}.4g} ± {half:.2g}"
    return f"{value:{sign}.{digits}f} ± {half:.{digits}f}"
