"""Messages during a run, besides the summary at its start."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_info.callbacks.monitors import name_of

FROZEN_CHANGED = "no value at step 0: weights that are not trained have changed since"


def left_out(steps: Sequence[int], samples: int) -> str:
    """Return the message about points that were due before the reference samples were complete."""
    points = (
        f"the point due at step {steps[0]} was"
        if len(steps) == 1
        else (f"the {len(steps)} points due at steps {steps[0]} to {steps[-1]} were")
    )
    return (
        f"{points} left out, because the {samples} reference "
        f"samples were not complete; use a smaller num_samples, or reference=..., to have them"
    )


def skipped(batches: int) -> str:
    """Return the message that the module is trained on no sample of the first batches."""
    which = "the first batch" if batches == 1 else f"the first {batches} batches"
    return (
        f"nothing is measured, as training_step returned None for {which} (at most 8 samples of it at once), and a "
        f"module is not trained on such a batch; return a loss, or pass the samples to measure, for example "
        f"reference=(x, y). A step that goes backward by itself needs self.automatic_optimization = False"
    )


def gathered(size: int) -> str:
    """Return the row of the summary about sharded parameters that take so many bytes as a whole."""
    return f"sharded, and gathered for each point: a second copy of {size / 2**20:.3g} MiB in every process"


def smaller_chunks(step: int, chunk: int) -> str:
    """Return the message that memory has run out."""
    return f"out of memory at step {step}; it is measured in chunks of {chunk} samples or fewer from now on"


def not_shared(reason: str) -> str:
    """Return the message that several processes cannot share the work of a point."""
    return f"every process measures all samples, as {reason}; the values are those of the first process"


def monitored(monitors: Mapping[str, Sequence[Any]], tags: Iterable[str], budget: float) -> str | None:
    """Return the message that a callback acts on values which the time budget may leave out; None if none does."""
    for tag in tags:
        if tag in monitors:
            return (
                f"{name_of(monitors[tag][0])} monitors {tag!r}, whose points are left out if they would take more than "
                f"{budget:.2g} of the time; every_n_epochs=1 measures one in every epoch"
            )
    return None


def monitored_gap(monitors: Sequence[Any], tag: str, step: int, last: int) -> str:
    """Return the message that a callback acts on an earlier value, as this step has none."""
    return (
        f"{' and '.join(map(name_of, monitors))} monitor{'s' if len(monitors) == 1 else ''} {tag!r}, which has no "
        f"value at step {step} (NaN); callback_metrics keeps that of step {last} until there is a new one, as NaN "
        f"would end the run"
    )


def starts_anew(changes: Mapping[str, tuple[str, str]], step: int) -> str:
    """Return the message that settings differ from those in the checkpoint."""
    what = "; ".join(f"{name} was {old} in the checkpoint and is {new} now" for name, (old, new) in changes.items())
    return (
        f"{what}: the values are not comparable, so the curves start anew at step {step}; those of the "
        f"checkpoint end there (NaN in the loggers) and are not in callback.history"
    )


def other_samples(saves: bool) -> str:
    """Return the message that a resumed run could not use the samples of the checkpoint."""
    why = "" if saves else ", as save_samples=False keeps them out of checkpoints"
    return (
        f"the curve goes on with other reference samples than before{why}: from here on values also differ by the "
        f"choice of samples, which no error bar includes"
    )


def refused(owner: str, reason: str, first: str) -> str:
    """Return the message that something cannot be measured, before the lines of code that may belong to it.

    Args:
        owner: Name of the callback's class.
        reason: The reason.
        first: Name of the class that was first refused for that reason.
    """
    off = f"{owner} is off, and training goes on (on_error='raise' ends it instead)"
    if first != owner:
        return f"{owner}: refused for the same reason as {first}; {off}"
    head, _, code = reason.partition("\n\n")
    return f"{head.rstrip(':.')}. {off}" + (f":\n\n{code}" if code else "")


def joined(less: Iterable[str]) -> str:
    """Join texts such as ``"8 draws instead of 16"``; a chain of them keeps its last number and its first.

    Args:
        less: The texts, in the order in which they arose.
    """
    chains: dict[tuple[str, str], tuple[str, str]] = {}
    for text in less:
        found = re.fullmatch(r"(.*?)(\d+)(.*) instead of (\d+)", text)
        kind = (found[1], found[3]) if found else (text, "")
        chains[kind] = (found[2], chains.get(kind, ("", found[4]))[1]) if found else ("", "")
    return ", ".join(
        f"{before}{last}{after} instead of {first}" if first else before
        for (before, after), (last, first) in chains.items()
    )


def within_budget(limit: float, floor: float, expected: float) -> str:
    """Return the text about the time that the callbacks of a run may take together."""
    if limit >= 1:
        return ""
    seconds = "" if math.isnan(expected) else f", now about {max(floor, limit * expected):.2g} s"
    share = f"{limit:.2g} of the run's time, or {floor:.2g} s beside the checks before the first step{seconds}"
    return f"; as far as they fit into the budget of all callbacks ({share})"


def never_fits(point: float) -> str:
    """Return the message that a point can never fit into the budget of the run."""
    return (
        f"the time budget of this run does not hold two points, which take {point:.2g} s each at the least; "
        f"max_overhead=... makes it larger, and every_n_epochs=1 measures whatever it takes"
    )


def no_room(point: float) -> str:
    """Return the message that a point does not fit into the budget."""
    takes = "" if math.isnan(point) else f", as one takes about {point:.2g} s"
    return (
        f"no point fits into the time budget of the run so far{takes}; max_overhead=... "
        f"makes the budget larger, and every_n_epochs=1 measures whatever it takes"
    )
