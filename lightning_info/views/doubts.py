"""What in a run's own numbers says that some of them are to be read with care."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from lightning_info.reporting.table import lost_since
from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.run_texts import ceilings, sections
from lightning_info.run_logs.tags import Tag, is_uncertainty, ours

FULL, RATIO, NEAR, LARGE = 0.999, (0.67, 1.5), 1.0, 0.3
"""Coverage, ratio of two distances, bits to a ceiling, share of a value, from which on there is something to say."""

Tags = dict[str, Tag]


def doubts(run: RunLog) -> list[str]:
    """In sentences; empty if nothing speaks against the numbers of a run, which is no proof that they are right."""
    tags = {name: tag for name, tag in ours(run.curves, run.descriptions).items() if not is_uncertainty(tag)}
    return [sentence for check in _CHECKS for sentence in check(run, tags)]


def _lost(run: RunLog, tags: Tags) -> Iterable[str]:
    gone: dict[int, list[str]] = {}
    for name in tags:
        since = lost_since(run.curves[name])
        if since is not None:
            gone.setdefault(since, []).append(name)
    for since, names in sorted(gone.items()):
        yield f"{_few(names)}: no value from step {since} on. The warnings of the run tell why."


def _gaps(run: RunLog, tags: Tags) -> Iterable[str]:
    gaps = [
        name
        for name in tags
        if any(not math.isfinite(value) for _, value in run.curves[name]) and lost_since(run.curves[name]) is None
    ]
    if gaps:
        yield f"{_few(gaps)}: points without a value in between."


def _coverage(run: RunLog, tags: Tags) -> Iterable[str]:
    for name, tag in tags.items():
        if tag.family == "fisher" and tag.kind == "coverage":
            least = min((value for _, value in run.curves[name] if math.isfinite(value)), default=1.0)
            if least < FULL:
                yield f"{name} is {least:.3g}: the gradients of some weights are not exact for every sample."


def _at_ceiling(run: RunLog, tags: Tags) -> Iterable[str]:
    layers = []
    for name, tag in tags.items():
        top, *_, bit = ceilings(run, tag.family)
        values = [value for _, value in run.curves[name] if math.isfinite(value)]
        if tag.kind == "I_XT" and math.isfinite(top) and values and min(values) > top - NEAR * bit:
            layers.append(name)
    if layers:
        yield f"{_few(layers)}: within 1 bit of the ceiling throughout, which says nothing of the layer."


def _ranges(run: RunLog, tags: Tags) -> Iterable[str]:
    told = any("so far" in section.rows for section in sections(run) if section.title.startswith("InfoPlane"))
    if told and not any(tag.family.endswith("_final") for tag in tags.values()):
        yield "info_plane: until the run ends early points have finer bins than later ones, so a fall may be theirs."


def _quadratic(run: RunLog, tags: Tags) -> Iterable[str]:
    for name, tag in tags.items():
        values = [value for _, value in run.curves[name] if math.isfinite(value)]
        if tag.kind == "kl_ratio" and values and not RATIO[0] <= values[-1] <= RATIO[1]:
            yield f"{name} ends at {values[-1]:.3g}: the quadratic approximation behind unique_information fails."


def _predicted(run: RunLog, tags: Tags) -> Iterable[str]:
    for name, tag in tags.items():
        if tag.family == "weight_info" and tag.kind == "predicted_loss":
            measured = run.curves.get(name.replace("predicted_loss", "expected_loss"), ())
            both = [(a, b) for (_, a), (_, b) in zip(run.curves[name], measured, strict=False)]
            ends = both[-1] if both else (math.nan, math.nan)
            if abs(ends[0] - ends[1]) > LARGE * abs(ends[1]):
                yield (
                    f"{name} ends at {ends[0]:.3g} and the measured loss at {ends[1]:.3g}: the approximation behind "
                    f"the information in the weights fails at this level of noise."
                )


def _crossing(run: RunLog, tags: Tags) -> Iterable[str]:
    for name, tag in tags.items():
        values = [value for _, value in run.curves[name] if math.isfinite(value)]
        if tag.kind == "crossing" and values and max(values) > NEAR:
            yield f"{name} reaches {max(values):.3g} nats: some bounds of early layers are loose."


def _few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


_CHECKS: Sequence[Callable[[RunLog, Tags], Iterable[str]]] = (
    _lost,
    _gaps,
    _coverage,
    _at_ceiling,
    _ranges,
    _quadratic,
    _predicted,
    _crossing,
)
