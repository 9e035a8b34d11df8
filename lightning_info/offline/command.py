r"""The command ``python -m lightning_info measure``.

For example::

    python -m lightning_info measure --module my_package.net:Net --data my_package.data:Digits \
        --checkpoints "run/checkpoints/*.ckpt" --callback FisherTraceCallback --output fisher.csv --figure fisher.png
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Sequence
from inspect import isclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

import lightning_info
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.result import SUFFIXES
from lightning_info.checkpoints import CheckpointReader
from lightning_info.command_line import arguments, call, constructed, imported, made, tensors
from lightning_info.functional.likelihoods import LIKELIHOODS
from lightning_info.offline.measure import measure

NAME = "measure"
SUMMARY = "Measure a module, or the checkpoints of a run, with the callbacks of this package."
TENSORS = (".pt", ".pth")
PICTURES = (".png", ".pdf", ".svg")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add = parser.add_argument
    add("--module", required=True, metavar="MODULE",
        help="class, or function that returns a module, as package.module:Net or path/to/net.py:Net")  # fmt: skip
    add("--init", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="arguments of the module's class")
    add("--data", required=True, metavar="DATA", help="class of a LightningDataModule, or function that returns a "
        "Dataset or DataLoader, in the same notation; or the .pt file of torch.save((x, y), FILE)")  # fmt: skip
    add("--data-init", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="arguments of the data")
    add("--callback", required=True, action="append", dest="callbacks", metavar="CALLBACK",
        help="what is measured, for example 'FisherTraceCallback(estimator=\"exact\")'; may be repeated")  # fmt: skip
    add("--checkpoints", nargs="+", metavar="CKPT", help="checkpoints of a run: files, patterns, or their folder")
    add("--likelihood", choices=list(LIKELIHOODS), help="what the module predicts for batches (x, y)")
    add("--adapter", metavar="FUNCTION", help="(module, batch) -> (outputs, targets, likelihood), in the same notation")
    add("--initial", metavar="CKPT", help="the weights at the start, for WeightInfoCallback")
    add("--step", type=int, default=0, help="where the values stand without checkpoints (default: 0)")
    add("--batch-size", type=int, default=64, help="samples at once, where the data do not tell (default: 64)")
    add("--device", default="cpu", help="where to measure (default: cpu)")
    add("--weights-only", action=BooleanOptionalAction, default=True, help="run no code that a checkpoint holds")
    add("--output", type=Path, metavar="FILE", help="write the values there, as .csv or .json")
    add("--figure", type=Path, metavar="FILE", help="draw the curves there, as .png, .pdf or .svg")


def run(
    *,
    module: str,
    init: Sequence[str],
    data: str,
    data_init: Sequence[str],
    callbacks: Sequence[str],
    checkpoints: Sequence[str] | None,
    adapter: str | None,
    output: Path | None,
    figure: Path | None,
    **options: Any,
) -> None:
    """Print the table of what was measured, and write the requested files.

    Args:
        module: Source of the module.
        init: Arguments ``key=value`` of the module.
        data: Source of the data.
        data_init: Arguments ``key=value`` of the data.
        callbacks: Calls of callbacks.
        checkpoints: Files, patterns or a folder.
        adapter: Source of the adapter.
        output: File for the values.
        figure: File for the curves.
        options: Options of :func:`~.measure`.

    Raises:
        ValueError: An argument is invalid.
        OSError: A file cannot be read or written.
    """
    _writable("--output", output, SUFFIXES)
    _writable("--figure", figure, PICTURES)
    ours = [constructed("--callback", text, _callbacks()) for text in callbacks]
    files = checkpoints[0] if checkpoints is not None and len(checkpoints) == 1 else checkpoints
    net = _module(module, init, files, options["weights_only"])
    samples = tensors("--data", data) if data.endswith(TENSORS) else made("--data", data, data_init)
    function = None if adapter is None else imported("--adapter", adapter)
    result = measure(net, samples, *ours, checkpoints=files, adapter=function, **options)
    print(result)
    if output is not None:
        result.save(output)
        print(f"written: {output}")
    if figure is not None:
        result.plot().savefig(figure, dpi=150)
        print(f"written: {figure}")


def _callbacks() -> dict[str, Any]:
    public = {name: getattr(lightning_info, name) for name in lightning_info.__all__}
    callbacks = {name: one for name, one in public.items() if isclass(one) and issubclass(one, InfoCallback)}
    return {name: one for name, one in callbacks.items() if one is not InfoCallback}  # a quantity is not a literal


def _module(name: str, init: Sequence[str], files: Any, weights_only: bool) -> nn.Module:
    """Build the module with the arguments that a checkpoint of Lightning holds, and those that are given."""
    found, given = imported("--module", name), arguments("--module", init)
    if isclass(found) and issubclass(found, LightningModule) and files is not None:
        reader = CheckpointReader(NAME, weights_only)
        last = reader.checkpoints("checkpoints", files)[-1].path
        if reader.hyperparameters(last):
            net: nn.Module = reader.made(found, last, **given)
            return net
    net = call("--module", name, found, given)
    if not isinstance(net, nn.Module):
        raise ValueError(f"--module {name} is a {type(net).__name__}; give a class or a function that makes a module")
    return net


def _writable(option: str, path: Path | None, suffixes: Sequence[str]) -> None:
    """Refuse, before anything is measured, a file that could not be written."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise ValueError(f"{option} {path} must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it, or give another file")
