"""Runs out of the files of Lightning's ``CSVLogger``."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from lightning_info.run_logs.run_log import RunLog

FILE, SETTINGS = "metrics.csv", "hparams.yaml"


def csv_runs(name: str, folder: Path) -> list[RunLog]:
    """Every ``metrics.csv`` in a folder and below it, as a run.

    Args:
        name: That the names of runs begin with.
        folder: The folder.
    """
    found = []
    for file in sorted(folder.rglob(FILE)):
        inner = file.parent.relative_to(folder).as_posix()
        run = "/".join(part for part in (name, inner) if part not in ("", "."))
        found.append(RunLog(run or folder.name, _curves(file), settings=_settings(file.with_name(SETTINGS))))
    return found


def _curves(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Of the columns; what is no number is passed over, so that a line that is being written does no harm."""
    curves: dict[str, list[tuple[int, float]]] = {}
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.get("step"))
            if step is None or not math.isfinite(step):
                continue
            for tag, text in row.items():
                value = _number(text) if isinstance(tag, str) and tag != "step" else None
                if value is not None:
                    curves.setdefault(tag, []).append((int(step), value))
    return curves


def _number(text: object) -> float | None:
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _settings(file: Path) -> dict[str, object]:
    import yaml  # type: ignore[import-untyped]  # that Lightning wrote it with

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # tags of Python objects are not followed
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
