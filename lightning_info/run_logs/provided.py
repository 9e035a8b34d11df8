"""Runs out of a data provider of TensorBoard: that of a server, or one of our own over folders of event files."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.context import RequestContext  # type: ignore[import-untyped]
from tensorboard.data.provider import RunTagFilter  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.metadata import (  # type: ignore[import-untyped]
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from lightning_info.run_logs.run_log import Picture, RunLog
from lightning_info.run_logs.run_texts import GUIDE, RESULT

TEXTS = (GUIDE, RESULT)
"""Tags of the texts that our callbacks write: how it was measured, and the table at the end."""
EVERYTHING = 1 << 31
"""Points of a curve if none is left out."""


class Series(NamedTuple):
    """A scalar of a run.

    Attributes:
        description: What it means, as the run says it; empty if it does not.
        written: When its last point was, in seconds.
    """

    description: str
    written: float


@dataclass(frozen=True)
class ProvidedRuns:
    """The runs of an experiment; nothing is read but what the provider gives.

    Attributes:
        provider: A ``tensorboard.data.provider.DataProvider``.
        context: Of the request.
        experiment: Its name for the provider, often empty.
    """

    provider: Any
    context: Any
    experiment: str = ""

    def scalars(self) -> dict[str, dict[str, Series]]:
        """What is known of all scalars without reading them, ``run -> tag -> series``.

        Tags are in the order in which their last points were written, as layers were in that of depth; TensorBoard's
        faster loader keeps no order.
        """
        found = self._asked("list_scalars", "scalars")
        return {
            run: {
                tag: Series(series.description, series.max_wall_time or 0.0)
                for tag, series in sorted(tags.items(), key=_written)
            }
            for run, tags in found.items()
        }

    def curves(
        self, runs: Collection[str] | None, tags: Collection[str] | None, most: int
    ) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Points by run and tag.

        Args:
            runs: Which; None for all.
            tags: Which; None for all.
            most: Points of a curve; of more some are left out.
        """
        found = self._asked("read_scalars", "scalars", runs, tags, downsample=most)
        return {
            run: {tag: [(int(point.step), float(point.value)) for point in points] for tag, points in curves.items()}
            for run, curves in found.items()
        }

    def texts(self, runs: Collection[str] | None = None) -> dict[str, dict[str, str]]:
        """What our callbacks wrote in words: the last text of each of :data:`TEXTS`, by run and tag."""
        found = self._asked("read_tensors", "text", runs, TEXTS, downsample=EVERYTHING)
        return {
            run: {tag: _text(points[-1].numpy) for tag, points in texts.items() if points}
            for run, texts in found.items()
        }

    def settings(self) -> dict[str, dict[str, object]]:
        """Hyperparameters by run, of those that have logged some."""
        listed = self._asked("list_tensors", "hparams")
        found: dict[str, dict[str, object]] = {}
        for run, tags in listed.items():
            series = tags.get(SESSION_START_INFO_TAG)
            if series is not None:
                values = parse_session_start_info_plugin_data(series.plugin_content).hparams
                found[run] = {name: _value(value) for name, value in values.items()}
        return found

    def picture_tags(self) -> list[str]:
        """Tags of all figures."""
        found = self._asked("list_blob_sequences", "images")
        return list(dict.fromkeys(tag for tags in found.values() for tag in tags))

    def pictures(
        self, runs: Collection[str] | None = None, tags: Collection[str] | None = None
    ) -> dict[str, list[Picture]]:
        """The last figure of each tag, by run."""
        found = self._asked("read_blob_sequences", "images", runs, tags, downsample=EVERYTHING)
        pictures: dict[str, list[Picture]] = {}
        for run, figures in found.items():
            for tag, points in figures.items():
                if points and len(points[-1].values) > 2:  # width, height, then the pictures
                    pictures.setdefault(run, []).append(Picture(tag, points[-1].step, points[-1].values[2].blob_key))
        return pictures

    def picture(self, key: str) -> bytes:
        """The file of a picture."""
        return bytes(self.provider.read_blob(self.context, blob_key=key))

    def logs(self, runs: Collection[str] | None = None, most: int = EVERYTHING) -> list[RunLog]:
        """Runs with all that they have logged, in the order of their names."""
        told, curves, texts = self.scalars(), self.curves(runs, None, most), self.texts(runs)
        settings, pictures = self.settings(), self.pictures(runs)
        return [
            RunLog(
                run,
                {tag: curves[run][tag] for tag in told[run] if tag in curves[run]},
                {tag: series.description for tag, series in told[run].items() if series.description},
                texts.get(run, {}),
                settings.get(run, {}),
                pictures.get(run, ()),
            )
            for run in sorted(curves.keys() & told.keys())
        ]

    def _asked(
        self,
        method: str,
        plugin: str,
        runs: Collection[str] | None = None,
        tags: Collection[str] | None = None,
        **options: Any,
    ) -> dict[str, dict[str, Any]]:
        """What a method of the provider gives, by run and tag.

        TensorBoard's own provider fails at a tag that has a description and no value yet; runs with such a tag are
        left out, and are there again when it is read the next time.
        """
        call = partial(
            getattr(self.provider, method),
            self.context,
            experiment_id=self.experiment,
            plugin_name=plugin,
            **options,
        )
        with suppress(KeyError):
            whole: dict[str, dict[str, Any]] = call(run_tag_filter=RunTagFilter(runs=runs, tags=tags))
            return whole
        found = {}
        for run in self.provider.list_runs(self.context, experiment_id=self.experiment):
            if runs is None or run.run_name in runs:
                with suppress(KeyError):
                    found.update(call(run_tag_filter=RunTagFilter(runs=[run.run_name], tags=tags)))
        return found


def of_folders(folders: Mapping[str, Path]) -> ProvidedRuns:
    """The runs in event files below some folders; what is broken in a file ends it.

    Args:
        folders: By the name that the runs in them begin with; of a folder that is a run it is the name.
    """
    from tensorboard.backend.event_processing.data_provider import (  # type: ignore[import-untyped]
        MultiplexerDataProvider,
    )
    from tensorboard.backend.event_processing.plugin_event_multiplexer import (  # type: ignore[import-untyped]
        EventMultiplexer,
    )

    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0, "text": 0, "images": 0})
    for name, folder in folders.items():
        multiplexer.AddRunsFromDirectory(str(folder), name)
    multiplexer.Reload()
    return ProvidedRuns(MultiplexerDataProvider(multiplexer, ""), RequestContext())


def _written(item: tuple[str, Any]) -> tuple[float, str]:
    tag, series = item
    return series.max_wall_time or 0.0, tag


def _text(array: Any) -> str:
    values: Sequence[Any] = array.ravel().tolist()
    first = values[0] if values else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)


def _value(value: Any) -> object:
    kind = value.WhichOneof("kind")
    found: object = getattr(value, kind) if kind else None
    if isinstance(found, float) and math.isfinite(found) and found == int(found):
        return int(found)
    return found
