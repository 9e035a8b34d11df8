"""All views, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from lightning_info.views import comparison, curves, heat_maps, planes, rates, stability, verdicts
from lightning_info.views.panel import Contents, Plan


class View(Protocol):
    """A file of this room."""

    TITLE: str

    def plans(self, contents: Contents) -> list[Plan]:
        """Its panels; none where there is nothing to show."""


VIEWS: Mapping[str, View] = {
    "curves": curves,
    "planes": planes,
    "heat_maps": heat_maps,
    "rates": rates,
    "stability": stability,
    "verdicts": verdicts,
    "comparison": comparison,
}


def plans(contents: Contents) -> dict[str, dict[str, Plan]]:
    """Panels by view and name, of views that have some."""
    if not contents.tags and not contents.pictures:
        return {}
    found = {name: {plan.name: plan for plan in view.plans(contents)} for name, view in VIEWS.items()}
    return {name: panels for name, panels in found.items() if panels}
