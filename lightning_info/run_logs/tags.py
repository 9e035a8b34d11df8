"""Which scalars of a run are ours, and what the parts of their tags are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

FAMILIES = ("fisher", "info_plane", "weight_info", "effective_info", "stability", "gradient_noise")
"""First parts of our tags; ``family_something`` is of the family too."""

_OURS = re.compile(rf"(?P<prefix>(?:.*[/-])?)(?P<family>(?:{'|'.join(FAMILIES)})(?:_[^/]*)?)/(?P<rest>.+)", re.DOTALL)
_ENDS = ("_stderr", "_low", "_high")


class Tag(NamedTuple):
    """A tag in its parts.

    Attributes:
        prefix: Of the callback and of the logger, with its last separator; empty for none.
        family: First part: ``fisher``, ``info_plane_final``.
        kind: What of the family: ``trace``, ``I_XT``; empty for the parts of a whole by module.
        layer: Layer or module; empty if it is of none.
    """

    prefix: str
    family: str
    kind: str
    layer: str

    @property
    def quantity(self) -> str:
        """What layers have in common, with the prefix: ``fisher/trace``, ``info_plane/I_XT``, ``fisher_layers``."""
        return f"{self.prefix}{self.family}/{self.kind}".rstrip("/")

    @property
    def plain(self) -> str:
        """The tag without its prefix."""
        return "/".join(filter(None, (self.family, self.kind, self.layer)))


def parsed(tag: str) -> Tag | None:
    """The parts of a tag of one of our families; None for any other."""
    found = _OURS.fullmatch(tag)
    return _parts(found["prefix"], found["family"], found["rest"]) if found else None


def ours(tags: Iterable[str], described: Collection[str] = ()) -> dict[str, Tag]:
    """Those of some tags that are ours, by their whole names.

    Args:
        tags: Of scalars.
        described: Tags that came with a description, which a quantity of the user's own has too.
    """
    found = {}
    for tag in tags:
        known = parsed(tag)
        if known is None and tag in described and "/" in tag:
            family, _, rest = tag.partition("/")
            known = _parts("", family, rest)
        if known is not None:
            found[tag] = known
    return found


def is_uncertainty(tag: Tag) -> bool:
    """Whether a tag is that of an error, or of the end of a band, of another one."""
    return tag.family.endswith("_stderr") or (tag.kind or tag.layer).endswith(_ENDS)


def uncertainties(tag: str) -> list[str]:
    """Tags that could hold the error of a tag, and the ends of its band."""
    found = [f"{tag}{end}" for end in _ENDS]
    known = parsed(tag)
    if known is not None and (known.layer or known.kind):
        found.append(f"{known.prefix}{known._replace(family=f'{known.family}_stderr').plain}")
    elif known is None and "/" in tag:
        family, _, rest = tag.partition("/")
        found.append(f"{family}_stderr/{rest}")
    return found


def quantities(tags: Mapping[str, Tag]) -> dict[str, list[str]]:
    """Whole tags by quantity, those of a quantity's layers together, without errors and ends of bands."""
    found: dict[str, list[str]] = {}
    for name, tag in tags.items():
        if not is_uncertainty(tag):
            found.setdefault(tag.quantity, []).append(name)
    return found


def _parts(prefix: str, family: str, rest: str) -> Tag:
    if family.endswith("_layers"):
        return Tag(prefix, family, "", rest)
    kind, _, layer = rest.partition("/")
    return Tag(prefix, family, kind, layer)
