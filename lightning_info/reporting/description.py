"""The meaning of a number in words, for tables, charts and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Description:
    """Description of a number, and how to read it.

    Attributes:
        what: The quantity, as a phrase without a full stop.
        unit: Unit of its values; empty for a pure number.
        rises: Meaning of a rise over training, a sentence without its beginning ("it rose 3-fold: ...").
        falls: Meaning of a fall, in the same form.
        caution: When not to trust the number, in sentences.
    """

    what: str
    unit: str = ""
    rises: str = ""
    falls: str = ""
    caution: str = ""

    @property
    def text(self) -> str:
        """The whole text, for a chart."""
        parts = [f"{self.what}{f' [{self.unit}]' if self.unit else ''}."]
        if self.rises:
            parts.append(f"A rise: {self.rises}.")
        if self.falls:
            parts.append(f"A fall: {self.falls}.")
        return " ".join([*parts, self.caution]).strip()


def describe(descriptions: Mapping[str, Description], tag: str) -> Description | None:
    """Return the description of a tag, or of the tag whose error or end of a band it is.

    Args:
        descriptions: Descriptions by pattern, in which ``*`` stands for a layer or module; the first match counts.
        tag: The tag, without prefix.
    """
    for pattern, found in descriptions.items():
        if fnmatchcase(tag, pattern):
            return found
    family, _, rest = tag.partition("/")
    for suffix, what in ENDS.items():
        of = f"{family.removesuffix(suffix)}/{rest.removesuffix(suffix)}"
        known = describe(descriptions, of) if of != tag else None
        if known is not None:
            return replace(known, what=f"{what} of the following. {known.what}", rises="", falls="", caution="")
    return None


ENDS = {
    "_stderr": "Standard error",
    "_low": "Lower end of the 95 % band",
    "_high": "Upper end of the 95 % band",
}
"""Meanings of the endings of tags, of the family or of the rest."""


SHARE = Description("Share of the run's time that this callback has taken so far, checks and figures included")
"""Description of the tag ``.../overhead`` of every callback."""
