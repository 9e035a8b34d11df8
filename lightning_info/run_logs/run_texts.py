"""What the texts of a run say that its curves do not: how it was measured, on how many samples, and the verdicts."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.tags import parsed

GUIDE, RESULT = "lightning_info/how_to_read/text_summary", "lightning_info/result/text_summary"

_SECTION = re.compile(r"^### (?P<title>[^\n]*)\n(?P<words>.*?)```\n(?P<rows>.*?)\n```", re.MULTILINE | re.DOTALL)
_SAMPLES = re.compile(r"^\s*samples\s+(?:all )?(\d[\d,]*)", re.MULTILINE)
_OUTPUTS = re.compile(r"categorical outputs \((\d+),")
_ENTROPY = re.compile(r"^H\(Y\) = (\d[\d.e+-]*) (?:bits|nats):", re.MULTILINE)


class Section(NamedTuple):
    """What one callback said before the first step.

    Attributes:
        title: Its class.
        rows: What is measured, on which samples, when, by what, at what cost, and warnings, as it was printed.
    """

    title: str
    rows: str

    @property
    def samples(self) -> int | None:
        """Number of reference samples, if it is told."""
        found = _SAMPLES.search(self.rows)
        return int(found[1].replace(",", "")) if found else None

    @property
    def classes(self) -> int | None:
        """Number of classes of a categorical prediction, if it is told."""
        found = _OUTPUTS.search(self.rows)
        return int(found[1]) if found else None


def sections(run: RunLog) -> list[Section]:
    """What the callbacks of a run said of themselves; none in an old run, and none in CSV."""
    return [Section(found["title"], found["rows"]) for found in _SECTION.finditer(run.texts.get(GUIDE, ""))]


def result(run: RunLog) -> str:
    """The table and the verdicts of the end of fit, as they were printed; empty where there are none."""
    return run.texts.get(RESULT, "").strip().removeprefix("```").removesuffix("```").strip("\n")


class Ceilings(NamedTuple):
    """Highest possible information of a plane, in the unit of its curves; infinite where it is not told.

    Attributes:
        x: About the input: the logarithm of the number of samples.
        y: About the label: the entropy of the labels, or before the end of a run the logarithm of the classes.
        is_entropy: Whether it is the former.
        bit: One bit in that unit.
    """

    x: float = math.inf
    y: float = math.inf
    is_entropy: bool = False
    bit: float = 1.0


def ceilings(run: RunLog, family: str) -> Ceilings:
    """Highest possible information about input and label of a plane.

    Args:
        run: The run.
        family: Of the plane's tags, without prefix.
    """
    if not family.startswith("info_plane"):  # lower bounds have no ceiling of their own
        return Ceilings()
    tags = (tag for tag in run.descriptions if (known := parsed(tag)) and known.family.startswith("info_plane"))
    bit = math.log(2) if any("[nats]" in run.descriptions[tag] for tag in tags) else 1.0
    told = next((one for one in sections(run) if one.title.startswith("InfoPlane")), None)
    x = math.log2(told.samples) * bit if told and told.samples else math.inf
    entropies = [float(found) for found in _ENTROPY.findall(result(run))]  # of several planes the highest
    y = math.log2(told.classes) * bit if told and told.classes else math.inf
    return Ceilings(x, max(entropies, default=y), bool(entropies), bit)
