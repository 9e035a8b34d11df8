"""What every script of a figure does: run, print the comparison, write the figure to disk and to TensorBoard."""

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


class Result(NamedTuple):
    """Of one figure.

    Attributes:
        claims: With what was measured.
        figure: Drawn like the paper's.
        runs: Which seeds, how long.
    """

    claims: list[Claim]
    figure: Figure
    runs: str


def main(doc: str, run: Callable[[bool], Result], name: str) -> None:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's length and more seeds: minutes to an hour")
    parser.add_argument("--out", type=Path, default=Path("runs/saxe2018"), help="folder of the figures")
    arguments = parser.parse_args()
    training.TENSORBOARD = arguments.out / "callbacks"
    result = run(arguments.full)
    print(f"{result.runs}\n{report(result.claims)}\nFigure: {save(result, name, arguments.out)}")
    print(f"TensorBoard: tensorboard --logdir {arguments.out}")


def save(result: Result, name: str, out: Path) -> Path:
    """Write the figure to ``<out>/<name>.png`` and TensorBoard, and the claims to ``<out>/<name>.json``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    result.figure.savefig(path, dpi=90)
    with SummaryWriter(str(out / "figures" / name)) as writer:
        writer.add_figure(f"saxe2018/{name}", result.figure)
    told = {"runs": result.runs, "claims": [asdict(claim) for claim in result.claims]}
    path.with_suffix(".json").write_text(json.dumps(told, indent=1))
    return path


def load(name: str, out: Path) -> tuple[str, list[Claim]] | None:
    """What :func:`save` wrote, if it did: the runs in words, and the claims."""
    path = out / f"{name}.json"
    if not path.exists():
        return None
    told = json.loads(path.read_text())
    return told["runs"], [Claim(**claim) for claim in told["claims"]]
