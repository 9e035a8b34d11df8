"""The tab "Information" in TensorBoard: a dynamic plugin, found by its entry point.

It writes nothing, and reads nothing but what TensorBoard's data provider gives it. Nothing of torch is imported here or
below, as TensorBoard waits for it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard import plugin_util  # type: ignore[import-untyped]
from tensorboard.backend.http_util import Respond  # type: ignore[import-untyped]
from tensorboard.context import RequestContext  # type: ignore[import-untyped]
from tensorboard.errors import NotFoundError, PublicError  # type: ignore[import-untyped]
from tensorboard.plugins.base_plugin import FrontendMetadata, TBPlugin  # type: ignore[import-untyped]
from werkzeug import wrappers

from lightning_info.run_logs.groups import RunGroup
from lightning_info.run_logs.provided import ProvidedRuns, Series
from lightning_info.run_logs.run_log import EPOCH, RunLog
from lightning_info.run_logs.tags import is_uncertainty, ours
from lightning_info.tab.cache import CurveCache
from lightning_info.tab.plotly_source import plotly_packed
from lightning_info.views.catalogue import VIEWS, plans
from lightning_info.views.panel import Contents, Plan

STATIC = Path(__file__).with_name("static")
KINDS = {".js": "text/javascript", ".css": "text/css"}
LEAST_POINTS, MOST_POINTS = 100, 10_000
"""Of a curve that is read for a panel at least, and of a tag in all runs."""
MANY = 12
"""Runs from which on their own errors are not read."""
FRESH = 3.0
"""Seconds for which a list of tags is taken to be right."""
LARGEST_REQUEST = 1 << 20
PNG = b"\x89PNG\r\n\x1a\n"


class InfoTab(TBPlugin):  # type: ignore[misc]
    """Serves its own files, a list of what there is, and panels as JSON.

    Args:
        context: Of TensorBoard, with the data provider.
    """

    plugin_name = "lightning-info"

    def __init__(self, context: Any) -> None:
        self._provider = context.data_provider
        self._seen = False
        self._lists: dict[str, tuple[float, Listing]] = {}
        self._cache = CurveCache()
        self._lock = threading.Lock()

    def is_active(self) -> bool:
        """Whether a run has one of our scalars; once one had, for good."""
        if not self._seen and self._provider is not None:
            scalars = ProvidedRuns(self._provider, RequestContext()).scalars()
            self._seen = any(ours(tags) for tags in scalars.values())
        return self._seen

    def frontend_metadata(self) -> Any:
        """Where the tab begins, and its name."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="Information")

    def get_plugin_apps(self) -> dict[str, Any]:
        """What is served, by path."""
        files = {f"/{path.relative_to(STATIC).as_posix()}": path for path in sorted(STATIC.rglob("*.*"))}
        apps: dict[str, Any] = {name: _app(_file(path)) for name, path in files.items()}
        return {
            **apps,
            "/plotly.min.js": _app(_plotly),
            "/contents": _app(self._contents),
            "/panel": _app(self._panel),
            "/picture": _app(self._picture),
        }

    # ---- what is served

    def _contents(self, request: Any) -> Any:
        """Runs with their hyperparameters, and the panels of each view."""
        listing = self._list(request)
        views = [
            {
                "name": name,
                "title": VIEWS[name].TITLE,
                "panels": [{"name": plan.name, "title": plan.title} for plan in panels.values()],
            }
            for name, panels in listing.plans.items()
        ]
        runs = [{"name": run, "settings": _plain(listing.settings.get(run, {}))} for run in listing.runs]
        return Respond(request, json.dumps({"views": views, "runs": runs}), "application/json")

    def _panel(self, request: Any) -> Any:
        """One panel, for groups of runs that the browser names."""
        asked = _asked(request)
        listing = self._list(request)
        plan = listing.plans.get(asked["view"], {}).get(asked["panel"])
        if plan is None:
            raise NotFoundError("there is no such panel")
        groups = self._read(_provided(self._provider, request), plan, asked["groups"], listing)
        panel = plan.make(groups).to_json() if groups else {"title": plan.title, "notes": ["No run is chosen."]}
        return Respond(request, json.dumps(panel, allow_nan=False), "application/json")

    def _picture(self, request: Any) -> Any:
        """A figure that a run has drawn, if it is a picture."""
        found = _provided(self._provider, request).picture(request.args.get("key", ""))
        if not found.startswith(PNG):
            raise NotFoundError("that is no picture")
        return Respond(request, found, "image/png")

    # ---- reading

    def _list(self, request: Any) -> Listing:
        runs = _provided(self._provider, request)
        with self._lock:  # panels are asked for in parallel
            made, listing = self._lists.get(runs.experiment, (-FRESH, None))
            if listing is None or time.monotonic() - made > FRESH:
                listing = Listing.of(runs)
                self._lists = {runs.experiment: (time.monotonic(), listing)}
            return listing

    def _read(
        self, provided: ProvidedRuns, plan: Plan, asked: Mapping[str, Sequence[str]], listing: Listing
    ) -> list[RunGroup]:
        names = [name for name in dict.fromkeys(n for of in asked.values() for n in of) if name in set(listing.runs)]
        if not names:
            return []
        read = names[: plan.most_runs]
        tags = plan.tags & listing.tags
        if len(read) > MANY:  # the band is then that over runs, and the errors of single runs would be most of the work
            tags -= listing.uncertainties
        points = min(plan.points, max(LEAST_POINTS, MOST_POINTS // len(read)))
        curves = self._cache.read(provided, listing.written, read, {*tags, EPOCH}, points) if tags else {}
        texts = provided.texts(read) if plan.with_texts else {}
        pictures = provided.pictures(read, plan.pictures) if plan.pictures else {}
        logs = {
            name: RunLog(
                name,
                curves.get(name, {}),
                {tag: text for tag, text in listing.descriptions.get(name, {}).items() if tag in tags},
                texts.get(name, {}),
                listing.settings.get(name, {}),
                pictures.get(name, ()),
            )
            for name in names
        }
        groups = [RunGroup(name, [logs[run] for run in members if run in logs]) for name, members in asked.items()]
        return [group for group in groups if group.runs]


class Listing:
    """What there is, without any values.

    Attributes:
        runs: Names of those that have tags of ours.
        tags: All scalars of theirs.
        uncertainties: Those that are errors or ends of bands.
        descriptions: Of tags that have one, by run.
        settings: Hyperparameters by run.
        written: When the last point of a run's tag was, in seconds.
        plans: Panels by view and name.
    """

    def __init__(
        self,
        series: Mapping[str, Mapping[str, Series]],
        pictures: Sequence[str],
        settings: Mapping[str, Mapping[str, object]],
    ) -> None:
        named = {run: {tag: s.description for tag, s in tags.items() if s.description} for run, tags in series.items()}
        known = {run: ours(tags, named[run]) for run, tags in series.items()}
        self.runs = sorted(run for run, tags in known.items() if tags)
        self.tags = frozenset(tag for run in self.runs for tag in series[run])
        self.uncertainties = frozenset(t for run in self.runs for t, tag in known[run].items() if is_uncertainty(tag))
        self.descriptions, self.settings = named, settings
        self.written = {(run, tag): s.written for run, tags in series.items() for tag, s in tags.items()}
        tags = {tag: parts for run in self.runs for tag, parts in known[run].items()}
        users = [tag for run in self.runs for tag in series[run] if tag not in tags]
        self.plans = plans(Contents(tags, list(dict.fromkeys(users)), pictures))

    @classmethod
    def of(cls, runs: ProvidedRuns) -> Listing:
        """Of an experiment, as it is now."""
        return cls(runs.scalars(), runs.picture_tags(), runs.settings())


def _app(serve: Callable[[Any], Any]) -> Any:
    """A WSGI application that answers with what a function gives, and with one line where that fails."""

    @wrappers.Request.application
    def answer(request: wrappers.Request) -> Any:
        try:
            return serve(request)
        except PublicError as error:
            return Respond(request, str(error), "text/plain", code=error.http_code)
        except (ValueError, KeyError, TypeError, ImportError) as error:
            return Respond(request, f"{type(error).__name__}: {error}", "text/plain", code=400)

    return answer


def _file(path: Path) -> Callable[[Any], Any]:
    return lambda request: Respond(request, path.read_bytes(), KINDS[path.suffix])


def _plotly(request: Any) -> Any:
    return Respond(request, plotly_packed(), "text/javascript", content_encoding="gzip", expires=3600)


def _provided(provider: Any, request: Any) -> ProvidedRuns:
    environment = request.environ
    return ProvidedRuns(provider, plugin_util.context(environment), plugin_util.experiment_id(environment))


def _asked(request: Any) -> dict[str, Any]:
    """View, panel, and names of runs by group, out of the body of a request.

    Raises:
        ValueError: It has another form.
    """
    if (request.content_length or 0) > LARGEST_REQUEST:
        raise ValueError("a request for a panel is not that long")
    asked = json.loads(request.get_data(cache=False) or b"{}")
    groups = asked.get("groups") if isinstance(asked, dict) else None
    is_right = isinstance(groups, dict) and all(
        isinstance(runs, list) and all(isinstance(run, str) for run in runs) for runs in groups.values()
    )
    if not is_right or not all(isinstance(asked.get(key), str) for key in ("view", "panel")):
        raise ValueError('a panel is asked for by {"view": ..., "panel": ..., "groups": {name: [run, ...]}}')
    return {"view": asked["view"], "panel": asked["panel"], "groups": groups}


def _plain(settings: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}
