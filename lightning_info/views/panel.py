"""What is shown in one piece: a figure, the words beside it, and what it takes to make it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_info.run_logs.groups import RunGroup
from lightning_info.run_logs.run_log import Picture, RunLog
from lightning_info.run_logs.tags import Tag, ours, quantities
from lightning_info.views.words import Words


@dataclass(frozen=True)
class Table:
    """Rows of text under titles; all but the first column hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Panel:
    """A piece of a view.

    Attributes:
        title: Of it.
        figure: For plotly; None for none.
        words: What it is, how to read it, when not to trust it.
        notes: What is particular to these runs.
        table: Numbers.
        texts: Title and preformatted text.
        pictures: Title and key of a file, see :attr:`~.Picture.key`.
    """

    title: str
    figure: dict[str, Any] | None = None
    words: Words = field(default_factory=Words)
    notes: Sequence[str] = ()
    table: Table | None = None
    texts: Sequence[tuple[str, str]] = ()
    pictures: Sequence[tuple[str, str]] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """How to make a panel.

    Attributes:
        name: Its own within a view.
        title: Of the panel.
        tags: Scalars that have to be read for it.
        make: Makes it of runs that have them.
        pictures: Tags of figures that have to be read for it.
        with_texts: It needs what the callbacks wrote in words.
        points: Points of a curve that are enough for it.
        most_runs: It shows the first runs only, so many; None for all.
    """

    name: str
    title: str
    tags: frozenset[str]
    make: Callable[[Sequence[RunGroup]], Panel]
    pictures: frozenset[str] = frozenset()
    with_texts: bool = False
    points: int = 500
    most_runs: int | None = None


@dataclass(frozen=True)
class Contents:
    """What there is to show.

    Attributes:
        tags: Scalars of our callbacks, by their whole names.
        users: All other scalars.
        pictures: Tags of figures.
    """

    tags: Mapping[str, Tag]
    users: Collection[str] = ()
    pictures: Collection[str] = ()

    @classmethod
    def of(cls, runs: Sequence[RunLog]) -> Contents:
        """Of runs that have been read."""
        described = {tag: text for run in runs for tag, text in run.descriptions.items()}
        names = list(dict.fromkeys(tag for run in runs for tag in run.curves))
        known = ours(names, described)
        pictures = [one.tag for run in runs for one in run.pictures]
        return cls(known, [tag for tag in names if tag not in known], list(dict.fromkeys(pictures)))

    @property
    def quantities(self) -> dict[str, list[str]]:
        """Whole tags by quantity, without errors and ends of bands."""
        return quantities(self.tags)


def shown_pictures(groups: Sequence[RunGroup], tags: Collection[str], most: int = 8) -> list[tuple[str, str]]:
    """Titles and keys of the figures of some tags, of a few runs."""
    found: list[tuple[str, Picture]] = [
        (run.name, one) for group in groups for run in group.runs for one in run.pictures if one.tag in tags
    ]
    return [(f"{name}: {one.tag} at step {one.step}", one.key) for name, one in found[:most]]
