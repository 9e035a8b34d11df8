"""Where in the network a quantity sits: its parts by module over training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lightning_info.figures.interactive.layer_heat_map import MOST_MAPS, layer_heat_map
from lightning_info.run_logs.groups import RunGroup, banded
from lightning_info.views.curves import layer_of
from lightning_info.views.panel import Contents, Panel, Plan, shown_pictures
from lightning_info.views.words import Words, words

TITLE = "By module"
MOST_STEPS = 200
READING = (
    "Modules from top to bottom in the order of depth, steps to the right; a light field is a large part. The colours "
    "go by the logarithm; hover over a field for its value."
)
MISSING = (
    "Runs have the values behind these pictures, to move over and to compare, if the callback was given per_layer=True."
)


def plans(contents: Contents) -> list[Plan]:
    """A panel for each quantity that is a sum over modules, and the pictures that the runs drew."""
    found = []
    for quantity, tags in contents.quantities.items():
        if contents.tags[tags[0]].family.endswith("_layers"):
            make = partial(panel, quantity, tags)
            found.append(Plan(quantity, f"{quantity} by module", frozenset(tags), make, points=MOST_STEPS))
    pictures = frozenset(tag for tag in contents.pictures if tag.endswith("/layers"))
    if pictures:
        title = "As the runs drew it"
        make = partial(_pictures, title, pictures, MISSING if not found else "")
        found.append(Plan("pictures", title, frozenset(), make, pictures))
    return found


def panel(quantity: str, tags: Sequence[str], groups: Sequence[RunGroup]) -> Panel:
    """The map of a quantity in each group.

    Args:
        quantity: Its name.
        tags: Of its parts, in the order of depth.
        groups: Runs; of several in a group the mean.
    """
    told = words((run for group in groups for run in group.runs), tags[0])
    maps = {}
    for group in groups:
        curves = {layer_of(tag): banded(group, tag) for tag in tags}
        maps[group.name] = {
            layer: list(zip(curve.steps, curve.values.tolist(), strict=True))
            for layer, curve in curves.items()
            if curve is not None
        }
    notes = [f"The first {MOST_MAPS} of {len(groups)} groups are drawn."] if len(groups) > MOST_MAPS else []
    said = Words(told.what, f"{READING} {told.reading}".strip(), told.caution, told.unit)
    return Panel(f"{quantity} by module", layer_heat_map(maps, told.unit), said, notes)


def _pictures(title: str, tags: frozenset[str], note: str, groups: Sequence[RunGroup]) -> Panel:
    return Panel(title, notes=[note] if note else [], pictures=shown_pictures(groups, tags))
