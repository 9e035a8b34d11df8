"""Common part of the figures' scripts: run, print the comparison, write the figure to disk and to TensorBoard."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import training
from claims import Claim, report
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

RESULTS = Path(__file__).parents[2] / "runs" / "saxe2018"


class Result(NamedTuple):
    """Result of one figure.

    Attributes:
        claims: Claims with the measured values.
        figure: The figure, drawn like the paper's.
        runs: Seeds and lengths of the runs.
        trained: Whether anything was trained.
    """

    claims: list[Claim]
    figure: Figure
    runs: str
    trained: bool = True


class Saved(NamedTuple):
    """The part of a result that is saved.

    Attributes:
        length: ``"full"``, ``"quick"``, or ``"exact"`` if nothing is trained.
        runs: See ``Result``.
        claims: See ``Result``.
    """

    length: str
    runs: str
    claims: list[Claim]


def main(doc: str, run: Callable[[bool], Result], name: str) -> None:
    arguments = parser(doc).parse_args()
    training.OUT = arguments.out
    result = run(arguments.full)
    print(f"{result.runs}\n{report(result.claims)}\nFigure: {save(result, name, arguments.out, arguments.full)}")
    print(f"TensorBoard: tensorboard --logdir {arguments.out}")


def parser(doc: str) -> argparse.ArgumentParser:
    """Return the argument parser of every script."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--full", action="store_true", help="the paper's length and more seeds: up to 10 minutes")
    found.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder of figures, results and trainings; those that are there are taken",
    )
    return found


def save(result: Result, name: str, out: Path, full: bool) -> Path:
    """Write the figure to ``<out>/<name>.png`` and TensorBoard, and the claims to ``<out>/<name>.json``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    result.figure.savefig(path, dpi=90)
    with SummaryWriter(str(out / "figures" / name)) as writer:
        writer.add_figure(f"saxe2018/{name}", result.figure)
    length = ("full" if full else "quick") if result.trained else "exact"
    told = {"length": length, "runs": result.runs, "claims": [asdict(claim) for claim in result.claims]}
    path.with_suffix(".json").write_text(json.dumps(told, indent=1))
    return path


def load(name: str, out: Path) -> Saved | None:
    """Return what :func:`save` wrote, if it did."""
    path = out / f"{name}.json"
    if not path.exists():
        return None
    told = json.loads(path.read_text())
    return Saved(told["length"], told["runs"], [Claim(**claim) for claim in told["claims"]])
