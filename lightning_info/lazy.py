"""Names of a package that are imported when they are first used, so that who wants none of them does not wait."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        package: Its ``__name__``.
        homes: Where the public names are, ``name -> module`` below the package, or with a dot in front below
            ``lightning_info``; modules of the package are found too.
    """

    def get(name: str) -> Any:
        missing = AttributeError(f"module {package!r} has no attribute {name!r}")
        if name.startswith("_"):
            raise missing
        module = homes.get(name, name)
        try:
            found = importlib.import_module(f"{package}.{module}" if module[0] != "." else f"lightning_info{module}")
        except ModuleNotFoundError as error:
            if name in homes or error.name != f"{package}.{name}":
                raise
            raise missing from None
        if name in homes:
            found = getattr(found, name)
            setattr(sys.modules[package], name, found)
        return found

    return get
