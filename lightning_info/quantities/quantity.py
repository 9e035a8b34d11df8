"""``Quantity``: one thing to measure over training. Callbacks decide when; ``measure`` needs no training at all."""

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
from lightning_info.quantities.first_epoch import FirstEpoch
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.replica.random_subset import SampledSet
from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot
from lightning_info.replica.timing import trial
from lightning_info.reporting.description import SHARE, Description, describe
from lightning_info.reporting.layout import Chart
from lightning_info.reporting.table import Curve


class NotMeasurable(ValueError):
    """It cannot be measured on this module, as found before the first step; the message has the fix."""


class Warn(Protocol):
    """Warns the user once."""

    def __call__(self, message: str, kind: str) -> None:
        """Warn, unless a warning of this kind was given."""


def _warn(message: str, kind: str) -> None:
    warnings.warn(message, stacklevel=3)


def silent(message: str, kind: str) -> None:
    """Warn nobody: in trials."""


@dataclass(frozen=True)
class Point:
    """Position of a measurement in training.

    Attributes:
        step: Optimiser steps taken.
        generator: Source of random numbers, seeded by the callback's seed and the step; never training's own.
        setup: Known facts about the training: its number of samples, its optimiser.
        num_samples: Number of reference samples of a measurement.
        warn: Warns the user once.
        training_set: Random samples of the first epoch, or why there are none; None until it is over, or if the
            quantity does not ask for them by :attr:`Quantity.evaluation_samples`.
        validation_set: The same of the first validation.
        first_epoch: Losses of the training steps of the first epoch so far; None unless the callback collects them.
        beside: Values that callbacks before this one in the Trainer's list measured, by tag without prefix; NaN where
            they did not measure at this step.
    """

    step: int
    generator: Generator
    setup: TrainingSetup = field(default_factory=TrainingSetup)
    num_samples: int = 0
    warn: Warn = _warn
    training_set: SampledSet | None = None
    validation_set: SampledSet | None = None
    first_epoch: FirstEpoch | None = None
    beside: Mapping[str, float] = field(default_factory=dict)

    def training_samples(self, measured: int) -> float:
        """Return N of the summed loss; if the data have no length, the measured samples, with one warning."""
        if not math.isnan(self.setup.training_samples):
            return self.setup.training_samples
        self.warn(f"the training data have no length; N = {measured}, the samples of F, is used instead", "length")
        return float(measured)


@dataclass(frozen=True)
class Record:
    """Record of what was measured so far.

    Attributes:
        curves: ``tag -> [(step, value), ...]``, tags without prefix, in the quantity's own units.
        epochs: Epochs passed at the measured steps.
        unit: Unit in which information is shown; None for the quantity's own.
    """

    curves: Mapping[str, Curve]
    epochs: Mapping[int, float] = field(default_factory=dict)
    unit: Unit | None = None

    def shown(self, unit: str) -> tuple[str, float]:
        """Return the unit in which values of a unit are shown, and the factor for them."""
        return in_unit(unit, self.unit)

    @property
    def last_step(self) -> int:
        """Step of the last point; -1 without one."""
        return max((curve[-1][0] for curve in self.curves.values() if curve), default=-1)


