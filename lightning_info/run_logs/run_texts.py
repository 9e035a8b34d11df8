"""What the texts of a run say that its curves do not: how it was measured, on how many samples, and the verdicts."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from lightning_info.run_logs.run_log import RunLog

GUIDE, RESULT = "lightning_info/how_to_read/text_summary", "lightning_info/result/text_summary"

_SECTION = re.compile(r"^### (?P<title>[^\n]*)\n(?P<words>.*?)```\n(?P<rows>.*?)\n```", re.MULTILINE | re.DOTALL)
_SAMPLES = re.compile(r"^\s*samples\s+(?:all )?(\d[\d,]*)", re.MULTILINE)
_OUTPUTS = re.compile(r"categorical outputs \((\d+),")


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


def ceilings(run: RunLog, family: str) -> tuple[float, float]:
    """Highest possible information about input and label of a plane, in its unit; infinite where it is not told.

    Args:
        run: The run.
        family: Of the plane's tags, without prefix.
    """
    if not family.startswith("info_plane"):  # lower bounds have no ceiling of their own
        return math.inf, math.inf
    told = next((one for one in sections(run) if one.title.startswith("InfoPlane")), None)
    if told is None:
        return math.inf, math.inf
    x = math.log2(told.samples) if told.samples else math.inf
    return x, math.log2(told.classes) if told.classes else math.inf
