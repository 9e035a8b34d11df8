"""Common part of scripts whose claims are judged as those of ``examples/saxe2018``: run, print, save."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1] / "saxe2018"))

from claims import Claim, report

__all__ = ["Claim", "Result", "finish", "main", "parser", "save"]


class Result(NamedTuple):
    """Result of one figure or statement.

    Attributes:
        claims: Claims with the measured values.
        figure: The figure.
        runs: Seeds and lengths of the runs.
        told: Further numbers, as text.
    """

    claims: list[Claim]
    figure: Figure
    runs: str
    told: str = ""


def main(
    doc: str, run: Callable[[int, bool, Path], Result], name: str, seeds: int, argv: list[str] | None = None
) -> None:
    """Run a script: ``run(seeds, full, out)``."""
    arguments = parser(doc, seeds).parse_args(argv)
    finish(run(arguments.seeds, arguments.full, arguments.out), name, arguments)


def parser(doc: str, seeds: int) -> argparse.ArgumentParser:
    """Return the argument parser of a script."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seeds", type=int, default=seeds, help=f"how many repetitions (default {seeds})")
    found.add_argument("--full", action="store_true", help="longer runs: minutes")
    found.add_argument("--out", type=Path, default=Path("runs/achille2020"), help="folder of figures and results")
    return found


def finish(result: Result, name: str, arguments: argparse.Namespace) -> None:
    """Print a result, and save it."""
    print(f"{result.runs}\n{result.told}\n{report(result.claims)}")
    print(f"Figure: {save(result, name, arguments.out, arguments.full)}")


def save(result: Result, name: str, out: Path, full: bool) -> Path:
    """Write ``<name>.png``, and the claims to ``<name>.json`` in the form of ``examples/saxe2018/script.py``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    result.figure.savefig(path, dpi=120)
    told = {
        "length": "full" if full else "quick",
        "runs": result.runs,
        "claims": [asdict(claim) for claim in result.claims],
    }
    path.with_suffix(".json").write_text(json.dumps(told, indent=1))
    return path
