"""The planes of information: input to the right, label or a nuisance upwards, to move through over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lightning_info.figures.interactive.information_plane import MOST_STOPS, PlanePath, information_plane
from lightning_info.run_logs.groups import BandedCurve, RunGroup, banded, thinned
from lightning_info.run_logs.run_texts import ceilings
from lightning_info.run_logs.tags import Tag, uncertainties
from lightning_info.views.curves import rank
from lightning_info.views.panel import Contents, Panel, Plan, shown_pictures
from lightning_info.views.words import Words, words

TITLE = "Planes"
FINAL, SHUFFLED, DECODER = "_final", "info_plane_shuffled", "info_plane_decoder"
READING = (
    "Move the slider, or play it, to follow training. To the right: the layer tells more samples apart. Upwards: it "
    "tells more of the label. Down the layers neither can grow for the exact quantities."
)
BASELINE = " The short bars mark what shuffled labels give: only what lies above them is of the label."
GREY_NOTE = "Grey layers lie within 1 bit of the ceiling at every point: almost every sample has a code of its own."

Array = NDArray[np.float64]


def plans(contents: Contents) -> list[Plan]:
    """A panel for each family with information about the input, and each kind of information about the rest."""
    kinds: dict[tuple[str, str], dict[str, list[Tag]]] = {}
    for _, tags in sorted(contents.quantities.items(), key=rank):
        for tag in (contents.tags[name] for name in tags):
            if tag.kind.startswith("I_") and tag.layer and tag.family != SHUFFLED:
                family = tag.family.removesuffix(FINAL)
                kinds.setdefault((tag.prefix, family), {}).setdefault(tag.kind, []).append(tag)
    found = []
    for (prefix, family), of in kinds.items():
        x = next((kind for kind in of if kind.startswith("I_X")), None)
        source = family
        if x is None:  # of another estimator, whose information about the input is that of the first family
            root = next((name for pre, name in kinds if pre == prefix and family.startswith(f"{name}_")), None)
            source = root or family
            x = next((kind for kind in kinds.get((prefix, source), {}) if kind.startswith("I_X")), None)
        for y in of:
            if x is not None and not y.startswith("I_X"):
                layers = list(dict.fromkeys(tag.layer for tag in of[y]))
                name = f"{prefix}{family}/{y}"
                needed = _needed(prefix, source, x, layers) | _needed(prefix, family, y, layers)
                needed |= {f"{prefix}{SHUFFLED}/{y}/{layer}" for layer in layers}
                make = partial(panel, prefix, source, family, x, y, layers)
                found.append(
                    Plan(
                        name, _title(prefix, family, y), frozenset(needed), make, with_texts=True, points=2 * MOST_STOPS
                    )
                )
    found.sort(key=lambda plan: not plan.name.endswith(f"{DECODER}/I_TY"))  # the label without bins comes first
    pictures = frozenset(tag for tag in contents.pictures if tag.rpartition("/")[2].startswith("plane"))
    if pictures:
        drawn = "Planes as the runs drew them"
        found.append(Plan("pictures", drawn, frozenset(), partial(_pictures, drawn, pictures), pictures))
    return found


def panel(
    prefix: str, source: str, family: str, x: str, y: str, layers: Sequence[str], groups: Sequence[RunGroup]
) -> Panel:
    """One plane.

    Args:
        prefix: Of the tags.
        source: Family of the information about the input.
        family: Of the information upwards.
        x: Kind of the former.
        y: Kind of the latter.
        layers: In the order of depth.
        groups: Runs.
    """
    curves = {group.name: _curves(prefix, source, family, x, y, layers, group) for group in groups}
    steps = sorted(
        {step for of in curves.values() for pair in of.values() for curve in pair[:2] for step in curve.steps}
    )
    stops = thinned(steps, MOST_STOPS)
    tops = [ceilings(run, family) for group in groups for run in group.runs]
    top_x, top_y = (max((one[i] for one in tops), default=math.inf) for i in (0, 1))
    bit = max((one.bit for one in tops), default=1.0)
    log, is_entropy = ("log2" if bit == 1 else "log"), all(one.is_entropy for one in tops)
    top_y = top_y if y.endswith("Y") else math.inf
    paths = []
    for group in groups:
        for layer, (across, up, chance) in curves[group.name].items():
            is_grey = math.isfinite(top_x) and bool((across.values[np.isfinite(across.values)] > top_x - bit).all())
            name = f"{layer} · {group.name}" if len(groups) > 1 else layer
            at = [_at(part, stops) for part in (across, up)]
            baseline = np.full(len(stops), math.nan) if chance is None else _at(chance, stops)[0]
            paths.append(PlanePath(name, group.name, at[0][0], at[1][0], at[0][1], at[1][1], baseline, is_grey))
    runs = [run for group in groups for run in group.runs]
    first = f"{prefix}{source}/{x}/{layers[0]}"
    told = [words(runs, name) for name in (f"{prefix}{source}{FINAL}/{x}/{layers[0]}", first)]
    said = next((one for one in told if one.what), Words())
    epochs = runs[0].epochs(stops) if runs and stops else None
    labels = [
        f"step {s}" if epochs is None else f"step {s} (epoch {e:.3g})"
        for s, e in zip(stops, epochs or stops, strict=True)
    ]
    unit = f" [{said.unit}]" if said.unit else ""
    figure = information_plane(
        paths,
        labels,
        x_title=f"{_symbol(x)}{unit}",
        y_title=f"{_symbol(y)}{unit}",
        ceiling_x=(top_x, f"{log} of the samples = {top_x:.4g}"),
        ceiling_y=(top_y, f"{'H(Y)' if is_entropy else f'{log} of the classes'} = {top_y:.4g}"),
    )
    has_baseline = any(np.isfinite(path.baseline).any() for path in paths)
    what = f"Each layer's path over training: {_symbol(x)} to the right, {_symbol(y)} upwards. {said.what}"
    notes = [GREY_NOTE] if any(path.is_grey for path in paths) else []
    if any(np.isfinite(path.x_half).any() or np.isfinite(path.y_half).any() for path in paths):
        several = any(curve.runs > 1 for of in curves.values() for pair in of.values() for curve in pair[:2])
        notes.append(f"Crosses: 95 % of {'the mean over runs' if several else 'the measurement'}.")
    return Panel(
        _title(prefix, family, y),
        figure,
        Words(what, READING + (BASELINE if has_baseline else ""), said.caution, said.unit),
        notes,
    )


def _curves(
    prefix: str, source: str, family: str, x: str, y: str, layers: Sequence[str], group: RunGroup
) -> dict[str, tuple[BandedCurve, BandedCurve, BandedCurve | None]]:
    """Both curves of each layer and the baseline; those of one range over all of training where every run has them."""
    found = {}
    for layer in layers:
        pair = []
        for of, kind in ((source, x), (family, y)):
            final, live = (f"{prefix}{of}{end}/{kind}/{layer}" for end in (FINAL, ""))
            has_final = all(final in run.curves for run in group.runs)
            pair.append(banded(group, final if has_final else live))
        if pair[0] is not None and pair[1] is not None:
            found[layer] = (pair[0], pair[1], banded(group, f"{prefix}{SHUFFLED}/{y}/{layer}"))
    return found


def _at(curve: BandedCurve, stops: Sequence[int]) -> tuple[Array, Array]:
    """Values and halves of bands at the stops; between points straight, NaN beyond the ends."""
    known = np.isfinite(curve.values)
    steps = np.array(curve.steps)[known]
    if not len(steps):
        return np.full(len(stops), math.nan), np.full(len(stops), math.nan)
    half = ((curve.high - curve.low) / 2)[known]
    read = [np.interp(stops, steps, part, left=math.nan, right=math.nan) for part in (curve.values[known], half)]
    return read[0], read[1]


def _needed(prefix: str, family: str, kind: str, layers: Sequence[str]) -> set[str]:
    tags = [f"{prefix}{family}{end}/{kind}/{layer}" for end in (FINAL, "") for layer in layers]
    return {*tags, *(end for tag in tags for end in uncertainties(tag))}


def _symbol(kind: str) -> str:
    """``I_XT`` as ``I(X;T)``; of a nuisance with its name."""
    variables, _, of = kind.removeprefix("I_").partition("_")
    pair = f"I({variables[0]};{variables[1:]})"
    return f"{pair} of {of}" if of else pair


def _title(prefix: str, family: str, y: str) -> str:
    what = "Information plane" if family.startswith("info_plane") else "Effective plane"
    what = f"Nuisance plane ({_symbol(y)})" if "N" in y.removeprefix("I_").partition("_")[0] else what
    return f"{what}: {prefix}{family}"


def _pictures(title: str, tags: frozenset[str], groups: Sequence[RunGroup]) -> Panel:
    return Panel(title, pictures=shown_pictures(groups, tags))
