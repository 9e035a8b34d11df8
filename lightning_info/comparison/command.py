r"""The command ``python -m lightning_info compare``.

For example::

    python -m lightning_info compare --module my_package.net:Net --reference data.pt \
        --run a/*.ckpt --twin b/*.ckpt --training-samples 50000 --out comparison
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from pathlib import Path
from typing import Any

from lightning_info.command_line import imported, tensors
from lightning_info.comparison.runs import compare_runs

NAME = "compare"
SUMMARY = "How far two runs went apart that differ in one training sample, from their checkpoints."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("--module", required=True, metavar="PACKAGE:CLASS", help="the LightningModule, made from the last checkpoint")
    add("--run", required=True, nargs="+", metavar="CKPT", help="checkpoints of the run, or their folder")
    add("--twin", required=True, nargs="+", metavar="CKPT", help="checkpoints of the other run, or their folder")
    add("--reference", required=True, metavar="FILE", help="samples to measure on: torch.save((x, y), FILE)")
    add("--replaced", metavar="FILE", help="the replaced sample, in the same form, for the loss gap")
    add("--training-samples", type=int, metavar="N", help="of the summed loss; by default the reference samples")
    add("--beta", type=float, default=1.0, help="level of the task (default: 1.0)")
    add("--num-samples", type=int, default=256, help="reference samples at most (default: 256)")
    add("--batch-size", type=int, default=64, help="samples that go through the module at once (default: 64)")
    add("--adapter", metavar="PACKAGE:FUNCTION", help="(module, batch) -> (outputs, targets, likelihood)")
    add("--device", default="cpu", help="where to measure (default: cpu)")
    add("--seed", type=int, default=0, help="of what is drawn for the figure (default: 0)")
    add("--weights-only", action=BooleanOptionalAction, default=True, help="run no code that a checkpoint holds")
    add("--out", type=Path, metavar="FOLDER", help="write figure.png and TensorBoard events there")


def run(*, out: Path | None, **given: Any) -> None:
    """Print a table; write ``figure.png`` and TensorBoard events into a folder.

    Args:
        out: The folder; None to write nothing.
        given: Arguments of :func:`~.compare_runs`, objects and samples by name and file.

    Raises:
        ValueError: An argument is invalid.
        OSError: A file cannot be read or written.
    """
    for name in ("module", "adapter"):
        given[name] = given[name] and imported(f"--{name}", given[name])
    for name in ("reference", "replaced"):
        given[name] = given[name] and tensors(f"--{name}", given[name])
    for name in ("run", "twin"):
        given[name] = given[name][0] if len(given[name]) == 1 else given[name]
    found = compare_runs(**given)
    print(found.table())
    if out is None:
        return
    found.write(out)
    if found.picture is None:
        print(f"no figure, as {found.reason}")
        return
    found.figure().savefig(out / "figure.png", dpi=150)
    print(f"written: {out / 'figure.png'}; curves: tensorboard --logdir {out}")
