"""Every number of a report for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_info.report.page import versions
from lightning_info.run_logs.groups import RunGroup, banded, difference, mean_end
from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.tags import is_uncertainty, ours
from lightning_info.views.doubts import doubts
from lightning_info.views.verdicts import found_in_words
from lightning_info.views.words import words


def numbers(groups: Sequence[RunGroup]) -> dict[str, Any]:
    """Plain values: of each run all points with errors, texts and doubts; of each group the means and their bands.

    Args:
        groups: Runs.

    Returns:
        ``runs``, ``groups``, ``differences`` and ``versions``; None stands for what is not finite or not known.
    """
    tags = list(
        dict.fromkeys(
            name
            for group in groups
            for run in group.runs
            for name, tag in ours(run.curves, run.descriptions).items()
            if not is_uncertainty(tag)
        )
    )
    users = list(dict.fromkeys(name for group in groups for run in group.runs for name in run.users))
    return {
        "versions": versions(),
        "runs": [_run(run, group.name) for group in groups for run in group.runs],
        "groups": [_group(group, [*tags, *users]) for group in groups],
        "differences": _differences(groups, [*tags, *users]),
    }


def _run(run: RunLog, group: str) -> dict[str, Any]:
    curves = []
    for name, tag in ours(run.curves, run.descriptions).items():
        if is_uncertainty(tag):
            continue
        told, errors = words([run], name), run.errors(name)
        points = [
            {"step": step, "value": _finite(value), "stderr": _finite(errors.get(step, math.nan))}
            for step, value in run.curves[name]
        ]
        curves.append({"tag": name, "unit": told.unit, "meaning": told.what, "points": points})
    for name, curve in run.users.items():
        curves.append({"tag": name, "points": [{"step": step, "value": _finite(value)} for step, value in curve]})
    return {
        "name": run.name,
        "group": group,
        "settings": {name: str(value) for name, value in run.settings.items()},
        "curves": curves,
        "verdicts": found_in_words(run),
        "doubts": doubts(run),
    }


def _group(group: RunGroup, tags: Sequence[str]) -> dict[str, Any]:
    curves, ends = [], []
    for tag in tags:
        curve, end = banded(group, tag), mean_end(group, tag)
        if curve is None or end is None:
            continue
        points = zip(curve.steps, curve.values, curve.low, curve.high, strict=True)
        curves.append(
            {
                "tag": tag,
                "runs": curve.runs,
                "points": [
                    {"step": s, "mean": _finite(v), "low": _finite(low), "high": _finite(high)}
                    for s, v, low, high in points
                ],
            }
        )
        ends.append({"tag": tag, "mean": _finite(end[0]), "half_band": _finite(end[1]), "runs": end[2]})
    return {"name": group.name, "runs": [run.name for run in group.runs], "ends": ends, "curves": curves}


def _differences(groups: Sequence[RunGroup], tags: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for group in groups[1:]:
        for tag in tags:
            apart = difference(group, groups[0], tag)
            if apart is not None:
                by, half = map(_finite, apart)
                found.append({"tag": tag, "group": group.name, "above": groups[0].name, "by": by, "half_band": half})
    return found


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
