"""``WeightInformation``: KL(Q|P) of the weights from a prior, the spectrum of F, and the rate-distortion curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from lightning_info import validation
from lightning_info.figures.rate_distortion import rate_distortion
from lightning_info.functional.free_energy import free_energy
from lightning_info.functional.rate_distortion import RatePoint, parting
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import (
    complexity,
    effective_dimension,
    optimal_lambda,
    weight_information,
)
from lightning_info.gradients.batches import num_samples
from lightning_info.quantities.quantity import NotMeasurable, Point, Quantity, Record
from lightning_info.quantities.weight_information.bounds import Bounds
from lightning_info.quantities.weight_information.certificate import SAMPLES
from lightning_info.quantities.weight_information.curvature import (
    FEWEST_SAMPLES,
    PROBES,
    STEPS,
    Curvature,
    CurvatureName,
    CurvaturePlan,
    LanczosCurvature,
    choose_curvature,
)
from lightning_info.quantities.weight_information.descriptions import DESCRIPTIONS
from lightning_info.quantities.weight_information.errors import information_errors, spectrum_errors
from lightning_info.quantities.weight_information.initial_weights import InitialWeights, squared_norm
from lightning_info.quantities.weight_information.label_code import LabelCode
from lightning_info.quantities.weight_information.lanczos_cost import seconds_of_step
from lightning_info.quantities.weight_information.noisy_loss import has_loss, mean_loss, noisy_losses
from lightning_info.quantities.weight_information.rate_distortion import rate_distortion_curve
from lightning_info.quantities.weight_information.run_plan import run_plan
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.timing import seconds, trial
from lightning_info.reporting.table import Curve

GRID = tuple(10.0**exponent for exponent in (-3, -2, -1, 0, 1, 2))
"""Levels of the rate-distortion curve, as multiples of ``beta``."""
MOST_CURVES = 6
"""Number of points whose rate-distortion curve is kept for the figure: the first, the last, and some between."""
FEWEST_DRAWS = 4
"""Smallest number of draws at a level, in opposite pairs, whose scatter gives an error."""
TRIAL_SAMPLES, TRIAL_SIZE = 32, 512
"""Samples and size of a matrix for the forecast of a point's cost."""
_OF_LOSS = ("loss", "expected_loss", "predicted_loss", "complexity", "free_energy")
"""Names of the values that need targets."""


