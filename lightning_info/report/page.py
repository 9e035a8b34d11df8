"""The report as one HTML file: charts to move in, words, numbers, settings; nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import fill
from typing import Any

from lightning_info.reporting.hyperparameters import OURS
from lightning_info.run_logs.groups import RunGroup
from lightning_info.tab.plotly_source import plotly_packed, plotly_source
from lightning_info.views.catalogue import VIEWS, plans
from lightning_info.views.panel import Contents, Panel, Table

STATIC = Path(__file__).parents[1] / "tab" / "static"
"""The files of the tab, of which the page has two in it."""
MOST_SETTINGS = 12
"""Hyperparameters in the table of the runs."""
LARGEST = 6_000_000
"""Bytes of the page; pictures that would not fit are left out, which is said."""
PACKAGES = ("lightning-info", "lightning", "pytorch-lightning", "torch", "tensorboard", "plotly")
CITE = (
    "lightning-info (CITATION.cff of its repository). Fisher information and information in the weights: A. Achille, "
    "G. Paolini, S. Soatto, Where is the information in a deep neural network? Information plane: R. Shwartz-Ziv, "
    "N. Tishby, Opening the black box of deep neural networks via information; A. Saxe et al., On the information "
    "bottleneck theory of deep learning."
)
READ = (
    "Every chart has beside it what it is, how to read it and when not to trust it.\n"
    "Bands and crosses are 95 %: of the measurement for one run, of the mean for several.\n"
    "Drag to zoom, double-click to zoom out, click a name in a legend to hide its curve.\n"
    "The planes have a slider; the camera above a chart saves it as SVG."
)


def page(
    groups: Sequence[RunGroup],
    title: str,
    picture: Callable[[str], bytes] | None = None,
    more: Sequence[tuple[str, bytes]] = (),
) -> str:
    """The whole file.

    Args:
        groups: Runs, at least one.
        title: Of the report.
        picture: Gives the file of a picture by its key; None where the runs have none.
        more: Titles and files of pictures that are in no log.

    Raises:
        ImportError: plotly is not installed.
    """
    runs = [run for group in groups for run in group.runs]
    views: list[dict[str, Any]] = [{"title": "Runs", "panels": [_settings(groups).to_json(), _about().to_json()]}]
    for name, panels in plans(Contents.of(runs)).items():
        made = [plan.make(groups).to_json() for plan in panels.values()]
        views.append({"title": VIEWS[name].TITLE, "panels": made})
    views.sort(key=lambda view: view["title"] not in ("Runs", VIEWS["verdicts"].TITLE))
    if more:
        own = Panel("Figures of the callback", pictures=[(name, _address(file)) for name, file in more])
        views.append({"title": "Figures", "panels": [own.to_json()]})
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    code = (STATIC / "panel.js").read_text(encoding="utf-8") + Path(__file__).with_name("report.js").read_text("utf-8")
    plotly = base64.b64encode(plotly_packed()).decode()
    _fill_pictures(views, picture, LARGEST - len(plotly) - len(style) - len(code) - len(_packed(views)) - 20_000)
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly_source(), code))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head><body><noscript>The charts of this report need JavaScript.</noscript>"
        f'<script type="text/plain" id="report">{_packed({"title": title, "views": views})}</script>'
        f'<script type="text/plain" id="plotly">{plotly}</script>'
        f'<script type="module">{code}</script></body></html>\n'
    )


def _settings(groups: Sequence[RunGroup]) -> Panel:
    """Which runs these are, with their hyperparameters."""
    runs = [(group, run) for group in groups for run in group.runs]
    found = dict.fromkeys(name for _, run in runs for name in run.settings)
    names = sorted(found, key=lambda name: name.startswith(f"{OURS}/"))[:MOST_SETTINGS]  # the user's own first
    rows = [[run.name, group.name, *(str(run.settings.get(name, "")) for name in names)] for group, run in runs]
    return Panel("Runs and settings", table=Table(["run", "group", *names], rows))


def _about() -> Panel:
    """How to read the report, by what it was written, what to cite."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    written = "\n".join([now, *(f"{name} {number}" for name, number in versions().items())])
    texts = [("How to read it", READ), ("Written with", written), ("To cite", fill(CITE, 100))]
    return Panel("About this report", texts=texts)


def versions() -> dict[str, str]:
    """Of the packages that are installed where the report is written."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _fill_pictures(views: Sequence[dict[str, Any]], picture: Callable[[str], bytes] | None, room: int) -> None:
    """Put files in place of their keys, as long as there is room."""
    for view in views:
        for panel in view["panels"]:
            kept, left_out = [], 0
            for title, key in panel["pictures"]:
                address = key if picture is None or key.startswith("data:") else _address(picture(key))
                if len(address) <= room:
                    room -= len(address)
                    kept.append((title, address))
                else:
                    left_out += 1
            panel["pictures"] = kept
            if left_out:
                panel["notes"] = [*panel["notes"], f"{left_out} pictures are left out, as the page would be too large."]


def _address(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _packed(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON, packed: letters of base64 end no element of the page, whatever names are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6)).decode()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
