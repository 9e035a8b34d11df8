"""``WeightInfoCallback``: how many nats the weights hold, and at what precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_info import validation as arguments
from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.clock import seconds
from lightning_info.callbacks.error_policy import Refused
from lightning_info.figures.rate_distortion import rate_distortion
from lightning_info.functional.free_energy import free_energy
from lightning_info.functional.rate_distortion import RatePoint, parting
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import complexity, optimal_lambda
from lightning_info.gradients.batches import num_samples, take
from lightning_info.quantities.training_setup import TrainingSetup
from lightning_info.quantities.weight_information.curvature import (
    Curvature,
    CurvatureName,
    CurvaturePlan,
    LanczosCurvature,
    choose_curvature,
    run_plan,
)
from lightning_info.quantities.weight_information.errors import information_errors, spectrum_errors
from lightning_info.quantities.weight_information.initial_weights import InitialWeights, squared_norm
from lightning_info.quantities.weight_information.noisy_loss import mean_loss, noisy_losses
from lightning_info.quantities.weight_information.rate_distortion import rate_distortion_curve
from lightning_info.replica.batch_norm import BatchNormStatistics
from lightning_info.replica.prediction import Adapter
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable

GRID = tuple(10.0**exponent for exponent in (-3, -2, -1, 0, 1, 2))
"""Levels of the rate-distortion curve, as multiples of ``beta``."""
MOST_CURVES = 6
"""Points whose rate-distortion curve is kept for the figure: the first, the last, and some between."""
TRIAL_SAMPLES, TRIAL_SIZE = 8, 512
"""Samples and size of a matrix for the forecast of a point's cost."""


