"""What training owes to one sample: distances between a run and its twin, and their paths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lightning_info.figures.interactive.banded_curves import banded_curves
from lightning_info.run_logs.groups import RunGroup
from lightning_info.run_logs.tags import uncertainties
from lightning_info.views.curves import band_note, lines_of
from lightning_info.views.panel import Contents, Panel, Plan, shown_pictures
from lightning_info.views.words import Words, words

TITLE = "Stability"
PANELS = {
    "Predictions apart": ("output_kl", "fisher_distance"),
    "Weights apart": ("param_distance",),
    "As a share of the way that the weights went": ("relative_distance",),
    "What the run knows of the one sample": ("unique_information", "loss_gap"),
    "Whether the quadratic approximation holds": ("kl_ratio",),
}
"""Kinds that are read together, by title."""


def plans(contents: Contents) -> list[Plan]:
    """Panels of curves that are read together for each family, and the paths as the runs drew them."""
    starts = {f"{tag.prefix}{tag.family}/" for tag in contents.tags.values() if tag.family.startswith("stability")}
    found = []
    for start in sorted(starts):
        for title, kinds in PANELS.items():
            tags = [f"{start}{kind}" for kind in kinds if f"{start}{kind}" in contents.tags]
            if tags:
                needed = frozenset([*tags, *(end for tag in tags for end in uncertainties(tag))])
                whole = title if len(starts) == 1 else f"{title}: {start.rstrip('/')}"
                found.append(Plan(tags[0], whole, needed, partial(panel, whole, tags)))
    pictures = frozenset(tag for tag in contents.pictures if tag.endswith("/paths"))
    if pictures:
        title = "Paths of run and twin, as the runs drew them"
        found.append(Plan("pictures", title, frozenset(), partial(_pictures, title, pictures), pictures))
    return found


def panel(title: str, tags: Sequence[str], groups: Sequence[RunGroup]) -> Panel:
    """Curves of some tags in one chart.

    Args:
        title: Of the panel.
        tags: What is drawn.
        groups: Runs.
    """
    runs = [run for group in groups for run in group.runs]
    told = [words(runs, tag) for tag in tags]
    lines = [line for tag in tags for line in lines_of(groups, tag, tag.rpartition("/")[2] if len(tags) > 1 else "")]
    what = " ".join(one.what for one in told)
    caution = " ".join(dict.fromkeys(one.caution for one in told if one.caution))
    units = " or ".join(dict.fromkeys(one.unit for one in told if one.unit))
    said = Words(what, told[0].reading, caution, units)
    axis = f"{title.lower()} [{units}]" if units else title.lower()
    return Panel(title, banded_curves(lines, axis), said, [note for note in [band_note(groups, bool(lines))] if note])


def _pictures(title: str, tags: frozenset[str], groups: Sequence[RunGroup]) -> Panel:
    return Panel(title, pictures=shown_pictures(groups, tags))
