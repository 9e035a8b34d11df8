"""``TwinStability``: the stability of a run measured with its twins, which train in lockstep with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import nn
from typing_extensions import override

from lightning_info.figures.stability_paths import LossLandscape, stability_paths
from lightning_info.quantities.quantity import Point, Record
from lightning_info.quantities.stability.quantity import Other, Stability
from lightning_info.replica.left_out import saves_left_out
from lightning_info.replica.side_effects import Guard, SideEffectRefused
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.twin import Twin


class TwinStability(Stability):
    """See :class:`~.StabilityCallback` for the arguments and values.

    Attributes:
        twins: The twins.
        seconds: Seconds that they have trained so far.
        snapshot_of: Returns a snapshot of a twin from its trainer, module and reference samples; set when a run begins.
        sample_of: Returns a batch of the sample that a twin lacks, as the run has it; set at the same time.
        landscape_at_end: Returns what the figure shows; set when training has ended and the twins still exist.
        raises: Whether the error of a twin is raised instead of reported.
    """

    def __init__(
        self,
        index: int | None,
        replacement: int | None,
        beta: float,
        num_twins: int,
        seed: int,
        raises: bool,
        trust: Sequence[str] = (),
    ) -> None:
        self.index, self.replacement, self.raises = index, replacement, raises
        self.twins: Sequence[Twin] = [Twin(index, replacement, seed, n, trust) for n in range(num_twins)]
        super().__init__(beta, seed, num_twins)

    @override
    def reset(self) -> None:
        super().reset()
        self.seconds = 0.0
        self.let_go()

    def let_go(self) -> None:
        """Release everything of the run that has ended."""
        self.snapshot_of: Callable[[Any, Any, list[Any]], ModelSnapshot] | None = None
        self.sample_of: Callable[[Twin], Any] | None = None
        self.landscape_at_end: Callable[[], LossLandscape | None] | None = None

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        with harmless():
            rows = dict(super().prepare(snapshot, point))
        self.tags = ("stability/twin_overhead", *self.tags)
        left_out = {"left out": rows.pop("left out")} if "left out" in rows else {}
        twins = (
            f"{self.count}, trained in lockstep with the run: each takes about the run's time once more, and the "
            f"memory of one more model and optimiser"
        )
        rows |= {"twins": twins, "replaced": "; ".join(map(replaced, self.twins))}
        notes = self.twins[0].notes
        return rows | ({"the twins follow": "; ".join(notes)} if notes else {}) | left_out

    # ---- a point

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        self.others = self._others()
        with harmless():
            return super().measure(snapshot, point)

    @override
    def distances(self, module: nn.Module, point: Point) -> dict[str, float]:
        self.others = self._others()
        return super().distances(module, point)

    def _others(self) -> list[Other]:
        return [self._other(twin) for twin in self.twins]

    def _other(self, twin: Twin) -> Other:
        if twin.reason is not None:
            if twin.error is not None and self.raises:
                raise RuntimeError(twin.reason) from twin.error
            return Other(None, _nothing, lost=lost(twin))
        assert self.snapshot_of is not None
        assert self.sample_of is not None
        module = twin.weights()
        return Other(
            module,
            partial(self.snapshot_of, module.trainer, module),
            partial(self.sample_of, twin),
            is_equal=twin.first_difference_step is None,  # as the twin has checked at this step
        )

    # ---- what is shown

    @override
    def is_logged(self, tag: str) -> bool:
        return tag != "stability/twin_overhead"  # a matter of the run's time, not of what is learnt

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        """Return the figure of the first twin's paths, once they have an end."""
        found = None if self.landscape_at_end is None else self.landscape_at_end()
        return {} if found is None else {"stability/paths": partial(self._paths, found)}

    def _paths(self, found: LossLandscape) -> Figure:
        twin, steps = self.twins[0], found.paths.steps
        title = f"Training with sample {twin.index}, and with sample {twin.replacement} in its place"
        return stability_paths(found, title=f"{title}; steps {steps[0]} to {steps[-1]}", caption=f"β = {self.beta:g}")

    @override
    def closing_text(self, record: Record) -> str:
        return "\n".join(f"stability: {replaced(twin)}{since(twin)}." for twin in self.twins)

    # ---- resuming

    @override
    def settings(self) -> Mapping[str, object]:
        settings = {"index": self.index, "replacement": self.replacement, "num_twins": self.count}
        return {**settings, **super().settings()}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seconds": self.seconds, "twins": [twin.state_dict() for twin in self.twins]}

    @override
    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        super().load_state_dict(state, same_settings)
        self.seconds = float(state["seconds"])
        for twin, kept in zip(self.twins, state["twins"], strict=False):
            twin.load_state_dict(kept)


@contextmanager
def harmless() -> Iterator[None]:
    """Make the user's code save nothing in replicas, including those of the twin.

    Raises:
        Unavailable: Something saved cannot be left out.
    """
    guard = Guard("a measurement")
    try:
        with saves_left_out(), guard.acting():
            yield
    except SideEffectRefused as error:
        raise Unavailable(str(error)) from error
    finally:
        guard.clean_up()


def _nothing(groups: list[Any]) -> ModelSnapshot:
    raise Unavailable("the twin is lost")


def replaced(twin: Twin) -> str:
    """Say which sample the twin replaces by which."""
    if twin.is_null:
        return f"nothing (sample {twin.index} by itself: the null test)"
    return f"sample {twin.index} by {twin.replacement}"


def since(twin: Twin) -> str:
    """Say how far the twin is certified; continues :func:`replaced`."""
    if twin.reason is not None:
        return f", until the twin was lost at step {twin.lost_at}: {twin.reason}"
    if twin.first_difference_step is None:
        return "; the twin was equal at every step"
    return f" from step {twin.first_difference_step}; until then the twin was equal"


def lost(twin: Twin) -> str:
    """Say when and why a twin was lost."""
    first = twin.first_difference_step
    certified = "" if first is None else f" (until step {first} it was equal to the run)"
    return f"the twin was lost at step {twin.lost_at}{certified}, and has no values from there on: {twin.reason}"
