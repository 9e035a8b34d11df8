"""Curves that were read before: panels share loss, accuracy and epochs, and TensorBoard's Python loader is slow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightning_info.run_logs.provided import ProvidedRuns

MOST_KEPT = 4_000_000
"""Points; beyond that everything is forgotten."""

Points = list[tuple[int, float]]


class CurveCache:
    """Keeps curves until a point is added to them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str, int], tuple[float, Points]] = {}
        self._size = 0

    def read(
        self,
        provided: ProvidedRuns,
        written: Mapping[tuple[str, str], float],
        runs: Sequence[str],
        tags: Collection[str],
        most: int,
    ) -> dict[str, dict[str, Points]]:
        """Curves by run and tag, as :meth:`~.ProvidedRuns.curves` gives them.

        Args:
            provided: Where those come from that are not here, or not any more as they were.
            written: When the last point of a run's tag was; what is not in it is not there.
            runs: Which.
            tags: Which.
            most: Points of a curve.
        """
        kept = dict(self._kept)  # another request may empty it meanwhile
        found: dict[str, dict[str, Points]] = {run: {} for run in runs}
        missing: dict[str, list[str]] = {}
        for run in runs:
            for tag in tags:
                if (run, tag) in written:
                    when, points = kept.get((provided.experiment, run, tag, most), (None, []))
                    if when == written[run, tag]:
                        found[run][tag] = points
                    else:
                        missing.setdefault(tag, []).append(run)
        if missing:
            self._fetch(provided, written, missing, most, found)
        return found

    def _fetch(
        self,
        provided: ProvidedRuns,
        written: Mapping[tuple[str, str], float],
        missing: Mapping[str, Sequence[str]],
        most: int,
        found: dict[str, dict[str, Points]],
    ) -> None:
        lacking = {run for runs in missing.values() for run in runs}
        for run, curves in provided.curves(lacking, set(missing), most).items():
            for tag, points in curves.items():
                found[run][tag] = points
                self._size += len(points)
                if self._size > MOST_KEPT:
                    self._kept, self._size = {}, len(points)
                self._kept[provided.experiment, run, tag, most] = (written.get((run, tag), 0.0), points)
