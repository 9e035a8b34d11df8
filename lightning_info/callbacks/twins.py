"""Several twins as one measurement, and what is said of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_info.functional.standard_error import standard_error
from lightning_info.replica.snapshot import Unavailable
from lightning_info.twin import Twin


def family_of(number: int) -> str:
    """First part of the tags of one of several twins, counted from 0."""
    return f"stability_twin{number + 1}"


def together(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Tags of a point from the values of each twin by name; of several twins their mean and its standard error too.

    The error is over the replaced samples, not over the samples that the twins are compared on.

    Args:
        found: Of each twin; nothing of one that is lost.

    Raises:
        Unavailable: Several twins, of which all are lost.
    """
    if len(found) == 1:
        return {f"stability/{name}": value for name, value in found[0].items()}
    if not any(found):
        raise Unavailable("no twin follows the run any more")
    names = list(dict.fromkeys(name for one in found for name in one))
    values: dict[str, float] = {}
    for number, one in enumerate(found):
        of_one = one or dict.fromkeys(names, math.nan)
        values.update((f"{family_of(number)}/{name}", value) for name, value in of_one.items())
    for name in names:
        several = torch.tensor([one[name] for one in found if name in one], dtype=torch.float64)
        values[f"stability/{name}"] = several.mean().item()
        values[f"stability_stderr/{name}"] = standard_error(several)
    return values


def replaced(twin: Twin) -> str:
    """What the twin trains on instead of what."""
    if twin.is_null:
        return f"nothing (sample {twin.index} by itself: the null test)"
    return f"sample {twin.index} by sample {twin.replacement}"


def since(twin: Twin) -> str:
    """How far it is certified, after :func:`replaced`."""
    if twin.reason is not None:
        return f", until the twin was lost at step {twin.lost_at}: {twin.reason}"
    if twin.first_difference_step is None:
        return "; the twin was equal to the run at every step"
    return f", first at step {twin.first_difference_step}; up to there the twin was equal to the run at every step"


def lost(twin: Twin) -> str:
    """When and why it was lost."""
    first = twin.first_difference_step
    certified = "" if first is None else f" (until step {first} it was equal to the run)"
    return f"the twin was lost at step {twin.lost_at}{certified}, and has no values any more: {twin.reason}"
