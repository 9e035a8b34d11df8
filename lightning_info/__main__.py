"""The command ``python -m lightning_info``.

See :mod:`~.offline.command`, :mod:`~.comparison.command` and :mod:`~.report.command`.
"""

from __future__ import annotations

import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_info import __version__
from lightning_info.command_line import one_line
from lightning_info.comparison import command as compare
from lightning_info.offline import command as measure
from lightning_info.report import command as report


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Its arguments; those of the process by default.

    Raises:
        SystemExit: The command fails; the code is 2, and standard error has one line.
    """
    given = vars(parser().parse_args(argv))
    command, one = given.pop("_command"), given.pop("_parser")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            command(**given)
        except (ValueError, OSError, ImportError, MisconfigurationException) as error:
            one.exit(2, f"{one.prog}: error: {one_line(error)}\n")


def parser() -> ArgumentParser:
    """Return the parser of all commands; ``_command`` of its result is the function to call with the rest."""
    whole = ArgumentParser("python -m lightning_info", description="What a neural network learns, without a Trainer.")
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for file in (measure, compare, report):
        one = commands.add_parser(file.NAME, help=file.SUMMARY, description=file.SUMMARY)
        file.add_arguments(one)
        one.set_defaults(_command=file.run, _parser=one)
    return whole


if __name__ == "__main__":
    main()
