"""Every quantity as a curve with its 95 % band, the run's own loss and accuracy below it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lightning_info.figures.interactive.banded_curves import Below, Line, banded_curves
from lightning_info.run_logs.groups import RunGroup, banded
from lightning_info.run_logs.tags import FAMILIES, parsed, uncertainties
from lightning_info.views.panel import Contents, Panel, Plan
from lightning_info.views.words import words

TITLE = "Curves"
MOST_LINES = 60
MOST_BELOW = 3
"""Curves of the user's own in a panel below."""

LATER = ("overhead", "coverage", "twin_overhead", "beta", "lambda", "temperature")
"""Kinds that tell of the measurement rather than of the net."""


def plans(contents: Contents) -> list[Plan]:
    """A panel for each quantity; at the end those of the measurement itself, and those that there are in one range too.

    The early points of ``info_plane/I_XT`` are in finer bins than those of ``info_plane_final/I_XT``.
    """
    below, found = companions(contents), []
    own = [tag for tags in below.values() for tag in tags]
    ordered = sorted(contents.quantities.items(), key=rank)
    ordered.sort(key=lambda item: final_of(item[1][0]) in contents.quantities)
    for quantity, tags in ordered:
        needed = frozenset([*tags, *(end for tag in tags for end in uncertainties(tag)), *own])
        found.append(Plan(quantity, quantity, needed, partial(panel, quantity, tags, below)))
    return found


def panel(quantity: str, tags: Sequence[str], below: dict[str, list[str]], groups: Sequence[RunGroup]) -> Panel:
    """The curves of a quantity, of all its layers.

    Args:
        quantity: Its name.
        tags: Of it, in the order of depth.
        below: Titles and tags of the user's own curves.
        groups: Runs.
    """
    told = words((run for group in groups for run in group.runs), tags[0])
    found = [line for tag in tags for line in lines_of(groups, tag, layer_of(tag))]
    shown = found[:MOST_LINES]
    notes = (
        [f"{len(found) - len(shown)} more curves are left out; choose fewer runs."] if len(found) > MOST_LINES else []
    )
    notes += [band_note(groups, len(shown) > 0)]
    parts = [
        Below(title, [line for tag in own for line in lines_of(groups, tag, tag)][: MOST_LINES // 2])
        for title, own in below.items()
    ]
    parts = [part for part in parts if part.lines]
    figure = banded_curves(shown, f"{quantity} [{told.unit}]" if told.unit else quantity, parts)
    return Panel(quantity, figure, told, [note for note in notes if note])


def lines_of(groups: Sequence[RunGroup], tag: str, layer: str) -> list[Line]:
    """The curve of a tag in each group that has it."""
    found = []
    for group in groups:
        curve = banded(group, tag)
        if curve is not None:
            found.append(Line(group.name, layer, curve.steps, curve.values, curve.low, curve.high, curve.epochs))
    return found


def layer_of(tag: str) -> str:
    """Layer of a tag of ours, or of a quantity of the user's own."""
    known = parsed(tag)
    return known.layer if known else tag.partition("/")[2].partition("/")[2]


def final_of(tag: str) -> str:
    """The quantity that has a tag's curve in one range of bins, if there is one."""
    known = parsed(tag)
    return known._replace(family=f"{known.family}_final").quantity if known else ""


def companions(contents: Contents) -> dict[str, list[str]]:
    """Losses and accuracies of the user's own, by the title of their panel."""
    kinds = {"loss": ("loss", "nll", "perplexity"), "accuracy": ("acc", "f1", "auroc", "auc", "error")}
    found = {}
    for title, names in kinds.items():
        tags = [tag for tag in contents.users if any(name in tag.lower() for name in names)]
        epochs = [tag for tag in tags if not tag.endswith("_step")] or tags
        if epochs:
            found[title] = sorted(epochs, key=lambda tag: (len(tag), tag))[:MOST_BELOW]
    return found


def band_note(groups: Sequence[RunGroup], is_any: bool = True) -> str:
    """What the band is of."""
    most = max((len(group.runs) for group in groups), default=0)
    if not is_any or not most:
        return ""
    if most == 1:
        return "Bands: 95 % of the measurement's own error, where it is known; another seed may differ by more."
    return f"Means over up to {most} runs of a group, with the 95 % band of the mean (Student's t)."


def rank(item: tuple[str, list[str]]) -> tuple[bool, int, bool, str]:
    """Place of a quantity and its tags among others: the measurement itself last, families in their order."""
    known = parsed(item[1][0])
    if known is None:
        return False, len(FAMILIES), False, item[0]
    family = next(i for i, name in enumerate(FAMILIES) if known.family == name or known.family.startswith(f"{name}_"))
    return known.kind in LATER, family, known.family != FAMILIES[family], ""
