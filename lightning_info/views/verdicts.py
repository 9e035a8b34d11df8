"""What runs found in words: the table at their end, their verdicts and warnings, and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_info.reporting.closing_table import Row, closing_table
from lightning_info.reporting.description import Description
from lightning_info.run_logs.groups import RunGroup
from lightning_info.run_logs.run_log import RunLog
from lightning_info.run_logs.run_texts import result, sections
from lightning_info.run_logs.tags import is_uncertainty, ours
from lightning_info.views.curves import LATER
from lightning_info.views.doubts import doubts
from lightning_info.views.panel import Contents, Panel, Plan, Table
from lightning_info.views.words import Words, words

TITLE = "Verdicts"
MOST_RUNS = 12
FOUND = Words(
    "What each curve did and what that means, as the run itself printed it at its end, with its verdicts.",
    "A run that has not ended, and one that was logged to CSV, has none: then the table is made of its curves.",
    "One run is no evidence: train several seeds and look at the comparison.",
)
CARE = Words(
    "What in the runs' own numbers says that some of them are to be read with care.",
    "Each line names the numbers and the reason.",
    "That nothing is said here is no proof: read beside every chart when not to trust it.",
)


def plans(contents: Contents) -> list[Plan]:
    """What was found, what to read with care, how it was measured."""
    tags = frozenset(contents.tags)
    return [
        Plan("doubts", "Read with care", tags, _doubts, with_texts=True, most_runs=MOST_RUNS),
        Plan("found", "What the runs found", tags, _found, with_texts=True, most_runs=MOST_RUNS),
        Plan("measured", "How it was measured", frozenset(), _measured, with_texts=True, most_runs=MOST_RUNS),
    ]


def found_in_words(run: RunLog) -> str:
    """The table and verdicts of the end; of a run without them, the table of its curves."""
    return result(run) or closing_table(_rows(run))


def _rows(run: RunLog) -> list[Row]:
    rows = []
    for name, tag in ours(run.curves, run.descriptions).items():
        if not is_uncertainty(tag) and tag.kind not in LATER:
            told = words([run], name)
            known = _description(told)
            errors = list(run.errors(name).items())
            rows.append(Row(tag.quantity, tag.layer, run.curves[name], errors, known))
    return rows


def _description(told: Words) -> Description | None:
    if not told.what:
        return None
    rises, _, falls = told.reading.removeprefix("A rise: ").partition(" A fall: ")
    return Description(told.what.rstrip("."), told.unit, rises.rstrip("."), falls.rstrip("."))


def _runs(groups: Sequence[RunGroup]) -> tuple[list[RunLog], list[str]]:
    runs = [run for group in groups for run in group.runs]
    left = len(runs) - MOST_RUNS
    return runs[:MOST_RUNS], [f"{left} more runs are left out; choose fewer."] if left > 0 else []


def _found(groups: Sequence[RunGroup]) -> Panel:
    runs, notes = _runs(groups)
    texts = [(run.name, found_in_words(run)) for run in runs if run.ours]
    return Panel("What the runs found", words=FOUND, notes=notes, texts=texts)


def _doubts(groups: Sequence[RunGroup]) -> Panel:
    runs, notes = _runs(groups)
    said: dict[str, list[str]] = {}
    for run in runs:
        for sentence in doubts(run):
            said.setdefault(sentence, []).append(run.name)
    rows = [[_named(names, len(runs)), sentence] for sentence, names in said.items()]
    table = Table(["runs", "what to read with care"], rows) if rows else None
    return Panel("Read with care", words=CARE, notes=notes if rows else [*notes, "Nothing was found."], table=table)


def _measured(groups: Sequence[RunGroup]) -> Panel:
    runs, notes = _runs(groups)
    texts = [(f"{run.name}: {one.title}", one.rows) for run in runs for one in sections(run)]
    said = Words("What each callback said before the first step: samples, steps, engine, settings and warnings.")
    notes = notes if texts else [*notes, "These runs have no text in their logs (CSV has none)."]
    return Panel("How it was measured", words=said, notes=notes, texts=texts)


def _named(names: Sequence[str], of: int) -> str:
    if len(names) == of > 1:
        return "all"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