class Quantity(ABC):
    """One quantity, measured over training by a callback, or once by :func:`~lightning_info.measure`.

    A subclass defines :attr:`name` and :meth:`measure`, and those of the methods below that it needs::

        class WeightNorm(Quantity):
            name = "weight_norm"
            unit = ""

            def measure(self, snapshot, point):
                squares = sum(p.square().sum() for p in snapshot.module.parameters())
                return {"weight_norm/l2": squares.sqrt().item()}

        trainer = Trainer(callbacks=[InfoCallback(WeightNorm(), every_n_epochs=1)])

    Attributes:
        tags: Scalars of every measurement, which are NaN (a gap) if one fails; known after :meth:`prepare`. Without
            them, the tags of the previous measurements are used.
        table: Rows of the table at the end of fit: a tag and the tag of its standard error.
        ended: Tags whose curves have ended: later points have no value of them, which is no gap.
    """

    name: ClassVar[str]
    """First part of the tags: ``name/...``, or ``name_something/...``; no other callback may use it."""
    unit: ClassVar[str] = ""
    """Unit of the values, for the quantity's own figures."""
    descriptions: ClassVar[Mapping[str, Description]] = {}
    """Meanings of the tags by pattern, in which ``*`` stands for a layer: ``"mine/rank/*"``; the first match counts.
    Figures and histograms are described by their tags too."""
    moves_weights: ClassVar[bool] = False
    """Whether a measurement moves the weights of its replica, then a copy, and puts them back at its end."""
    needs_likelihood: ClassVar[bool] = True
    """If False, a module whose loss is not known is measured by its outputs (:attr:`~.Prediction.unknown` says why)."""
    needs_start: ClassVar[bool] = False
    """Whether :meth:`start` needs the weights that training starts from."""

    evaluation_samples: ClassVar[int] = 0
    """Most samples to keep of the first epoch, and of the first validation, drawn at random: what the error of the
    network on its training set is measured on, for example, which the first samples of training do not stand for."""

    least_passes: float = 0.0
    """Smallest number of plain forward and backward passes over the samples that a point takes: if the run's time
    budget has no room for them, the module is not examined."""

    tags: tuple[str, ...] = ()
    table: tuple[tuple[str, str | None], ...] = ()
    ended: frozenset[str] = frozenset()

    # ---- before the first step

    def check(self, owner: str) -> None:
        """Refuse invalid arguments.

        Args:
            owner: Name of the class that the user wrote, for messages.

        Raises:
            ValueError: An argument is invalid; the message says what to write instead.
        """

    def reset(self) -> None:
        """Forget everything measured, as a run begins."""

    def start(self, module: Any) -> None:
        """See the user's module at initialisation; called if :attr:`needs_start`."""

    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        """Check before the first step, on a few samples, that the module can be measured; say how.

        Args:
            snapshot: A replica and a few samples.
            point: Step 0, or where a run goes on.

        Returns:
            Rows of the summary, title and text; ``"measures"`` is the first, by default the name.

        Raises:
            NotMeasurable: The module cannot be measured; the message has the cause and the fix.
            NoPrediction: There is no usable predictive distribution.
            NotCovered: There are no exact gradients.
        """
        return {"measures": self.name}

    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        """Forecast the seconds of a point over so many samples, from trials on the samples of a snapshot.

        By default a copy of the quantity measures the few samples before the first step; its mistakes are reported
        then.
        """
        copied, point = copy.deepcopy(self), Point(0, Generator(), num_samples=snapshot.size, warn=silent)
        run = lambda: copied.measure(snapshot.on(snapshot.groups), point)  # noqa: E731
        return trial(run, snapshot.device) * samples / snapshot.size

    def cheaper(self) -> str:
        """Make points about half as expensive, with a larger error that is reported, as the run's budget asks for it.

        Called before the first step, as often as needed; after that, fewer samples are measured. :meth:`reset` undoes
        it.

        Returns:
            What is reduced, in words, such as ``"16 draws instead of 64"``; empty if nothing can be.
        """
        return ""

    # ---- a point

    def statistics(self) -> Sequence[ForwardStatistic]:
        """Return what every point reads from the forward pass over the reference samples, which others may share."""
        return ()

    @abstractmethod
    def measure(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, float]:
        """Measure all values of a point, by tag without prefix.

        The replica's parameters share the run's own memory, and other quantities measure on it too: whatever is
        changed in it must be put back (weights may be moved only with :attr:`moves_weights`).

        Args:
            snapshot: A replica with the weights of the step, and the reference samples.
            point: Position in training.

        Returns:
            Numbers, or tensors of one element; NaN for a missing value.

        Raises:
            Unavailable: The point has no value, for a reason that is not a fault.
        """

    # ---- what is shown

    def finish(self, record: Record, point: Point) -> Mapping[str, Curve]:
        """Return curves that are known only after the last point, by tag without prefix; written at the end of fit."""
        return {}

    def closing_text(self, record: Record) -> str:
        """Return what is printed below the table at the end of fit."""
        return ""

    def conclusions(self, record: Record) -> Mapping[str, Any]:
        """Return the same for programs, as plain Python values."""
        return {}

    def charts(self) -> Mapping[str, Chart]:
        """Return charts of several tags, without prefix, by title; called after :meth:`prepare`."""
        return {}

    def histograms(self) -> Mapping[str, Tensor]:
        """Return values whose distribution at the last point is shown, by tag without prefix."""
        return {}

    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        """Return figures by tag without prefix; each is drawn when it is called."""
        return {}

    def describe(self, tag: str) -> Description | None:
        """Return the meaning of a tag without prefix, for tables and charts; None if it is not known."""
        return describe({f"{self.name}/overhead": SHARE, **self.descriptions}, tag)

    def is_logged(self, tag: str) -> bool:
        """Tell whether a value goes to the loggers, or only to the history."""
        return True

    # ---- resuming

    def settings(self) -> Mapping[str, object]:
        """Return the arguments that decide what the values mean; if they differ, a checkpoint's curves end."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain Python values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        """Go on from :meth:`state_dict`.

        Args:
            state: State in the checkpoint.
            same_settings: Whether :meth:`settings` are those of the checkpoint, so its curves are continued.
        """
