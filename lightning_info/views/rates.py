"""The rate-distortion of the weights: the loss under noise against the nats that the weights hold, over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lightning_info.figures.interactive.rate_distortion import RatePath, rate_distortion
from lightning_info.run_logs.groups import RunGroup, banded
from lightning_info.run_logs.tags import uncertainties
from lightning_info.views.panel import Contents, Panel, Plan, shown_pictures
from lightning_info.views.words import Words, words

TITLE = "Rate-distortion"
LOSS, PREDICTED = "expected_loss", "predicted_loss"
INFORMATION = ("kl_precision", "kl")
READING = (
    "Each point is one measurement at the logged level of noise, dark at the start and light at the end of training. "
    "To the left the weights hold less; downwards the noise that this allows costs less. A cross is the loss as the "
    "quadratic approximation predicts it."
)
WHAT = "Loss of a sample under the weight noise that the task allows, against the information that the weights hold."


def plans(contents: Contents) -> list[Plan]:
    """A panel for each prefix, and the curves over all levels as the runs drew them."""
    found = []
    for tag in contents.tags.values():
        if tag.family == "weight_info" and tag.kind == LOSS and not tag.layer:
            start = f"{tag.prefix}weight_info/"
            tags = [f"{start}{kind}" for kind in (LOSS, PREDICTED, *INFORMATION)]
            needed = frozenset([*tags, *uncertainties(tags[0])])
            found.append(Plan(f"{start}path", "Over training", needed, partial(panel, start)))
    pictures = frozenset(tag for tag in contents.pictures if tag.endswith("/rate_distortion"))
    if pictures:
        title = "Over all levels of noise, as the runs drew it"
        found.append(Plan("pictures", title, frozenset(), partial(_pictures, title, pictures), pictures))
    return found


def panel(start: str, groups: Sequence[RunGroup]) -> Panel:
    """The path through the plane of each group.

    Args:
        start: Of the tags.
        groups: Runs.
    """
    kind = next((k for k in INFORMATION if any(f"{start}{k}" in run.curves for g in groups for run in g.runs)), "kl")
    paths = []
    for group in groups:
        loss, information, predicted = (banded(group, f"{start}{k}") for k in (LOSS, kind, PREDICTED))
        if loss is None or information is None:
            continue
        at = [
            np.full(len(loss.steps), np.nan) if curve is None else np.interp(loss.steps, curve.steps, curve.values)
            for curve in (information, predicted)
        ]
        paths.append(RatePath(group.name, loss.steps, at[0], loss.values, (loss.high - loss.low) / 2, at[1]))
    runs = [run for group in groups for run in group.runs]
    axis = f"information in the weights{', without displacement' if kind == 'kl_precision' else ''} [nats]"
    said = Words(WHAT, READING, words(runs, f"{start}{PREDICTED}").caution, "nats")
    return Panel(f"Over training: {start.rstrip('/')}", rate_distortion(paths, axis), said)


def _pictures(title: str, tags: frozenset[str], groups: Sequence[RunGroup]) -> Panel:
    return Panel(title, pictures=shown_pictures(groups, tags))
