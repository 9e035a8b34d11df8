"""``Stability``: the distance of trainings that differ in one sample, in their weights and in their predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_info.figures.stability_paths import LossLandscape
from lightning_info.functional.standard_error import standard_error
from lightning_info.gradients.contract import NotCovered
from lightning_info.quantities.quantity import Point, Quantity
from lightning_info.quantities.stability.descriptions import DESCRIPTIONS
from lightning_info.quantities.stability.loss_landscape import picture_of_ends
from lightning_info.quantities.stability.weight_change import (
    fisher_distance,
    flat_weights,
    length,
    mean_output_kl,
    prediction_change,
    sample_loss,
    weight_change,
)
from lightning_info.quantities.stability.weight_trajectory import WeightTrajectory
from lightning_info.quantities.weight_information.curvature import fisher_products
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.timing import trial
from lightning_info.reporting.layout import Chart

AGREE = (0.8, 1.25)
"""Range of output KL divided by ``½ δᵀFδ`` in which the second approximates the first well."""


@dataclass(frozen=True)
class Other:
    """Another training, at the step of a point.

    Attributes:
        module: A module with its weights.
        snapshot: Returns a snapshot of it with the given reference samples.
        sample: Returns a batch of the samples in which its data differ, as the run has them; None if not known.
        is_equal: Whether its weights equal those of the run, bit by bit.
        lost: Why it was lost; empty if it was not.
    """

    module: Any
    snapshot: Callable[[list[Any]], ModelSnapshot]
    sample: Callable[[], Any] | None = None
    is_equal: bool = False
    lost: str = ""


class Stability(Quantity):
    """See :class:`~.StabilityCallback` for the values; the trainings to compare with are set before each measurement.

    Attributes:
        others: The other trainings at the step of the next point.
        trajectory: Paths of the run and the first of the others.
    """

    name = "stability"
    unit = "nats"
    descriptions = DESCRIPTIONS
    needs_start = True

    def __init__(self, beta: float = 1.0, seed: int = 0, count: int = 1) -> None:
        self.beta, self.seed, self.count = beta, seed, count
        self.others: Sequence[Other] = ()
        names = ("output_kl", "unique_information")
        self.table = tuple((f"stability/{name}", f"stability_stderr/{name}" if count > 1 else None) for name in names)
        self.reset()

    def reset(self) -> None:
        """Forget everything measured."""
        self.tags = ()
        self.trajectory = WeightTrajectory(self.seed)
        self._has_targets, self._no_products = False, ""
        self._samples: dict[int, Any] = {}  # number of another training -> the samples in which it differs

    def start(self, module: Any) -> None:
        """Begin both paths where training begins, even if the point at step 0 is left out."""
        self.trajectory.add(0, module, module)

    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        """Find out what can be measured on the module."""
        try:
            fisher_products(snapshot).check()
            self._no_products = ""
        except NotCovered as error:
            self._no_products = str(error)
        batch = snapshot.to_device(snapshot.groups[0])
        self._has_targets = snapshot.predictor(snapshot.module, batch).targets is not None
        names = ["param_distance", "relative_distance", "output_kl"]
        names += ["loss_gap"] if self._has_targets else []
        names += [] if self._no_products else ["fisher_distance", "unique_information"]
        families = ["stability"]
        if self.count > 1:
            families += ["stability_stderr", *map(family_of, range(self.count))]
        self.tags = tuple(f"{family}/{name}" for family in families for name in names)
        rows = {"measures": f"{', '.join(names)} (nats); beta = {self.beta:g}"}
        if self._no_products:
            rows["left out"] = f"fisher_distance, unique_information: {self._no_products}"
        return rows

    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        """Forecast the seconds of a point, by trials."""
        few = snapshot.first(snapshot.chunk)
        cost = trial(lambda: mean_output_kl(few, few), snapshot.device)
        if not self._no_products:
            weights = flat_weights(snapshot.module).float()
            cost += trial(lambda: fisher_distance(few, weights), snapshot.device)
        return self.count * cost * samples / few.size

    # ---- a point

    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        """Measure all values of a point."""
        found = [self._values_of(number, snapshot.module, snapshot, point) for number in range(self.count)]
        ratios = [one["kl_ratio"] for one in found if "kl_ratio" in one]
        worst = max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-300))), default=1.0)
        if not AGREE[0] <= worst <= AGREE[1]:
            point.warn(
                f"at step {point.step} the measured output KL is {worst:.3g} times its second-order form ½δᵀFδ: they "
                f"differ too much for fisher_distance and unique_information to describe the outputs (a ReLU network "
                f"has kinks, BatchNorm has its own statistics). Logged as stability/kl_ratio; reported once",
                "ratio",
            )
        return dict.fromkeys(self.tags, math.nan) | together(found)

    def distances(self, module: nn.Module, point: Point) -> dict[str, float]:
        """Return the values of a point that need no samples."""
        return together([self._values_of(number, module, None, point) for number in range(self.count)])

    def _values_of(
        self, number: int, module: nn.Module, snapshot: ModelSnapshot | None, point: Point
    ) -> dict[str, float]:
        """Return differences of one of the others from the run, by name; without a snapshot, those without samples."""
        other = self.others[number]
        if other.lost:
            if self.count == 1:
                raise Unavailable(other.lost)
            point.warn(f"twin {number + 1}: {other.lost}", f"lost {number}")
            return {}
        change = weight_change(module, other.module)
        if number == 0:
            self.trajectory.add(point.step, module, other.module)
        distance = length(change)
        values = {"param_distance": distance, "relative_distance": self._relative(distance, module, point)}
        if other.is_equal:
            names = {tag.removeprefix("stability/") for tag in self.tags if tag.startswith("stability/")}
            return dict.fromkeys(sorted(names), 0.0) | values
        if snapshot is not None:
            values |= self._predictions(number, snapshot, change, point)
        return values

    def _predictions(self, number: int, snapshot: ModelSnapshot, change: Tensor, point: Point) -> dict[str, float]:
        other = self.others[number]
        there, n = other.snapshot(snapshot.groups), point.training_samples(snapshot.size)
        values = prediction_change(snapshot, there, change, n, self.beta, has_products=not self._no_products)
        if self._has_targets and other.sample is not None:
            if number not in self._samples:
                self._samples[number] = other.sample()
            sample = self._samples[number]
            values["loss_gap"] = sample_loss(there, sample) - sample_loss(snapshot, sample)
        return values

    def _relative(self, distance: float, module: nn.Module, point: Point) -> float:
        relative = self.trajectory.relative(distance, module)
        if relative is None:
            point.warn(
                "no relative_distance (NaN): the weights at the start are not known, as the run goes on from a "
                "checkpoint without them, or other parameters are trained now",
                "start",
            )
        return math.nan if relative is None else relative

    # ---- what is shown

    def charts(self) -> Mapping[str, Chart]:
        """Return the chart of the output KL beside its second-order form."""
        if self._no_products:
            return {}
        tags = [f"stability/{name}" for name in ("output_kl", "fisher_distance")]
        return {"Output KL and ½ δᵀFδ, nats per sample": ("Multiline", tags)}

    def landscape(
        self, snapshot: ModelSnapshot, other: nn.Module, point: Point, seconds: float = 30.0
    ) -> LossLandscape:
        """Measure the paths so far, with the loss around their ends.

        Args:
            snapshot: A snapshot of the run at the last step.
            other: The first of the others.
            point: The last point.
            seconds: Time that the losses may take.

        Raises:
            ValueError: There is no plane, for example as no weight has moved.
        """
        n = point.training_samples(snapshot.size)
        return picture_of_ends(snapshot, other, self.trajectory, self.beta, n, seconds)

    def settings(self) -> Mapping[str, object]:
        """Return what decides what the values mean."""
        return {"beta": float(self.beta)}

    def state_dict(self) -> dict[str, Any]:
        """Return the points of the paths."""
        return {"trajectory": self.trajectory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        """Go on with the paths."""
        self.trajectory.load_state_dict(state["trajectory"])


def family_of(number: int) -> str:
    """Return the first part of the tags of one of several trainings, counted from 0."""
    return f"stability_twin{number + 1}"


def together(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the tags of a point from the values of each training; for several also the mean and its standard error.

    The error is over the replaced samples, not over the samples on which the trainings are compared.

    Args:
        found: Values of each training by name; empty for a lost one.

    Raises:
        Unavailable: There are several, and all are lost.
    """
    if len(found) == 1:
        return {f"stability/{name}": value for name, value in found[0].items()}
    if not any(found):
        raise Unavailable("no twin follows the run any longer")
    names = list(dict.fromkeys(name for one in found for name in one))
    values: dict[str, float] = {}
    for number, one in enumerate(found):
        of_one = one or dict.fromkeys(names, math.nan)
        values.update((f"{family_of(number)}/{name}", value) for name, value in of_one.items())
    for name in names:
        several = [one[name] for one in found if name in one]
        values[f"stability/{name}"] = sum(several) / len(several)
        values[f"stability_stderr/{name}"] = standard_error(several)
    return values
