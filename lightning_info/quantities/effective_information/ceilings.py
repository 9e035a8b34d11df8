"""Which layers say no more of themselves than that their ceiling is reached."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_info.functional.effective_information import EffectiveInformation


def at_ceilings(family: str, found: Mapping[str, EffectiveInformation]) -> list[str]:
    """A sentence for each ceiling that layers are at.

    Args:
        family: First part of their tags.
        found: Of the last point, by layer.
    """
    ceilings = {
        "at their ceiling log N, so that how much more they hold is not seen (more samples show it)": [
            name for name, one in found.items() if one.is_saturated
        ],
        "at H(Y), which says no more than that the samples are told apart": [
            name for name, one in found.items() if one.label_is_ceiling
        ],
    }
    return [f"{family}: {', '.join(names)} at the end {what}." for what, names in ceilings.items() if names]
