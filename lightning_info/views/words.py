"""What is said beside a chart, out of the descriptions that quantities have and that runs carry with them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from lightning_info.reporting.description import Description, describe
from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.tags import parsed

_PARTS = re.compile(
    r"(?P<what>.*?)(?: \[(?P<unit>[^\]]+)\])?\.(?: A rise: (?P<rises>.*?)\.)?(?: A fall: (?P<falls>.*?)\.)?"
    r"(?: (?P<caution>.*))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Words:
    """What a chart shows.

    Attributes:
        what: It is, in a sentence.
        reading: How to read it.
        caution: When not to trust it.
        unit: Of its values.
    """

    what: str = ""
    reading: str = ""
    caution: str = ""
    unit: str = ""


def words(runs: Iterable[RunLog], tag: str) -> Words:
    """Of a tag: what the first run says that says something, else what its quantity's description says."""
    text = next((run.descriptions[tag] for run in runs if run.descriptions.get(tag)), "")
    if not text:
        known = description(tag)
        return Words() if known is None else _of(known)
    found = _PARTS.fullmatch(text)
    if found is None:
        return Words(what=text)
    parts = {name: part or "" for name, part in found.groupdict().items()}
    return _of(Description(**parts))


def description(tag: str) -> Description | None:
    """Of a tag of ours, whatever its prefix."""
    known = parsed(tag)
    return None if known is None else describe(_descriptions(), known.plain)


def _of(known: Description) -> Words:
    reading = []
    if known.rises:
        reading.append(f"A rise: {known.rises}.")
    if known.falls:
        reading.append(f"A fall: {known.falls}.")
    return Words(f"{known.what}.", " ".join(reading), known.caution, known.unit)


@cache
def _descriptions() -> dict[str, Description]:
    """Of all quantities."""
    from lightning_info.quantities.effective_information.descriptions import DESCRIPTIONS as EFFECTIVE
    from lightning_info.quantities.fisher_trace.descriptions import DESCRIPTIONS as FISHER
    from lightning_info.quantities.gradient_noise.descriptions import DESCRIPTIONS as NOISE
    from lightning_info.quantities.information_plane.descriptions import DESCRIPTIONS as PLANE
    from lightning_info.quantities.stability.descriptions import DESCRIPTIONS as STABILITY
    from lightning_info.quantities.weight_information.descriptions import DESCRIPTIONS as WEIGHTS

    return {**FISHER, **PLANE, **WEIGHTS, **EFFECTIVE, **STABILITY, **NOISE}
