"""The table of the cases, and a line about each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .case import CASES, Case

CALLBACKS = {
    "Fisher": "FisherTraceCallback",
    "plane": "InfoPlaneCallback",
    "weights": "WeightInfoCallback",
    "effective": "EffectiveInfoCallback",
    "stability": "StabilityCallback",
}
WRONG = 1e-3
"""Relative difference from the oracle from which a value counts as wrong."""
WORDS = {"measured": "yes", "part": "part", "nothing": "none", "refused": "no"}
PACKAGES = {"lightning": "Lightning"}
LONGEST = 420

INTRO = """# Runs nobody here wrote

Written by `python tests/benchmarks/runs.py` ({versions}): training modules of packages on PyPI, unmodified or in the
training step that the package documents, on small made-up data, for 4 to 40 steps. Every case is trained twice without
callbacks, with all five without arguments, with all five and an interval (step 0 and the end of fit; in runs that last
less than a second the time budget leaves out almost everything), and once more for the oracle.

- *as*: "is": as it is. "adapter": with the lines that the refusal asks for, where without them nothing that needs a
  likelihood is measured.
- *Fisher*, *plane*, *weights*, *effective*, *stability*: whether the callback measured. "part": some of its values, or
  not at every point; "no": it was refused with the reason below; "none": it ran and has no value.
- *error*: largest relative difference of the traces of F that `FisherTraceCallback(estimator="exact")` and
  `WeightInfoCallback` give for {samples} samples at the end of training from a brute force in plain autograd: each
  sample alone, one output at a time, float64, eval mode (of `WeightInfoCallback` where its F is exact; of the
  gradient of the loss where that is what `FisherTraceCallback` measures). "-": the loss is no likelihood of independent
  outputs, or nothing was measured.
- *same*: weights, buffers and the random states of torch, numpy and Python are bit by bit those of the run without
  callbacks ("=").
- *CPU s*: process time of the run without callbacks, with all five without arguments, and with the interval, one
  thread, figures for TensorBoard included. Runs this small show the fixed costs: the check at the start, step 0 and the
  end. In brackets how many of the five have a value without arguments.

{counts}

| module | from | field | loss | as | Fisher | plane | weights | effective | stability | error | same | CPU s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def line(case: Case, record: dict[str, Any]) -> str:
    """A row of the table."""
    if record.get("missing"):
        return f"{case.name}: not run, {record['missing']}"
    head = f"| {case.name} | {PACKAGES.get(case.package, case.package)} {record.get('version', '')} | {case.field} |"
    states = states_of(record)
    cells = [WORDS[states[name]["state"]] if name in states else "?" for name in CALLBACKS]
    error = max(errors_of(record), default=None)
    shown = "-" if error is None else f"{error:.0e}"
    return f"{head} {case.loss} | {way(record)} | {' | '.join(cells)} | {shown} | {same(record)} | {seconds(record)} |"


def way(record: dict[str, Any]) -> str:
    return "adapter" if record.get("adapter", {}).get("callbacks") else "is"


def states_of(record: dict[str, Any]) -> dict[str, Any]:
    """State of each callback, with the adapter where there is one."""
    return record.get("adapter", {}).get("callbacks") or record.get("with", {}).get("callbacks", {})


def errors_of(record: dict[str, Any]) -> list[float]:
    return list(record.get("oracle", {}).get("errors", {}).values())


def same(record: dict[str, Any]) -> str:
    """Whether training is bit-identical with and without callbacks, where it is without twice."""
    parts = ("control", "without", "bare", "with", "adapter", "oracle")
    prints = {name: record.get(name, {}).get("fingerprint") for name in parts}
    found = [value for name, value in prints.items() if value and name != "control"]
    if not prints["without"] or prints["control"] != prints["without"]:
        return "?"
    return "=" if set(found) == {prints["without"]} and len(found) > 1 else "≠"


def seconds(record: dict[str, Any]) -> str:
    parts = [record.get("without", {}), record.get("bare", {}), record.get("adapter") or record.get("with", {})]
    before, bare, after = (f"{one['seconds']:.1f}" if "seconds" in one else "?" for one in parts)
    states = [state["state"] for state in record.get("bare", {}).get("callbacks", {}).values()]
    return f"{before} → {bare} ({sum(state in ('measured', 'part') for state in states)}) → {after}"


