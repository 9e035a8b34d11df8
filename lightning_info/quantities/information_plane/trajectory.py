"""The activations at a run's points, as far as memory allows, as the range over training is known only at the end."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lightning_info.quantities.information_plane.estimates import Bounds, Estimate, EstimatorSettings
from lightning_info.quantities.information_plane.labels import Labels

LARGEST = 1 << 25
"""Bytes of activations that are kept, 32 MiB; beyond that every second point is dropped."""
MOST_POINTS = 200
"""Largest number of points of a curve that is computed anew; of more, every second, fourth, ... is used."""

Plane = dict[str, list[tuple[int, float, float]]]
"""``layer -> [(step, I(X;T), I(T;Y)), ...]``, NaN where there is no value."""


class Trajectory:
    """Activations of the same samples at the measured points.

    Attributes:
        points: ``step -> layer -> (N, d)``, in the order of measuring; the last one is always there.
        ranges: The smallest and largest activation of each layer over all points, including dropped ones.
        labels: Labels of the samples.
        samples: N; 0 before the first point.
    """

    def __init__(self) -> None:
        self.points: dict[int, dict[str, Tensor]] = {}
        self.ranges: dict[str, Bounds] = {}
        self.labels: Labels | None = None
        self.samples = 0
        self._every = 1  # every n-th point is kept
        self._count = 0

    def fits(self, labels: Labels | None, samples: int) -> bool:
        """Tell whether points of such samples continue this trajectory."""
        if not self.samples:
            return True
        same = labels is self.labels is None or (labels is not None and labels.equal(self.labels))
        return same and samples == self.samples

    def add(self, step: int, activations: dict[str, Tensor], labels: Labels | None, samples: int) -> None:
        """Add a point; values that are not finite do not enter the range."""
        self.labels, self.samples = labels, samples
        for layer, values in activations.items():
            ends = _finite_ends(values)
            if ends is not None:
                low, high = self.ranges.get(layer, ends)
                self.ranges[layer] = min(low, ends[0]), max(high, ends[1])
        last = next(reversed(self.points), None)
        if last is not None and (self._count - 1) % self._every:  # it was kept only as the last one
            del self.points[last]
        self.points[step] = {layer: values.clone() for layer, values in activations.items()}
        self._count += 1
        while self._bytes() > LARGEST and len(self.points) > 2:
            self._every *= 2
            steps = list(self.points)
            kept = {*steps[::2], steps[-1]}
            self.points = {step: self.points[step] for step in steps if step in kept}

    def curves(self, estimate: Estimate, method: EstimatorSettings) -> Plane:
        """Compute all kept points under one estimate; the global range is that of all points."""
        steps = sorted(self.points)
        every = 2 ** max(0, math.ceil(math.log2(max(1, len(steps)) / MOST_POINTS)))
        plane: Plane = {}
        for i, step in enumerate(steps):
            if i % every == 0 or i == len(steps) - 1:
                for layer, t in self.points[step].items():
                    pair = (math.nan, math.nan)
                    if t.isfinite().all():
                        pair = estimate.read(t, self.labels, self.ranges[layer], method)[:2]
                    plane.setdefault(layer, []).append((step, *pair))
        return plane

    def _bytes(self) -> int:
        leaves = (values for point in self.points.values() for values in point.values())
        return sum(values.numel() * values.element_size() for values in leaves)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "points": {step: dict(point) for step, point in self.points.items()},
            "ranges": {layer: list(bounds) for layer, bounds in self.ranges.items()},
            "labels": None if self.labels is None else self.labels.y,
            "samples": self.samples,
            "every": self._every,
            "count": self._count,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Trajectory:
        """Restore what :meth:`state` returned."""
        trajectory = cls()
        trajectory.points = {int(step): dict(point) for step, point in state["points"].items()}
        trajectory.ranges = {layer: (float(low), float(high)) for layer, (low, high) in state["ranges"].items()}
        trajectory.labels = None if state["labels"] is None else Labels(state["labels"])
        trajectory.samples = int(state["samples"])
        trajectory._every, trajectory._count = int(state["every"]), int(state["count"])
        return trajectory


def _finite_ends(values: Tensor) -> Bounds | None:
    """Return the smallest and largest of the finite values; None if there are none."""
    if not values.numel():
        return None
    low, high = (end.item() for end in values.aminmax())
    if math.isfinite(low) and math.isfinite(high):  # NaN would be both
        return low, high
    return _finite_ends(values[values.isfinite()])
