"""Layers whose value only says that their ceiling is reached."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_info.functional.effective_information import EffectiveInformation


def at_ceilings(family: str, found: Mapping[str, EffectiveInformation]) -> list[str]:
    """Return a sentence for each ceiling that layers have reached.

    Args:
        family: First part of their tags.
        found: Values at the last point, by layer.
    """
    ceilings = {
        "log N, the most that can be seen: more samples show more": [
            name for name, one in found.items() if one.is_saturated
        ],
        "H(Y): all samples are told apart": [name for name, one in found.items() if one.label_is_ceiling],
    }
    return [
        f"{family}: {', '.join(names)} {'end' if len(names) > 1 else 'ends'} at {what}."
        for what, names in ceilings.items()
        if names
    ]
