"""What the callbacks of one Trainer know about one another, and what they show of their quantities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from lightning_info.callbacks.budget import Account
from lightning_info.functional.units import Unit, in_unit
from lightning_info.quantities.quantity import Quantity
from lightning_info.replica.snapshot import ForwardStatistic
from lightning_info.reporting.closing_table import Row, parts_of
from lightning_info.reporting.description import Description
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import Curve


class Member(ABC):
    """Interface of a callback to the session."""

    quantity: Quantity
    num_samples: int
    prefix: str | None
    unit: Unit | None
    summary: bool
    account: Account  # its share of the run's budget

    @property
    @abstractmethod
    def is_prepared(self) -> bool:
        """Whether the module is checked."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the reference samples are complete too."""

    @property
    @abstractmethod
    def last_step(self) -> int | None:
        """Step of the last point; None before the first."""

    @property
    @abstractmethod
    def sharing_key(self) -> Hashable:
        """Key of replicas: callbacks with the same key can measure on the same replica."""

    @property
    @abstractmethod
    def groups(self) -> list[Any]:
        """Reference samples."""

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Number of samples that go through a replica at once."""

    @abstractmethod
    def statistics(self) -> list[ForwardStatistic]:
        """Return what its quantity reads from the forward pass; nothing if the quantity fails to say."""

    @abstractmethod
    def is_due(self, trainer: Any, batch_idx: int) -> bool:
        """Tell whether a point falls on this batch."""

    @abstractmethod
    def last_curves(self) -> dict[str, Curve]:
        """Return the curves with a value at the last point, by full tag."""

    @abstractmethod
    def time_taken(self) -> tuple[str, float]:
        """Return what it did, and the share of the run's time that it took."""

    @abstractmethod
    def closing_lines(self) -> list[str]:
        """Return what is printed below the table."""

    @abstractmethod
    def report(self) -> str:
        """Tell all that is known about what it measures."""

    def rows(self, curves: Mapping[str, Curve]) -> list[Row]:
        """Return rows of the table at the end of fit, for those of its tags that have curves."""
        found = []
        for tag, error in self.quantity.table:
            if self.tagged(tag) in curves:
                group, layer = parts_of(tag)
                errors = curves.get(self.tagged(error), ()) if error else ()
                known = self.describe(tag)
                found.append(Row(self.tagged(group), layer, curves[self.tagged(tag)], errors, known))
        return found

    def guide(self) -> dict[str, str]:
        """Return the meanings of the tags that it will write, by pattern."""
        tags = [*self.quantity.tags, *(tag for _, chart in self.quantity.charts().values() for tag in chart)]
        known = self.quantity.descriptions
        return {
            self.tagged(pattern): self._in_unit(description).text
            for pattern, description in known.items()
            if any(self.quantity.describe(tag) is description for tag in tags)
        }

    def describe(self, tag: str) -> Description | None:
        """Return the meaning of a tag without prefix, in the chosen unit; None if it is not known."""
        known = self.quantity.describe(tag)
        return known and self._in_unit(known)

    def _in_unit(self, description: Description) -> Description:
        return replace(description, unit=in_unit(description.unit, self.unit)[0])

    def charts(self) -> dict[str, Chart]:
        """Return its charts by title; tags and titles have the prefix, and titles the chosen unit."""
        own = f"[{self.quantity.unit}]"
        shown = f"[{in_unit(self.quantity.unit, self.unit)[0]}]"
        return {
            self.tagged(title.replace(own, shown)): (kind, [self.tagged(tag) for tag in tags])
            for title, (kind, tags) in self.quantity.charts().items()
        }

    def tagged(self, tag: str) -> str:
        """Return a tag with the callback's prefix."""
        return f"{self.prefix}/{tag}" if self.prefix else tag
