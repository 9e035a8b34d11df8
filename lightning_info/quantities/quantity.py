"""``Quantity``: one thing that is measured over training. Callbacks say when; ``measure`` needs no training at all."""

# ruff: noqa: B027 - most methods may stay as they are

from __future__ import annotations

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from matplotlib.figure import Figure
from torch import Generator, Tensor

from lightning_info.functional.units import Unit, in_unit
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot
from lightning_info.replica.timing import trial
from lightning_info.reporting.description import SHARE, Description, describe
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import Curve


class NotMeasurable(ValueError):
    """It cannot be measured of this module, as is found before the first step; the message tells the fix."""


class Warn(Protocol):
    """Tells the user something once."""

    def __call__(self, message: str, kind: str) -> None:
        """Warn, unless a warning of this kind was given."""


def _warn(message: str, kind: str) -> None:
    warnings.warn(message, stacklevel=3)


def _silent(message: str, kind: str) -> None:
    pass


@dataclass(frozen=True)
class Point:
    """Where in training a measurement is.

    Attributes:
        step: Optimiser steps taken.
        generator: Source of random numbers, seeded by the callback's seed and the step; never training's own.
        setup: What is known of the training: its number of samples, its optimiser.
        num_samples: Reference samples that a measurement is of.
        warn: Tells the user something once.
    """

    step: int
    generator: Generator
    setup: TrainingSetup = field(default_factory=TrainingSetup)
    num_samples: int = 0
    warn: Warn = _warn

    def training_samples(self, measured: int) -> float:
        """N of the summed loss; where the data have no length, the samples that are measured, which is said once."""
        if not math.isnan(self.setup.training_samples):
            return self.setup.training_samples
        self.warn(
            f"the training data have no length; N = {measured}, the samples that F is of, stands for it", "length"
        )
        return float(measured)


@dataclass(frozen=True)
class Record:
    """What was measured so far.

    Attributes:
        curves: ``tag -> [(step, value), ...]``, tags without prefix, in the quantity's own units.
        epochs: Epochs passed at the measured steps.
        unit: In which information is to be shown; None for the quantity's own.
    """

    curves: Mapping[str, Curve]
    epochs: Mapping[int, float] = field(default_factory=dict)
    unit: Unit | None = None

    def shown(self, unit: str) -> tuple[str, float]:
        """The unit in which values of a unit are to be shown, and the factor for them."""
        return in_unit(unit, self.unit)

    @property
    def last_step(self) -> int:
        """Of the last point; -1 without one."""
        return max((curve[-1][0] for curve in self.curves.values() if curve), default=-1)


