"""What every script of a figure does: run, print the comparison, write the figure to disk and to TensorBoard."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    result = run(arguments.full)
    print(f"{result.runs}\n{report(result.claims)}\nFigure: {save(result.figure, name, arguments.out)}")
    print(f"TensorBoard: tensorboard --logdir {arguments.out}")


def save(figure: Figure, name: str, out: Path) -> Path:
    """Write ``<out>/<name>.png`` and the same for TensorBoard."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, dpi=90)
    with SummaryWriter(str(out / "figures" / name)) as writer:
        writer.add_figure(f"saxe2018/{name}", figure)
    return path
