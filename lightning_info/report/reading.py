"""The runs that a command names: folders with event files of TensorBoard or with CSV logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_info.run_logs.csv_logs import csv_runs
from lightning_info.run_logs.provided import ProvidedRuns, of_folders
from lightning_info.run_logs.run_log import RunLog


def read_runs(paths: Sequence[Path]) -> tuple[list[RunLog], ProvidedRuns]:
    """Runs below some folders that have values of our callbacks, and where their pictures are read from.

    A run that has written both event files and CSV is read from the former.

    Args:
        paths: Folders: of a run, or of many.

    Raises:
        ValueError: There is none; the message tells what was looked for.
        OSError: A path is no folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"report: {path} is no folder; give the folder of a run, or one with many runs in it")
    names = _names(paths)
    provided = of_folders(dict(zip(names, paths, strict=True)))
    logs = {run.name: run for run in provided.logs()}
    for name, path in zip(names, paths, strict=True):
        for run in csv_runs(name, path):
            logs.setdefault(run.name, run)
    found = [_whole_name(run, paths) for run in logs.values() if run.ours]
    if not found:
        there = f"{len(logs)} runs, none with values of lightning_info" if logs else "no run"
        raise ValueError(
            f"report: in {', '.join(map(str, paths))} there is {there}; give folders with events.out.tfevents... files "
            f"or with metrics.csv"
        )
    return sorted(found, key=lambda run: run.name), provided


def _names(paths: Sequence[Path]) -> list[str]:
    """What the names of runs begin with: nothing for a single path, else its last parts, as many as keep them apart."""
    if len(paths) == 1:
        return [""]
    parts = [path.resolve().parts for path in paths]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-size:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"report: {paths[0]} is given twice; give each folder once")


def _whole_name(run: RunLog, paths: Sequence[Path]) -> RunLog:
    """A run with the name of its folder, where TensorBoard calls it a dot."""
    name = run.name.removesuffix("/.")
    if name in ("", "."):
        name = paths[0].resolve().name
    return RunLog(name, run.curves, run.descriptions, run.texts, run.settings, run.pictures)
