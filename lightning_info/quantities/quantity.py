"""What a concrete callback supplies: its tags, its checks, what it measures and what it draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_info.replica.snapshot import ForwardStatistic, ModelSnapshot
from lightning_info.reporting.figures import Curve
from lightning_info.reporting.layout import Chart


class Quantity(ABC):
    """One quantity over training; ``base`` decides when it is measured and brings the values to their places.

    Attributes:
        history: ``tag -> [(step, value), ...]`` of everything measured.
    """

    family: ClassVar[str]
    """First part of the tags."""
    tags: tuple[str, ...]
    """Scalars that every measurement gives."""
    table: tuple[tuple[str, str | None], ...]
    """Rows of the table at the end of fit: a tag and the tag of its standard error."""
    moves_weights: ClassVar[bool] = False
    """A measurement moves the weights of its replica, which must be copies."""

    history: dict[str, list[tuple[int, float]]]

    @abstractmethod
    def _prepare(self, snapshot: ModelSnapshot) -> Mapping[str, str]:
        """Check before the first step that a module can be measured, on a few samples; say how.

        Returns:
            Rows of the summary, at least ``"measures"``.

        Raises:
            NoPrediction: No usable predictive distribution.
            NotCovered: No exact gradients.
        """

    @abstractmethod
    def _cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        """Seconds that a point over so many samples will take, from trials on the samples of a snapshot."""

    @abstractmethod
    def _measure(self, snapshot: ModelSnapshot, step: int, generator: torch.Generator) -> dict[str, float]:
        """All values of a point, by tag without prefix.

        Args:
            snapshot: A replica with the weights of the step, and the reference samples.
            step: Optimiser steps taken.
            generator: Seeded by the callback's seed and the step.

        Raises:
            Unavailable: The point has no value, for a reason that is no fault.
        """

    def statistics(self) -> Sequence[ForwardStatistic]:
        """What every point reads from the forward pass over the reference samples, which other callbacks may share."""
        return ()

    def _finish(self) -> Mapping[str, Curve]:
        """Curves that are known only when the last point is; by tag without prefix, written at the end of fit."""
        return {}

    def _closing_text(self) -> str:
        """What is printed below the table at the end of fit."""
        return ""

    def _charts(self) -> dict[str, Chart]:
        """Charts of several tags, by title; asked after :meth:`_prepare`."""
        return {}

    def _histograms(self) -> Mapping[str, Tensor]:
        """Values whose distribution is shown at the last point, by tag without prefix."""
        return {}

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        """Figures by tag without prefix, drawn from the history."""
        return {}

    def _defining(self) -> Mapping[str, object]:
        """Own arguments that decide what the values mean: with others a curve of a checkpoint does not go on."""
        return {}

    def _is_logged(self, tag: str) -> bool:
        """Whether a value goes to the loggers, or only to the history."""
        return True