class WeightInformation(Quantity):
    """See :class:`~.WeightInfoCallback` for the arguments and values.

    Attributes:
        rate_distortion: Points of the rate-distortion curve by step, with rising beta, for the points that the figure
            shows: the first, the last, and some between.
    """

    name = "weight_info"
    unit = "nats"
    descriptions = DESCRIPTIONS
    moves_weights = True
    needs_start = True
    evaluation_samples = SAMPLES
    table: tuple[tuple[str, str], ...] = (("weight_info/kl_precision", "weight_info/kl_precision_stderr"),)

    least_passes = len(GRID) * FEWEST_DRAWS / 3  # a forward pass takes a third of a forward and backward pass

    _eigenvalues: Tensor  # of the last point

    def __init__(
        self,
        beta: float,
        prior: Literal["init", "zero"],
        lambda_: float | Literal["init_std", "optimal"],
        curvature: Literal["auto", "matrix", "gram", "lanczos", "diagonal"],
        max_rows: int | None,
        draws: int,
        delta: float = 0.05,
    ) -> None:
        self.beta, self.prior, self.lambda_ = beta, prior, lambda_
        self.curvature, self.max_rows, self.draws, self.delta = curvature, max_rows, draws, delta
        self.reset()

    @override
    def check(self, owner: str) -> None:
        validation.positive_number(owner, "beta", self.beta, 1.0)
        validation.one_of(owner, "prior", self.prior, ("init", "zero"))
        if isinstance(self.lambda_, str):
            validation.one_of(owner, "lambda_", self.lambda_, ("init_std", "optimal"))
        elif self.lambda_ == math.inf:
            raise ValueError(
                f"{owner}: lambda_=inf has no KL; give a finite one and compare weight_info/log_det of two networks"
            )
        else:
            validation.positive_number(owner, "lambda_", self.lambda_, 0.1)
        validation.one_of(owner, "curvature", self.curvature, ("auto", *get_args(CurvatureName)))
        if self.max_rows is not None:
            validation.positive_integer(owner, "max_rows", self.max_rows, 640)
        validation.positive_integer(owner, "draws", self.draws, 8)
        if self.draws % 2:
            raise ValueError(
                f"{owner}: draws={self.draws}; they come in opposite pairs, so give an even number, draws=8"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"{owner}: delta={self.delta}; it is a probability, for example delta=0.05")

    @override
    def reset(self) -> None:
        self._initial = InitialWeights()
        self._plan: CurvaturePlan | None = None
        self._bounds = Bounds(self.delta, self.prior == "zero")
        self._code, self.ended = LabelCode(), frozenset()
        self._draws, self._most_rows = self.draws, self.max_rows
        names = "kl_precision kl_displacement kl log_det trace effective_rank top_eigenvalue beta lambda complexity"
        more = "expected_loss complexity_stderr expected_loss_stderr predicted_loss loss temperature free_energy"
        self.tags = tuple(f"weight_info/{name}" for name in f"{names} {more} effective_dimension".split())
        self.table = type(self).table
        self._has_loss = True
        self.rate_distortion: dict[int, list[RatePoint]] = {}
        self._eigenvalues = torch.empty(0)

    # ---- before the first step

    @override
    def start(self, module: Any) -> None:
        self._initial.keep(module, whole=self.prior == "init")

    @override
    def prepare(self, snapshot: ModelSnapshot, point: Point) -> Mapping[str, str]:
        if self.lambda_ == "init_std" and self._initial.std == 0:
            raise NotMeasurable(
                "the weights at the start are all equal, so their standard deviation gives no prior; pass a "
                "number, for example lambda_=0.1"
            )
        self._has_loss = has_loss(snapshot)
        if self._has_loss:
            mean_loss(snapshot)  # the targets must fit the outputs
        self._plan = plan = self._choose(snapshot, point)
        prior = "0" if self.prior == "zero" else "the weights at the start"
        curve = f"; rate-distortion curve at {len(GRID)} levels, {self.draws} draws each" if self._has_loss else ""
        rows = {
            "measures": f"KL(Q|P), the information in the weights, at beta = {self.beta:g}; prior N(w_ref, lambda²) at "
            f"w_ref = {prior}, lambda = {self.lambda_}{curve}",
            "curvature": plan.describe(),
            "bound": self._bounds.prepare(snapshot, point.num_samples),
            "code": self._code.prepare(snapshot),
        }
        self._training_samples = point.setup.training_samples
        if not self._has_loss:
            self.tags = tuple(tag for tag in self.tags if not _is_of_loss(tag))
            self.table = tuple(pair for pair in self.table if not _is_of_loss(pair[0]))
            rows["targets"] = f"none, so {', '.join(_OF_LOSS)} and the rate-distortion curve are left out"
        return rows

    @override
    def cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        assert self._plan is not None
        plan = self._plan
        few = min(TRIAL_SAMPLES, num_samples(snapshot.groups[0]))
        snapshot = snapshot.first(few)
        return self._bounds.cost(snapshot, samples, self._training_samples) + self._cost(plan, snapshot, few)

    def _cost(self, plan: CurvaturePlan, snapshot: ModelSnapshot, few: int) -> float:
        """Forecast the seconds of all but the bounds."""
        if plan.name == "lanczos":  # a whole run takes minutes, even for a few weights
            step, beside = seconds_of_step(snapshot)
            losses = 0.0
            if self._has_loss:
                losses = len(GRID) * self._draws * trial(lambda: mean_loss(snapshot), snapshot.device)
            steps = STEPS * (PROBES + 1 + self._draws // 2)
            return plan.samples / few * (steps * step + losses) + steps * beside
        generator = torch.Generator().manual_seed(0)
        found: list[Curvature] = []
        measuring = seconds(lambda: found.append(plan.measure(snapshot, generator)), snapshot.device)
        moving = 0.0
        if self._has_loss:
            moving = seconds(lambda: noisy_losses(found[0], [(1.0, 0.1)], 1.0, 2, generator), snapshot.device)
        small = torch.eye(TRIAL_SIZE, dtype=torch.float64, device=snapshot.device)
        decomposing = trial(lambda: torch.linalg.eigh(small), snapshot.device)
        passes = plan.samples / few * (measuring + len(GRID) * self._draws / 2 * moving)
        return passes + decomposing * (plan.size / TRIAL_SIZE) ** 3

    @override
    def cheaper(self) -> str:
        return "; ".join(filter(None, [self._cheaper(), self._bounds.cheaper()]))

    def _cheaper(self) -> str:
        if self._has_loss and self._draws > FEWEST_DRAWS:
            before, self._draws = self._draws, max(FEWEST_DRAWS, self._draws // 4 * 2)
            return f"{self._draws} draws a level instead of {before}"
        plan = self._plan
        if plan is not None and plan.name == "gram" and plan.samples >= 2 * FEWEST_SAMPLES:
            self._plan = replace(plan, samples=plan.samples // 2)
            self._most_rows = self._plan.size
            return f"spectrum of F of {self._plan.samples} samples instead of {plan.samples}"
        return ""

    # ---- a point

    @override
    def measure(self, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        self._plan, curvature = run_plan(
            self._plan, lambda: self._choose(snapshot, point), lambda plan: plan.measure(snapshot, point.generator)
        )
        values = self._values(curvature, snapshot, point)
        if not self._has_loss:
            values = {tag: value for tag, value in values.items() if not _is_of_loss(tag)}
        bounds = self._bounds.measure(curvature, snapshot, self._initial, point)
        more = {**bounds, **self._code.measure(snapshot, point)}
        self.ended = self._code.ended
        self.tags = tuple(tag for tag in dict.fromkeys((*self.tags, *more)) if tag not in self.ended)
        return {**values, **more}

    def _values(self, curvature: Curvature, snapshot: ModelSnapshot, point: Point) -> dict[str, float]:
        spectrum, loss = curvature.spectrum, mean_loss(curvature.snapshot) if self._has_loss else None
        n = point.training_samples(curvature.snapshot.size)
        if loss is not None and not math.isfinite(loss):
            raise Unavailable(f"the loss of the reference samples is {loss}")
        is_exact = len(curvature.spectra) == 1
        temperature = point.beside.get("gradient_noise/temperature", point.setup.temperature)
        self._eigenvalues = spectrum.eigenvalues if is_exact else torch.empty(0)  # nodes of Lanczos stand for many
        values = dict.fromkeys(self.tags, math.nan) | {
            "weight_info/trace": spectrum.trace,
            "weight_info/effective_rank": spectrum.effective_rank,
            "weight_info/top_eigenvalue": spectrum.top_eigenvalue,
            "weight_info/beta": self.beta,
            "weight_info/temperature": temperature,
        }
        if loss is not None:
            values["weight_info/loss"] = loss
            values["weight_info/free_energy"] = free_energy(loss, spectrum, temperature, 1.0)
        if isinstance(curvature, LanczosCurvature):
            values |= spectrum_errors(curvature, temperature)
        distance, summed = self._squared_distance(snapshot, point), spectrum.scaled(n)
        betas = [self.beta * level for level in GRID]
        levels = [(beta, self._prior_std(summed, distance, beta, point)) for beta in betas]
        if any(math.isnan(lambda_) for _, lambda_ in levels):
            return values
        curve = rate_distortion_curve(curvature, loss, levels, distance, n, self._draws, point.generator)
        if self._has_loss:
            self._keep(point.step, curve)
        here = curve[GRID.index(1.0)]
        damping = here.beta / here.lambda_**2
        values |= {
            "weight_info/lambda": here.lambda_,
            "weight_info/log_det": summed.log_det(damping),
            "weight_info/effective_dimension": effective_dimension(summed, damping),
            "weight_info/kl": here.information,
            "weight_info/kl_precision": weight_information(summed, 0.0, here.beta, here.lambda_),
            "weight_info/kl_displacement": here.displacement,
            "weight_info/expected_loss": here.loss,
            "weight_info/expected_loss_stderr": here.stderr,
            "weight_info/predicted_loss": here.predicted,
            "weight_info/complexity": complexity(n * here.loss, here.information, here.beta),
        }
        kl_error = math.nan if distance is None else 0.0
        if isinstance(curvature, LanczosCurvature):
            prior_std = partial(self._prior_std, distance=distance, beta=here.beta, point=point)
            values |= information_errors(curvature, n, distance, here, prior_std)
            kl_error = values["weight_info/kl_stderr"]
        error = math.hypot(n * values["weight_info/expected_loss_stderr"], here.beta * kl_error)
        return values | {"weight_info/complexity_stderr": error}

    def _choose(self, snapshot: ModelSnapshot, point: Point) -> CurvaturePlan:
        return choose_curvature(snapshot, point.num_samples, self.curvature, self._most_rows)

    def _squared_distance(self, snapshot: ModelSnapshot, point: Point) -> float | None:
        """Return ``‖w - w_ref‖²``; None if the weights at the start are not known."""
        if self.prior == "zero":
            return squared_norm(snapshot.module)
        distance = self._initial.squared_distance(snapshot.module)
        if distance is None:
            _warn_of_start(point)
        return distance

    def _prior_std(self, summed: Spectrum, distance: float | None, beta: float, point: Point) -> float:
        """Return λ at a level; NaN if it is not known."""
        if self.lambda_ == "init_std":
            if math.isnan(self._initial.std):
                _warn_of_start(point)
            return self._initial.std
        if self.lambda_ != "optimal":
            return float(self.lambda_)
        if distance is None:
            return math.nan
        best = optimal_lambda(summed, distance, beta)
        if best.is_floor:
            point.warn(
                f"the optimal lambda is 0 while the weights are where they started; {best.lambda_:g} is used", "floor"
            )
        return best.lambda_

    def _keep(self, step: int, curve: list[RatePoint]) -> None:
        self.rate_distortion[step] = curve
        if len(self.rate_distortion) > MOST_CURVES:
            steps = sorted(self.rate_distortion)
            gaps = zip(steps, steps[1:], steps[2:], strict=False)
            crowded = min(gaps, key=lambda gap: (gap[2] + 1) / (gap[0] + 1))[1]
            del self.rate_distortion[crowded]

    # ---- what is shown

    @override
    def histograms(self) -> Mapping[str, Tensor]:
        return {"weight_info/log10_eigenvalues": self._eigenvalues[self._eigenvalues > 0].log10()}

    @override
    def figures(self, record: Record) -> Mapping[str, Callable[[], Figure]]:
        if not any(math.isfinite(point.information) for curve in self.rate_distortion.values() for point in curve):
            return {}
        curves = {record.epochs.get(step, 0.0): curve for step, curve in sorted(self.rate_distortion.items())}
        how = self._plan.describe() if self._plan else ""
        return {"weight_info/rate_distortion": partial(rate_distortion, curves, self.beta, how)}

    @override
    def closing_text(self, record: Record) -> str:
        texts = [self._parting_text(record), self._bounds.text(record), self._code.text(record, self.beta)]
        return " ".join(filter(None, texts))

    @override
    def finish(self, record: Record, point: Point) -> Mapping[str, Curve]:
        return self._code.finish(record)

    def _parting_text(self, record: Record) -> str:
        if not self.rate_distortion or max(self.rate_distortion) != record.last_step:  # none of the end
            return ""
        curve = self.rate_distortion[max(self.rate_distortion)]
        first, ends = parting(curve), f"{curve[0].beta:g} to {curve[-1].beta:g}"
        if first is None:
            return f"The loss under weight noise is as F predicts at every beta, {ends}."
        if first == curve[0].beta:
            return (
                f"The loss under weight noise is at no beta (from {first:g} on) as F predicts: do not interpret the "
                f"KL. Either the loss is curved where F is almost zero, or lambda is too large."
            )
        return f"From beta = {first:g} on the loss is not as F predicts: ignore the KL there."

    # ---- state

    @override
    def settings(self) -> Mapping[str, object]:
        return {
            "beta": float(self.beta),
            "prior": self.prior,
            "lambda_": self.lambda_ if isinstance(self.lambda_, str) else float(self.lambda_),
            "curvature": self.curvature,
            "max_rows": self.max_rows,
            "delta": float(self.delta),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        curves = {step: [list(point) for point in curve] for step, curve in self.rate_distortion.items()}
        return {
            "initial": self._initial.state(),
            "curves": curves,
            "search": self._bounds.state(),
            "code": self._code.state(),
        }

    @override
    def load_state_dict(self, state: Mapping[str, Any], same_settings: bool) -> None:
        self._initial.restore(state["initial"])
        if "search" in state:
            self._bounds.restore(state["search"])
        self._code.restore(state.get("code") if same_settings else None)  # else the curve is written anew
        self.ended = self._code.ended
        if same_settings:
            self.rate_distortion = {int(s): [RatePoint(*point) for point in c] for s, c in state["curves"].items()}


def _is_of_loss(tag: str) -> bool:
    return tag.removeprefix("weight_info/").removesuffix("_stderr") in _OF_LOSS


def _warn_of_start(point: Point) -> None:
    point.warn(
        "no KL (NaN): the weights at the start are not known. A run that goes on from a checkpoint without them has "
        "none, nor have parameters that were added later; lightning_info.measure takes them as initial=... (a module, "
        "a state dict or a file). prior='zero' with a number for lambda_ needs none, for example "
        "WeightInfoCallback(prior='zero', lambda_=0.1)",
        "prior",
    )
