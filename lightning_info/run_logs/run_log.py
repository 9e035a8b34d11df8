"""One run as its log tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_info.reporting.table import Curve
from lightning_info.run_logs.tags import ours, parsed

EPOCH = "epoch"
"""Tag under which Lightning writes the number of the epoch."""


class Picture(NamedTuple):
    """A figure that the run has drawn.

    Attributes:
        tag: Its tag.
        step: When.
        key: By which its reader finds the file.
    """

    tag: str
    step: int
    key: str


@dataclass(frozen=True)
class RunLog:
    """What one run has logged.

    Attributes:
        name: Of the run.
        curves: ``tag -> [(step, value), ...]`` in rising steps, of all scalars, the user's too.
        descriptions: What tags mean, as the run itself says it.
        texts: By tag, the last of each.
        settings: Hyperparameters.
        pictures: The last of each tag.
    """

    name: str
    curves: Mapping[str, Curve]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()

    def __post_init__(self) -> None:
        """Put points in order; of several at a step, as a run that was resumed has them, the last one counts."""
        object.__setattr__(self, "curves", {tag: in_order(curve) for tag, curve in self.curves.items()})

    @property
    def ours(self) -> dict[str, Curve]:
        """The curves of our callbacks."""
        return {tag: self.curves[tag] for tag in ours(self.curves, self.descriptions)}

    @property
    def users(self) -> dict[str, Curve]:
        """All others: losses, accuracies."""
        known = {*self.ours, EPOCH, "hp_metric"}
        return {tag: curve for tag, curve in self.curves.items() if tag not in known}

    def errors(self, tag: str) -> dict[int, float]:
        """Standard errors of a tag that are known, by step."""
        known = parsed(tag)
        family, _, rest = tag.partition("/")
        second = f"{family}_stderr/{rest}"
        if known is not None:
            second = f"{known.prefix}{known._replace(family=f'{known.family}_stderr').plain}"
        found = self.curves.get(f"{tag}_stderr") or self.curves.get(second) or ()
        return {step: error for step, error in found if math.isfinite(error)}

    def epochs(self, steps: Sequence[int]) -> list[float] | None:
        """Epochs passed at some steps, fractions included; None where the log has no epochs."""
        last: dict[float, int] = {}
        for step, epoch in self.curves.get(EPOCH, ()):
            last[epoch] = max(step, last.get(epoch, 0))
        if not last:
            return None
        ends = [(0.0, 0.0), *((step + 1.0, epoch + 1.0) for epoch, step in sorted(last.items()))]
        at, passed = (np.array(part) for part in zip(*ends, strict=True))
        if len(at) > 1 and at[-1] > at[0]:  # beyond the last, as fast as before
            beyond = [(end - at[-1]) * passed[-1] / at[-1] for end in steps]
        else:
            beyond = [0.0 for _ in steps]
        inside: NDArray[np.float64] = np.interp(steps, at, passed)
        return [round(float(x) + max(0.0, more), 4) for x, more in zip(inside, beyond, strict=True)]


def in_order(curve: Curve) -> list[tuple[int, float]]:
    """Points in rising steps; of several at a step the last."""
    return sorted(dict(curve).items())