class Quantity(ABC):
    """One quantity, measured over training by a callback, or once by :func:`~lightning_info.measure`.

    A subclass gives :attr:`name` and :meth:`measure`, and what else it needs of the methods below::

        class WeightNorm(Quantity):
            name = "weight_norm"
            unit = ""

            def measure(self, snapshot, point):
                squares = sum(p.square().sum() for p in snapshot.module.parameters())
                return {"weight_norm/l2": squares.sqrt().item()}

        trainer = Trainer(callbacks=[InfoCallback(WeightNorm(), every_n_epochs=1)])

    Attributes:
        tags: Scalars that every measurement gives, by which a failed one is a gap (NaN); known after :meth:`prepare`.
            Without them the tags of the measurements before are.
        table: Rows of the table at the end of fit: a tag and the tag of its standard error.
    """

    name: ClassVar[str]
    """First part of the tags: ``name/...``, or ``name_something/...``; a word of its own among the callbacks' ones."""
    unit: ClassVar[str] = ""
    """Of the values, for the quantity's own figures."""
    descriptions: ClassVar[Mapping[str, Description]] = {}
    """What its tags mean, by pattern, in which ``*`` stands for a layer: ``"mine/rank/*"``; the first that fits counts.
    Figures and histograms have theirs by their tags too."""
    moves_weights: ClassVar[bool] = False
    """A measurement moves the weights of its replica, which is a copy then, and puts them back at its end."""
    needs_likelihood: ClassVar[bool] = True
    """Without, a module whose loss is not known is measured by its outputs (:attr:`~.Prediction.unknown` tells why)."""
    needs_start: ClassVar[bool] = False
    """:meth:`start` wants the weights that training starts from."""

    least_passes: float = 0.0
    """Plain forward and backward passes over the samples that a point takes however cheap it is made: where the run's
    time budget cannot hold them, the module is not even looked at."""

    tags: tuple[str, ...] = ()
    table: tuple[tuple[str, str | None], ...] = ()

    # ---- before the first step

    def check(self, owner: str) -> None:
        """Refuse arguments that make no sense.

        Args:
            owner: Name of the class that the user wrote, for messages.

        Raises:
            ValueError: With what to write instead.
        """

    def reset(self) -> None:
        """Forget everything measured: a run begins."""

    def start(self, module: Any) -> None:
        """See the user's module at initialisation; asked where :attr:`needs_start`."""

    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        """Check before the first step, on a few samples, that the module can be measured; say how.

        Args:
            snapshot: A replica and a few samples.
            point: Step 0, or where a run goes on.

        Returns:
            Rows of the summary, title and text; ``"measures"`` is the first, by default the name.

        Raises:
            NotMeasurable: The message tells the cause and the fix.
            NoPrediction: No usable predictive distribution.
            NotCovered: No exact gradients.
        """
        return {"measures": self.name}

    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        """Seconds that a point over so many samples will take, from trials on the samples of a snapshot.

        Unless a quantity tells it, a copy of it measures the few samples, before the first step; its mistakes are told
        then.
        """
        copied, point = copy.deepcopy(self), Point(0, Generator(), num_samples=snapshot.size, warn=_silent)
        run = lambda: copied.measure(snapshot.on(snapshot.groups), point)  # noqa: E731
        return trial(run, snapshot.device) * samples / snapshot.size

    def cheaper(self) -> str:
        """Measure about half as dear from now on, with a larger error that is told, as the run's budget asks for it.

        Asked before the first step, as often as it takes; then fewer samples are measured. :meth:`reset` undoes it.

        Returns:
            In words what is less, such as ``"16 draws instead of 64"``; empty if nothing is left to leave out.
        """
        return ""

    # ---- a point

    def statistics(self) -> Sequence[ForwardStatistic]:
        """What every point reads from the forward pass over the reference samples, which other quantities may share."""
        return ()

    @abstractmethod
    def measure(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, float]:
        """All values of a point, by tag without prefix.

        The replica's parameters are the memory of the run itself, and other quantities measure on it too: whatever is
        changed of it is put back (weights may be moved at all only with :attr:`moves_weights`).

        Args:
            snapshot: A replica with the weights of the step, and the reference samples.
            point: Where in training.

        Returns:
            Numbers, or tensors of one element; NaN where there is none.

        Raises:
            Unavailable: The point has no value, for a reason that is no fault.
        """

    # ---- what is shown

    def finish(self, record: Record, point: Point) -> Mapping[str, Curve]:
        """Curves that are known only when the last point is; by tag without prefix, written at the end of fit."""
        return {}

    def closing_text(self, record: Record) -> str:
        """What is printed below the table at the end of fit."""
        return ""

    def conclusions(self, record: Record) -> Mapping[str, Any]:
        """The same for programs, as plain Python values."""
        return {}

    def charts(self) -> Mapping[str, Chart]:
        """Charts of several tags, without prefix, by title; asked after :meth:`prepare`."""
        return {}

    def histograms(self) -> Mapping[str, Tensor]:
        """Values whose distribution is shown at the last point, by tag without prefix."""
        return {}

    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        """Figures by tag without prefix; each is drawn when it is called."""
        return {}

    def describe(self, tag: str) -> Description | None:
        """What a tag without prefix means, for tables and charts; None if that is not known."""
        return describe({f"{self.name}/overhead": SHARE, **self.descriptions}, tag)

    def is_logged(self, tag: str) -> bool:
        """Whether a value goes to the loggers, or only to the history."""
        return True

    # ---- resuming

    def settings(self) -> Mapping[str, object]:
        """Arguments that decide what the values mean: with others a curve of a checkpoint does not go on."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain Python values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        """Go on from :meth:`state_dict`.

        Args:
            state: Of the checkpoint.
            same_settings: :meth:`settings` are those of the checkpoint, so that its curves go on.
        """
