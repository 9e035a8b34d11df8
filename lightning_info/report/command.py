r"""The command ``python -m lightning_info report``.

For example::

    python -m lightning_info report runs/seed0 runs/seed1 runs/seed2 --group . --out report.html --json report.json
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from json import dumps
from pathlib import Path

from lightning_info.report.reading import read_runs
from lightning_info.run_logs.groups import RunGroup, grouped

NAME = "report"
SUMMARY = "Write a report of runs, out of their TensorBoard or CSV logs, that opens without a network."
SUFFIXES = (".html", ".htm")
FORMATS = ("svg", "pdf", "png")


def add_arguments(parser: ArgumentParser) -> None:
    """Tell a parser the arguments of the command."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of many runs")
    add("--out", type=Path, metavar="FILE", help="the report, a .html file (needs plotly)")
    add("--json", type=Path, metavar="FILE", help="every number, error and verdict, for programs")
    add("--figures", type=Path, metavar="FOLDER", help="a static figure of each quantity there")
    add("--format", choices=FORMATS, default="svg", help="of the static figures (default: svg)")
    add("--group", metavar="HOW", help="runs that are shown as one, with mean and band: a regular expression that is "
        "searched in their names, or NAME= for those of one value of a hyperparameter; '^' for all")  # fmt: skip
    add("--title", default="What the runs learned", help="of the report")


def run(
    *,
    runs: Sequence[Path],
    out: Path | None,
    json: Path | None,
    figures: Path | None,
    format: str,
    group: str | None,
    title: str,
) -> None:
    """Write what is asked for; with nothing asked for, print the table of each run's end.

    Args:
        runs: Folders.
        out: File for the page.
        json: File for the numbers.
        figures: Folder for static figures.
        format: Of these.
        group: How runs are brought together.
        title: Of the page.

    Raises:
        ValueError: There is nothing to report, or a file has another ending.
        ImportError: plotly is not installed.
        OSError: A file cannot be read or written.
    """
    if out is not None and out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out} must end in {SUFFIXES[0]}")
    logs, provided = read_runs(runs)
    groups = grouped(logs, group)
    if out is not None:
        from lightning_info.report.page import page

        _write(out, page(groups, title, provided.picture))
    if json is not None:
        _write(json, _dumped(groups))
    if figures is not None:
        from lightning_info.report.printed import printed

        files = printed(groups, figures, f".{format}")
        print(f"written: {len(files)} figures in {figures}")
    if out is json is figures is None:
        from lightning_info.views.verdicts import found_in_words

        print("\n\n".join(f"{one.name}\n{found_in_words(one)}" for one in logs))


def _dumped(groups: Sequence[RunGroup]) -> str:
    from lightning_info.report.numbers import numbers

    return dumps(numbers(groups), indent=1, allow_nan=False)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    print(f"written: {file} ({file.stat().st_size / 1e6:.2f} MB)")