def ended(record: dict[str, Any]) -> str:
    """What the callbacks, or the limit of time, ended."""
    for name in ("bare", "with", "adapter", "oracle"):
        if "raised" in record.get(name, {}):
            return record[name]["raised"]
    return f"{record['ended']} ({record.get('doing', '')})" if record.get("ended") else ""


def notes(case: Case, record: dict[str, Any]) -> list[str]:
    """Why something was not measured, one line for each reason."""
    found = []
    for name, told in (("with", ""), ("adapter", "with the adapter, ")):
        whys: dict[str, list[str]] = {}
        for callback, state in record.get(name, {}).get("callbacks", {}).items():
            if state["why"]:
                whys.setdefault(state["why"], []).append(callback)
        for why, callbacks in whys.items():
            who = "all" if len(callbacks) == len(CALLBACKS) else ", ".join(callbacks)
            short = why if len(why) <= LONGEST else f"{why[:LONGEST].rsplit(' ', 1)[0]} ..."
            found.append(f"- **{case.name}**, {told}{who}: {short}")
        for fault in record.get(name, {}).get("faults", []):
            found.append(f"- **{case.name}**, {told}traceback: {fault[:LONGEST]}")
    if raised := ended(record):
        found.append(f"- **{case.name}**: {raised[:LONGEST]}")
    return found


def counts(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """What is counted over all rows."""
    packages = {case.package for case, _ in rows}
    states = {name: Counter(states_of(r).get(name, {}).get("state", "?") for _, r in rows) for name in CALLBACKS}
    ways = Counter(outcome(record) for _, record in rows)
    adapted = sum(way(record) == "adapter" and outcome(record) != "nothing" for _, record in rows)
    compared = [max(errors_of(r)) for _, r in rows if errors_of(r)]
    known = [same(record) for _, record in rows]
    faults = sum(
        r.get(part, {}).get("tracebacks", 0) for _, r in rows for part in ("bare", "with", "adapter", "oracle")
    )
    wrong = [c.name for c, r in rows if any(not e <= WRONG for e in errors_of(r))]
    beyond = [c.name for c, r in rows if any(state.get("impossible") for state in states_of(r).values())]
    told = ", ".join(f"{name} {counted['measured'] + counted['part']}" for name, counted in states.items())
    return "\n".join([
        *([f"**So far {len(rows)} of {len(CASES)} cases have been run.**", ""] if len(rows) < len(CASES) else []),
        f"Of {len(rows)} runs of {len(packages)} packages, in {ways['whole']} all five callbacks measured, in "
        f"{ways['part']} some of them or a part of their values, in {ways['nothing']} none "
        f"({adapted} of the first two with an adapter). By callback: {told}.",
        "",
        f"- bit-identical: {known.count('=')} of {len(rows) - known.count('?')}",
        f"- compared with the oracle: {len(compared)}, the largest error {max(compared, default=0):.0e}; wrong by more "
        f"than {WRONG:g}: {', '.join(wrong) or 'none'}; outside the bounds of information: "
        f"{', '.join(beyond) or 'none'}",
        f"- runs ended by a callback or the limit of time: "
        f"{', '.join(c.name for c, r in rows if ended(r)) or 'none'}; tracebacks: {faults}",
    ])  # fmt: skip


def outcome(record: dict[str, Any]) -> str:
    """Of all five together: ``"whole"``, ``"part"`` or ``"nothing"``."""
    states = [state["state"] for state in states_of(record).values()]
    if states and set(states) == {"measured"}:
        return "whole"
    return "part" if {"measured", "part"} & set(states) else "nothing"


def table(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """The whole page."""
    from .child import SAMPLES

    torch_versions = sorted({record["torch"] for _, record in rows if "torch" in record})
    versions = f"torch {', '.join(torch_versions)}"
    lines = [line(case, record) for case, record in rows]
    reasons = [note for case, record in rows for note in notes(case, record)]
    head = INTRO.format(versions=versions, samples=SAMPLES, counts=counts(rows))
    return head + "\n".join(lines) + "\n\n## What was not measured, and what is said\n\n" + "\n".join(reasons) + "\n"
