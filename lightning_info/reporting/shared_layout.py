"""One custom-scalar layout in a TensorBoard run, with the user's categories and ours."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]

TAG = "custom_scalars__config__"
WRITERS = ("add_custom_scalars", "add_custom_scalars_multilinechart", "add_custom_scalars_marginchart")
"""Methods of a SummaryWriter that write a layout."""


class SharedLayout:
    """Adds the charts of one category to every layout that a SummaryWriter writes, until it is closed.

    TensorBoard shows only the last of several layouts in a run. The first that we write therefore repeats what the
    event files of the run hold; from then on attributes of the writer shadow its methods :data:`WRITERS` and put our
    charts into what the user writes. ``close()``, which Lightning calls at the end of fit, removes them.

    Args:
        writer: A SummaryWriter.
        directory: Folder of its event files, of this run and of those that it continues.
        category: Title of our category; charts that the run already has in it stay.
    """

    def __init__(self, writer: Any, directory: str, category: str) -> None:
        self.writer, self.category = writer, category
        writer.flush()
        self._last = _last_layout(directory)
        self._own = {name: vars(writer)[name] for name in (*WRITERS, "close") if name in vars(writer)}
        self._call = {name: getattr(writer, name) for name in WRITERS}
        for name in WRITERS:
            setattr(writer, name, partial(self._write, name))
        writer.close = self._close

    @classmethod
    def of(cls, writer: Any, directory: str, category: str) -> SharedLayout:
        """Return the one that a writer already has, or a new one."""
        standing = getattr(vars(writer).get("close"), "__self__", None)
        return standing if isinstance(standing, cls) else cls(writer, directory, category)

    def add(self, layout: Mapping[str, Any], gone: Collection[str] = ()) -> None:
        """Write what the run shows with charts of our category, without those of some titles.

        Args:
            layout: The layout, in the form that ``add_custom_scalars`` takes.
            gone: Titles of charts of our category that are no longer shown.
        """
        for category in self._last.category:
            kept = [chart for chart in category.chart if category.title != self.category or chart.title not in gone]
            del category.chart[:]
            category.chart.extend(kept)
        self._send("add_custom_scalars", self._last, layout)

    def _write(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Write what the user's call of a method writes, with our category unchanged."""
        ours = Layout(category=[one for one in self._last.category if one.title == self.category])
        self._send(name, ours, *args, **kwargs)

    def _send(self, name: str, others: Layout, *args: Any, **kwargs: Any) -> None:
        """Call a method of the writer, and add the categories of another layout to what it writes."""
        writer, get = self.writer, self.writer._get_file_writer
        before = vars(writer).get("_get_file_writer")
        writer._get_file_writer = lambda: _Merging(get(), self, others)
        try:
            self._call[name](*args, **kwargs)
        finally:
            del writer._get_file_writer
            if before is not None:
                writer._get_file_writer = before

    def merge(self, summary: Any, others: Layout) -> None:
        """Put the categories of another layout into a summary that holds a layout."""
        for value in summary.value:
            if value.tag == TAG:
                layout = Layout.FromString(value.tensor.string_val[0])
                for category in others.category:
                    _merge(layout, category)
                layout.category.sort(key=lambda one: one.title == self.category)  # the user's come first
                value.tensor.string_val[0] = layout.SerializeToString()
                self._last = layout

    def _close(self) -> None:
        for name in (*WRITERS, "close"):
            delattr(self.writer, name)
        vars(self.writer).update(self._own)
        self.writer.close()


class _Merging:
    """A file writer that merges layouts on their way."""

    def __init__(self, file_writer: Any, shared: SharedLayout, others: Layout) -> None:
        self._file_writer, self._shared, self._others = file_writer, shared, others

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file_writer, name)

    def add_summary(self, summary: Any, *args: Any, **kwargs: Any) -> None:
        with suppress(Exception):  # a summary of another kind stays as it is
            self._shared.merge(summary, self._others)
        self._file_writer.add_summary(summary, *args, **kwargs)


def _merge(layout: Layout, category: Any) -> None:
    """Add a category, or its charts to one with the same title; existing charts stay as they are."""
    there = {one.title: one for one in layout.category}.get(category.title)
    if there is None:
        layout.category.append(category)
        return
    titles = {chart.title for chart in there.chart}
    there.chart.extend(chart for chart in category.chart if chart.title not in titles)


def _last_layout(directory: str) -> Layout:
    """Return the last layout in the event files of a directory, in the order in which TensorBoard reads them."""
    files = get_filesystem(directory)
    names = [name for name in files.ls(directory, detail=False) if "tfevents" in name.rpartition("/")[2]]
    for name in sorted(names, reverse=True):
        with files.open(name, "rb") as file:
            found = [layout for record in _records(file) for layout in _layouts(record)]
        if found:
            return Layout.FromString(found[-1])
    return Layout()


def _records(file: Any) -> Iterator[bytes]:
    """Yield the records of an event file; a truncated one, for example after a power cut, is the end."""
    while len(head := file.read(12)) == 12:  # length and its checksum
        (length,) = struct.unpack("<Q", head[:8])
        record: bytes = file.read(length)
        if len(record) < length:
            return
        file.read(4)
        yield record


def _layouts(record: bytes) -> Iterator[bytes]:
    if TAG.encode() in record:
        for value in Event.FromString(record).summary.value:
            if value.tag == TAG:
                yield value.tensor.string_val[0]
