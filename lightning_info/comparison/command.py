r"""The command ``python -m lightning_info.compare_runs``.

For example::

    python -m lightning_info.compare_runs --module my_package.MyModule --reference data.pt \
        --run a/*.ckpt --twin b/*.ckpt --training-samples 50000 --out comparison
"""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_info.comparison.runs import compare_runs


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table; with ``--out`` write ``figure.png`` and TensorBoard events into that folder."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    out: Path | None = given.pop("out")
    try:
        for name in ("module", "adapter"):
            given[name] = given[name] and _imported(name, given[name])
        for name in ("reference", "replaced"):
            given[name] = given[name] and _tensors(name, given[name])
        for name in ("run", "twin"):
            given[name] = given[name][0] if len(given[name]) == 1 else given[name]
        found = compare_runs(**given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(found.table())
    if out is None:
        return
    found.write(out)
    if found.picture is None:
        print(f"no figure, as {found.reason}")
        return
    found.figure().savefig(out / "figure.png", dpi=150)
    print(f"written: {out / 'figure.png'}; curves: tensorboard --logdir {out}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "python -m lightning_info.compare_runs",
        description="How far two runs went apart that differ in one training sample, from their checkpoints.",
    )
    add = parser.add_argument
    add("--module", required=True, metavar="PACKAGE.CLASS", help="the LightningModule, made from the last checkpoint")
    add("--run", required=True, nargs="+", metavar="CKPT", help="checkpoints of the run, or their folder")
    add("--twin", required=True, nargs="+", metavar="CKPT", help="checkpoints of the other run, or their folder")
    add("--reference", required=True, metavar="FILE", help="samples to measure on: torch.save((x, y), FILE)")
    add("--replaced", metavar="FILE", help="the replaced sample, in the same form, for the loss gap")
    add("--training-samples", type=int, metavar="N", help="of the summed loss; by default the reference samples")
    add("--beta", type=float, default=1.0, help="level of the task (default: 1.0)")
    add("--num-samples", type=int, default=256, help="reference samples at most (default: 256)")
    add("--batch-size", type=int, default=64, help="samples that go through the module at once (default: 64)")
    add("--adapter", metavar="PACKAGE.FUNCTION", help="(module, batch) -> (outputs, targets, likelihood)")
    add("--device", default="cpu", help="where to measure (default: cpu)")
    add("--seed", type=int, default=0, help="of what is drawn for the figure (default: 0)")
    add("--weights-only", action=BooleanOptionalAction, default=True, help="run no code that a checkpoint holds")
    add("--out", type=Path, metavar="FOLDER", help="write figure.png and TensorBoard events there")
    return parser


def _imported(option: str, name: str) -> Any:
    package, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(package), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--{option} {name} cannot be imported ({error}); give package.name, from a folder in which python -c "
            f"'import {package or 'package'}' works"
        ) from error


def _tensors(option: str, path: str) -> tuple[Tensor, ...]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, (tuple, list)) or not all(isinstance(part, Tensor) for part in found):
        raise ValueError(f"--{option} {path} holds {type(found).__name__}; write it with torch.save((x, y), {path!r})")
    return tuple(found)
