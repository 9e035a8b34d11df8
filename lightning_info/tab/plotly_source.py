"""The JavaScript of plotly, which its Python package brings along."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MISSING = "charts need plotly: pip install 'lightning-info[tab]'"


@cache
def plotly_source() -> str:
    """The text of ``plotly.min.js``, without importing plotly itself, which takes long.

    Raises:
        ImportError: plotly is not installed; the message tells what to type.
    """
    found = find_spec("plotly")
    for folder in found.submodule_search_locations or () if found else ():
        file = Path(folder, "package_data", "plotly.min.js")
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise ImportError(MISSING)


@cache
def plotly_packed() -> bytes:
    """The same, packed by gzip."""
    return gzip.compress(plotly_source().encode(), 6)