class WeightInfoCallback(InfoCallback):
    r"""Logs the information in the weights: the spectrum of F, and the KL of the weights' distribution from the prior.

    With the prior ``P = N(w_ref, λ²I)`` and the distribution ``Q = N(w, Σ*)`` that the level β of the task tolerates,

    .. math:: \Sigma^* = \beta\,(N F + cI)^{-1}, \quad c = \beta / \lambda^2, \qquad
              \mathrm{KL}(Q \| P) = \tfrac12 \log\det(N F + cI) + \tfrac k2 \log\frac{\lambda^2}{\beta} - \tfrac k2
              + \frac{\|w - w_\mathrm{ref}\|^2 + \mathrm{tr}\,\Sigma^*}{2 \lambda^2}

    nats, for N training samples and k trainable weights. F is that of the reference samples in eval mode. Source:
    Achille, Paolini & Soatto, Definition 2.1, Proposition 2.5, eq. 8, with their constants corrected
    (``docs/errata.md``).

    One value at one β says little. What matters is the **rate-distortion curve**: for levels around ``beta`` the KL
    against the expected loss under the weight noise, measured by drawing weights, beside its quadratic prediction.
    Where the two part, β is not small, and the report at the end of fit says from where on.

    Logged, per measured step s (the weights after s optimiser steps; s = 0 and the end of fit are always measured):

    - ``weight_info/kl``: KL(Q‖P), nats; NaN where the prior's mean is not known. ``weight_info/kl_displacement``: the
      part ``‖w - w_ref‖² / 2λ²`` of it, mostly the larger one.
    - ``weight_info/log_det``: log det(N F + (β/λ²) I).
    - ``weight_info/trace``, ``weight_info/top_eigenvalue``, ``weight_info/effective_rank``: of F.
    - ``_stderr`` behind ``kl``, ``log_det``, ``trace``, ``effective_rank``, ``lambda``, ``predicted_loss`` and
      ``free_energy``: with ``"lanczos"`` only, over its random probes and the bracket of its rule, see
      ``docs/errors.md`` (``top_eigenvalue`` is then never too large, and has none); otherwise exact for the samples
      that F is of, but for ``"diagonal"`` with more than 32 outputs, which is random and has no error.
    - ``weight_info/beta``, ``weight_info/lambda``: the level and the prior's standard deviation in use.
    - ``weight_info/expected_loss`` (with ``_stderr``, over pairs of draws; with ``"lanczos"`` and that of
      drawing the noise): mean loss of a sample under the weight noise, measured, nats.
    - ``weight_info/predicted_loss``: the same to second order; ``weight_info/loss``: without noise.
    - ``weight_info/complexity`` (with ``_stderr``, of both terms): ``C_β = N E_Q[loss] + β KL`` (eq. 2), nats.
    - ``weight_info/temperature``, ``weight_info/free_energy``: ``T = η / (2 B (1 - μ))`` of the optimiser, for gradient
      noise of unit variance (with Adam it says how η changes and no more), and ``loss + T/2 log det(F + I)``.
    - ``weight_info/overhead``: share of the run's time that this callback took so far.
    - figure ``weight_info/rate_distortion``; histogram ``weight_info/log10_eigenvalues`` of F.

    Args:
        beta: Level of the task, for the summed loss.
        prior: Its mean: the weights at the start of training (``"init"``), or 0 (``"zero"``, as in the paper).
        lambda_: Its standard deviation: ``"init_std"``, that of the weights at the start, one number; ``"optimal"``,
            the one that minimises the Lagrangian at each point; or a number.
        curvature: How F is measured: ``"matrix"`` (k x k, for few weights), ``"gram"`` (exact rows, one for each output
            of a sample), ``"lanczos"`` (products with F, random probes), or ``"auto"``: by size, in this order.
            ``"diagonal"`` puts the diagonal of F in its place, in everything that is logged; ``"auto"`` takes it where
            nothing else fits, and for modules without second derivatives that are too large for ``"matrix"``.
        max_rows: Rows at most with ``"gram"``: fewer samples are taken where there are more. By default 1280, and fewer
            for more than three million weights.
        draws: Weights drawn for each level, in opposite pairs; the same normal numbers for all levels.
        every_n_epochs: Measure at s = 0 and after epochs n, 2n, ...
        every_n_train_steps: Measure at optimiser steps 0, n, 2n, ... Without an interval: 0, 1, 2, 4, 8, ..., and the
            end of every epoch, as far as ``max_overhead`` allows.
        num_samples: Reference samples: the first that pass in training, kept on the CPU; with several processes an
            equal number from each, which every process then measures.
        reference: Reference samples to use instead, the first ``num_samples`` of them: a Dataset (collated as a
            DataLoader does by default), or tensors such as ``(x, y)``; they must look like the batches that
            ``training_step`` gets.
        adapter: ``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)``, where the
            ``training_step`` hides them.
        seed: Of the draws; training's random numbers are never touched.
        prefix: Put in front of every tag, ``prefix/weight_info/kl``.
        on_error: A measurement that fails becomes one warning and NaN (``"warn"``), or ends the run (``"raise"``).
        max_overhead: Largest share of the run's time; by default 0.05 without an interval and no limit with one.
        batch_norm: BatchNorm layers use their ``"running"`` statistics, or those of the ``"reference"`` samples at the
            measured weights; the same under the weight noise.
        summary: Print the table, and where measurement and prediction part, at the end of fit.

    Raises:
        ValueError: An argument makes no sense.
        MisconfigurationException: Before the first step: sharded strategy, no likelihood or no targets found, module
            without exact per-sample gradients, weights that are all equal at the start with ``"init_std"``.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import WeightInfoCallback

        trainer = Trainer(callbacks=[WeightInfoCallback()])
    """

    family = "weight_info"
    moves_weights = True
    table = (
        ("weight_info/kl", "weight_info/kl_stderr"),
        ("weight_info/log_det", "weight_info/log_det_stderr"),
        ("weight_info/effective_rank", "weight_info/effective_rank_stderr"),
        ("weight_info/expected_loss", "weight_info/expected_loss_stderr"),
    )

    _plan: CurvaturePlan | None
    _facts: TrainingSetup | None  # of the trainer at the point
    _start: InitialWeights
    _curves: dict[int, list[RatePoint]]  # step -> rate-distortion curve
    _eigenvalues: Tensor  # of the last point

    def __init__(
        self,
        beta: float = 1.0,
        prior: Literal["init", "zero"] = "init",
        lambda_: float | Literal["init_std", "optimal"] = "init_std",
        curvature: Literal["auto", "matrix", "gram", "lanczos", "diagonal"] = "auto",
        max_rows: int | None = None,
        draws: int = 8,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        num_samples: int = 256,
        # LightningCLI cannot build a subclass of Dataset[Any]
        reference: Dataset | Sequence[Tensor] | None = None,  # type: ignore[type-arg]
        adapter: Adapter | None = None,
        seed: int = 0,
        prefix: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        max_overhead: float | None = None,
        batch_norm: BatchNormStatistics = "running",
        summary: bool = True,
    ) -> None:
        owner = type(self).__name__
        arguments.positive_number(owner, "beta", beta, 1.0)
        arguments.one_of(owner, "prior", prior, ("init", "zero"))
        if isinstance(lambda_, str):
            arguments.one_of(owner, "lambda_", lambda_, ("init_std", "optimal"))
        elif lambda_ == math.inf:
            raise ValueError(
                f"{owner}: lambda_=inf has no KL; give a finite one and compare weight_info/log_det of two networks"
            )
        else:
            arguments.positive_number(owner, "lambda_", lambda_, 0.1)
        arguments.one_of(owner, "curvature", curvature, ("auto", *get_args(CurvatureName)))
        if max_rows is not None:
            arguments.positive_integer(owner, "max_rows", max_rows, 640)
        arguments.positive_integer(owner, "draws", draws, 8)
        if draws % 2:
            raise ValueError(f"{owner}: draws={draws}; they come in opposite pairs, so give an even number, draws=8")
        super().__init__(
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            num_samples=num_samples,
            reference=reference,
            adapter=adapter,
            seed=seed,
            prefix=prefix,
            on_error=on_error,
            max_overhead=max_overhead,
            batch_norm=batch_norm,
            summary=summary,
        )
        self.beta, self.prior, self.lambda_ = beta, prior, lambda_
        self.curvature, self.max_rows, self.draws = curvature, max_rows, draws
        names = "kl kl_displacement log_det trace effective_rank top_eigenvalue beta lambda complexity expected_loss"
        more = "complexity_stderr expected_loss_stderr predicted_loss loss temperature free_energy"
        self.tags = tuple(f"weight_info/{name}" for name in f"{names} {more}".split())

    # ---- before the first step

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep the weights that training starts from."""
        super().on_train_start(trainer, pl_module)
        if self._active and trainer.fit_loop.epoch_loop._batches_that_stepped == 0:
            with self._clock.spending(), self._faults.guard("keeping the initial weights"):
                self._start.keep(pl_module, whole=self.prior == "init")

    def _prepare(self, snapshot: ModelSnapshot) -> Mapping[str, str]:
        if self.lambda_ == "init_std" and self._start.std == 0:
            raise Refused(
                f"{type(self).__name__}: the weights at the start are all equal, so that their standard deviation "
                f"gives no prior; give a number, for example lambda_=0.1"
            )
        mean_loss(snapshot)  # needs targets
        self._plan = plan = self._choose(snapshot)
        prior = "0" if self.prior == "zero" else "the weights at the start"
        return {
            "measures": f"KL(Q|P), the information in the weights, at beta = {self.beta:g}; prior N(w_ref, lambda²) at "
            f"w_ref = {prior}, lambda = {self.lambda_}; rate-distortion curve at {len(GRID)} levels, {self.draws} "
            f"draws each",
            "curvature": plan.describe(),
        }

    def _cost(self, snapshot: ModelSnapshot, samples: int) -> float:
        assert self._plan is not None
        plan = self._plan
        few = min(TRIAL_SAMPLES, num_samples(snapshot.groups[0]))
        snapshot = replace(snapshot, groups=[take(snapshot.groups[0], slice(0, few))])
        generator = torch.Generator().manual_seed(0)
        found: list[Curvature] = []
        measuring = seconds(lambda: found.append(plan.measure(snapshot, generator)), snapshot.device)
        moving = seconds(lambda: noisy_losses(found[0], [(1.0, 0.1)], 1.0, 2, generator), snapshot.device)
        small = torch.eye(TRIAL_SIZE, dtype=torch.float64, device=snapshot.device)
        decomposing = seconds(lambda: torch.linalg.eigh(small), snapshot.device)
        passes = plan.samples / few * (measuring + len(GRID) * self.draws / 2 * moving)
        return passes + decomposing * (plan.size / TRIAL_SIZE) ** 3

    # ---- a point

    def _point(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self._facts = TrainingSetup.of(trainer, self._collector.chunk)
        super()._point(trainer, *args, **kwargs)

    def _measure(self, snapshot: ModelSnapshot, step: int, generator: Generator) -> dict[str, float]:
        assert self._facts is not None
        self._plan, curvature = run_plan(
            self._plan, lambda: self._choose(snapshot), lambda plan: plan.measure(snapshot, generator)
        )
        spectrum, loss = curvature.spectrum, mean_loss(curvature.snapshot)
        n = self._facts.samples_or(curvature.snapshot.size, self._faults)
        if not math.isfinite(loss):
            raise Unavailable(f"the loss of the reference samples is {loss}")
        is_exact, temperature = len(curvature.spectra) == 1, self._facts.temperature
        self._eigenvalues = spectrum.eigenvalues if is_exact else torch.empty(0)  # nodes of Lanczos stand for many
        values = dict.fromkeys(self.tags, math.nan) | {
            "weight_info/trace": spectrum.trace,
            "weight_info/effective_rank": spectrum.effective_rank,
            "weight_info/top_eigenvalue": spectrum.top_eigenvalue,
            "weight_info/beta": self.beta,
            "weight_info/loss": loss,
            "weight_info/temperature": temperature,
            "weight_info/free_energy": free_energy(loss, spectrum, temperature, 1.0),
        }
        if isinstance(curvature, LanczosCurvature):
            values |= spectrum_errors(curvature, temperature)
        distance, summed = self._squared_distance(snapshot), spectrum.scaled(n)
        betas = [self.beta * level for level in GRID]
        levels = [(beta, self._prior_std(summed, distance, beta)) for beta in betas]
        if any(math.isnan(lambda_) for _, lambda_ in levels):
            return values
        curve = rate_distortion_curve(curvature, loss, levels, distance, n, self.draws, generator)
        self._keep(step, curve)
        here = curve[GRID.index(1.0)]
        values |= {
            "weight_info/lambda": here.lambda_,
            "weight_info/log_det": summed.log_det(here.beta / here.lambda_**2),
            "weight_info/kl": here.information,
            "weight_info/kl_displacement": here.displacement,
            "weight_info/expected_loss": here.loss,
            "weight_info/expected_loss_stderr": here.stderr,
            "weight_info/predicted_loss": here.predicted,
            "weight_info/complexity": complexity(n * here.loss, here.information, here.beta),
        }
        kl_error = math.nan if distance is None else 0.0
        if isinstance(curvature, LanczosCurvature):
            prior_std = partial(self._prior_std, distance=distance, beta=here.beta)
            values |= information_errors(curvature, n, distance, here, prior_std)
            kl_error = values["weight_info/kl_stderr"]
        error = math.hypot(n * values["weight_info/expected_loss_stderr"], here.beta * kl_error)
        return values | {"weight_info/complexity_stderr": error}

    def _choose(self, snapshot: ModelSnapshot) -> CurvaturePlan:
        samples = len(self._samples) if self._samples.complete else self.num_samples
        return choose_curvature(snapshot, samples, self.curvature, self.max_rows)

    def _squared_distance(self, snapshot: ModelSnapshot) -> float | None:
        """``‖w - w_ref‖²``; None where the weights at the start are not known."""
        if self.prior == "zero":
            return squared_norm(snapshot.module)
        distance = self._start.squared_distance(snapshot.module)
        if distance is None:
            self._warn_of_start()
        return distance

    def _warn_of_start(self) -> None:
        why = "as the run goes on from a checkpoint without them, or parameters were added."
        if self._offline:
            why = "which measure takes as initial=... (a module, a state dict or a file)."
        self._faults.warn_once(
            f"no KL (NaN): the weights at the start are not known, {why} prior='zero' with a number for lambda_ "
            f"needs none, for example WeightInfoCallback(prior='zero', lambda_=0.1)",
            "prior",
        )

    def _prior_std(self, summed: Spectrum, distance: float | None, beta: float) -> float:
        """λ at a level; NaN where it is not known."""
        if self.lambda_ == "init_std":
            if math.isnan(self._start.std):
                self._warn_of_start()
            return self._start.std
        if self.lambda_ != "optimal":
            return float(self.lambda_)
        if distance is None:
            return math.nan
        best = optimal_lambda(summed, distance, beta)
        if best.is_floor:
            self._faults.warn_once(
                f"the optimal lambda is 0 while the weights are where they started; {best.lambda_:g} is taken", "floor"
            )
        return best.lambda_

    def _keep(self, step: int, curve: list[RatePoint]) -> None:
        self._curves[step] = curve
        if len(self._curves) > MOST_CURVES:
            steps = sorted(self._curves)
            gaps = zip(steps, steps[1:], steps[2:], strict=False)
            crowded = min(gaps, key=lambda gap: (gap[2] + 1) / (gap[0] + 1))[1]
            del self._curves[crowded]

    # ---- what is shown

    def _histograms(self) -> Mapping[str, Tensor]:
        return {"weight_info/log10_eigenvalues": self._eigenvalues[self._eigenvalues > 0].log10()}

    def _figures(self) -> dict[str, Callable[[], Figure]]:
        if not any(math.isfinite(point.information) for curve in self._curves.values() for point in curve):
            return {}
        curves = {self._epochs.get(step, 0.0): curve for step, curve in sorted(self._curves.items())}
        how = self._plan.describe() if self._plan else ""
        return {"weight_info/rate_distortion": partial(rate_distortion, curves, self.beta, how)}

    def _closing_text(self) -> str:
        if not self._curves or max(self._curves) != self._measured:  # none of the end
            return ""
        curve = self._curves[max(self._curves)]
        first, ends = parting(curve), f"beta = {curve[0].beta:g} to {curve[-1].beta:g}"
        differs = "The loss under weight noise differs from its quadratic prediction"
        if first is None:
            return f"The loss under weight noise agrees with its quadratic prediction at every level, {ends}."
        if first == curve[0].beta:
            return (
                f"{differs} at the lowest level, beta = {first:g}, already: in directions of which F sees next to "
                f"nothing the loss has other curvature, or noise of size lambda is not small."
            )
        return (
            f"{differs} from beta = {first:g} on: there beta is not small, and the KL is that of a Gaussian which the "
            f"loss does not ask for."
        )

    # ---- state

    def _defining(self) -> Mapping[str, object]:
        return {
            "beta": float(self.beta),
            "prior": self.prior,
            "lambda_": self.lambda_ if isinstance(self.lambda_, str) else float(self.lambda_),
            "curvature": self.curvature,
            "max_rows": self.max_rows,
        }

    def _state(self) -> dict[str, Any]:
        """What every callback keeps, the weights at the start, and the curves of the figure."""
        curves = {step: [list(point) for point in curve] for step, curve in self._curves.items()}
        return {**super()._state(), "start": self._start.state(), "curves": curves}

    def _take_up(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_state` gave."""
        super()._take_up(state)
        with self._faults.guard("taking up the weights at the start"):
            self._start.restore(state["start"])
            if not self._changes:
                self._curves = {int(s): [RatePoint(*point) for point in c] for s, c in state["curves"].items()}

    def _restart(self) -> None:
        super()._restart()
        self._start = InitialWeights()
        self._plan = self._facts = None
        self._curves = {}
        self._eigenvalues = torch.empty(0)
