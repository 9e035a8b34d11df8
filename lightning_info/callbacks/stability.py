"""``StabilityCallback``: how much one training sample changes what is learned, by a twin that trains in lockstep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from typing_extensions import Unpack

from lightning_info.callbacks.base import InfoCallback
from lightning_info.callbacks.error_policy import Refused
from lightning_info.callbacks.member import Member
from lightning_info.callbacks.options import CommonOptions
from lightning_info.figures.stability_paths import LossLandscape
from lightning_info.quantities.stability.arguments import twin_arguments
from lightning_info.quantities.stability.twins import TwinStability, harmless
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.twin import NotSupported, Twin

FIGURE_SECONDS, FIGURE_SHARE = 3.0, 0.05
"""Time that the losses in the figure may take, in seconds or as a share of the run's time."""


class StabilityCallback(InfoCallback):
    r"""Logs how much one training sample changes what is learned: a twin trains in lockstep with it replaced.

    The twin is a second real Trainer in its own thread, with the same initial weights, batches, random numbers,
    optimiser, scheduler and precision; but wherever the sample ``index`` appears, the twin gets the sample
    ``replacement``. The user's run is bit-identical to one without the callback; it takes about twice the time, and the
    memory of one more model with its optimiser.

    With w the run's weights, w' the twin's, ``δ = w' - w``, N training samples and F the Fisher information at w:

    - ``stability/param_distance``: ``‖δ‖``; ``stability/relative_distance``: ``‖δ‖ / ‖w - w_0‖``.
    - ``stability/fisher_distance``: ``½ δᵀFδ``, nats per sample, over the reference samples.
    - ``stability/output_kl``: the mean of ``KL(p_w(y|x) ‖ p_w'(y|x))``, nats per sample, which equals the previous one
      to second order; ``stability/kl_ratio``: ``output_kl`` divided by ``fisher_distance``. Outside 0.8-1.25 the change
      is not small (ReLU networks have kinks), and a warning says so.
    - ``stability/loss_gap``: the twin's loss on the replaced sample minus the run's, nats.
    - ``stability/unique_information``: ``N δᵀFδ / (2 beta)``, nats: information that the weights hold about this sample
      only.
    - ``stability/overhead``, ``stability/twin_overhead``: share of the run's time that the points, and the twin's
      training, have taken so far; in ``history`` only.
    - figure ``stability/paths``, at the end: both paths in the plane of where they start and end.

    Until the replaced sample first appears, the twin must equal the run bit by bit, which is checked at every step.
    This certifies the twin up to that step; anything else that could make them differ later is refused before the first
    step, or detected when it happens. The values of a lost twin are NaN, with the reason. ``replacement == index``
    replaces nothing and certifies a whole run: every distance is exactly 0.

    With several twins (``num_twins``), ``stability/...`` is the mean over the twins, ``stability_stderr/...`` its
    standard error, and ``stability_twin1/...``, ``stability_twin2/...`` are the values of each. Source: Achille,
    Paolini & Soatto, section 2.3 and figure 2.

    Args:
        index: Index of the sample to replace in the training data set; None: drawn by ``seed``.
        replacement: Index of the sample that takes its place; None: drawn by ``seed``.
        beta: Level of the task for ``unique_information``.
        num_twins: Number of twins, each with its own replaced sample.
        trust: Names of classes of other callbacks in the Trainer that could change what is trained but do not. The
            hooks of all other callbacks are checked at every call; for these, the weights and optimisers are only
            compared from one batch to the next.
        num_samples: Number of reference samples: the first that training uses, kept on the CPU. Distances in the
            weights need none and do not wait for them. (``max_overhead`` counts the points, not the twin's training.)
        **common: The arguments that all callbacks share, see :class:`~.CommonOptions`.

    Raises:
        ValueError: An argument is invalid.
        MisconfigurationException: With ``on_error="raise"``, before the first step (else a warning, and the callback
            is off), for what no twin can follow (several processes, Lightning's callbacks that edit weights, data
            without indices), with every reason; no likelihood found; or a sample that does not exist.

    Example::

        from lightning.pytorch import Trainer
        from lightning_info import StabilityCallback

        trainer = Trainer(callbacks=[StabilityCallback(index=7)])
    """

    quantity: TwinStability

    _loss_is_shown: bool  # there was a point since the last twin was lost

    def __init__(
        self,
        index: int | None = None,
        replacement: int | None = None,
        beta: float = 1.0,
        num_twins: int = 1,
        trust: str | list[str] | None = None,
        num_samples: int = 256,
        **common: Unpack[CommonOptions],
    ) -> None:
        trusted = twin_arguments(type(self).__name__, index, replacement, beta, num_twins, trust)
        raises = common.get("on_error") == "raise"
        quantity = TwinStability(index, replacement, beta, num_twins, common.get("seed", 0), raises, trusted)
        super().__init__(quantity, num_samples=num_samples, **common)

    @property
    def twins(self) -> Sequence[Twin]:
        """The twins, each with the sample that it lacks, and the reason if it was lost."""
        return self.quantity.twins

    # ---- the twins' life

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what no twin can follow; make the training loader report which samples it gives."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._each(None, lambda twin: twin.install(trainer))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the twins from the weights that training starts from."""
        super().on_train_start(trainer, pl_module)
        if self._active:
            self.quantity.snapshot_of = self._snapshot_of
            self.quantity.sample_of = lambda twin: self._samples.laid(twin.replaced_sample(trainer))
            self._each(trainer, lambda twin: twin.start(trainer, pl_module))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the epoch of the twins too."""
        self._each(trainer, lambda twin: twin.epoch_start(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure if a point is due, as the twins have the weights of this step."""
        self._each(trainer, lambda twin: twin.batch_start(trainer, pl_module, batch))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Train the twins on the batch."""
        self._each(trainer, lambda twin: twin.batch_end(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the epoch of the twins too."""
        self._each(trainer, lambda twin: twin.epoch_end(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the end, and end the twins."""
        self._each(trainer, lambda twin: twin.finish(trainer, pl_module))
        self.quantity.landscape_at_end = partial(self._landscape, trainer)
        super().on_train_end(trainer, pl_module)
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the twins."""
        self._stop()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the twins."""
        self._stop()
        super().teardown(trainer, pl_module, stage)

    def _stop(self) -> None:
        for twin in self.twins:
            twin.stop()
        self.quantity.let_go()

    def _each(self, trainer: Any, act: Callable[[Twin], None]) -> None:
        """Have every twin that still trains do its part. The time counts as the twins'."""
        if self._off:
            return
        started = time.perf_counter()
        with self._or_off(trainer):
            try:
                for twin in self.twins:
                    act(twin)
            except NotSupported as error:
                self._stop()
                raise Refused(f"{type(self).__name__}: {error}") from error
            finally:
                self.quantity.seconds += time.perf_counter() - started
        for call in (call for twin in self.twins for call in twin.left_out):
            self._error_policy.warn_once(
                f"the twin does not save what the module saves while it trains, so the files hold the run's: "
                f"{call} is left out, and so is all that the twin would save, print or log",
                "left out",
            )

    # ---- points

    def _take(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """Measure a point; distances in the weights do not wait for the reference samples."""
        if self._samples.complete:
            super()._take(trainer, pl_module, batch_idx)
            return
        assert self._step is not None
        started = self._clock.elapsed
        values = dict.fromkeys(("stability/param_distance", "stability/relative_distance"), math.nan)
        with self._error_policy.guard("the distance in the weights"):
            try:
                values |= self.quantity.distances(pl_module, self._point_at(trainer, self._step))
            except Unavailable as error:
                values = dict.fromkeys(self.tags, math.nan)
                self._error_policy.warn_once(f"no value at step {self._step} (NaN): {error}", kind="no value")
        self._keep_and_report(trainer, self._step, values, started)

    def _keep_and_report(self, trainer: Any, step: int, values: dict[str, float], started: float) -> None:
        values["stability/twin_overhead"] = self.quantity.seconds / self._clock.elapsed
        super()._keep_and_report(trainer, step, values, started)

    def _falls_due(self, trainer: Any, step: int, epochs: int | None) -> bool:
        """Tell whether a point is due; the first step without a twin is one too, so curves end there in NaN."""
        is_due = super()._falls_due(trainer, step, epochs)
        if not trainer.fast_dev_run and all(twin.reason is not None for twin in self.twins):
            is_due, self._loss_is_shown = is_due or not self._loss_is_shown, True
        return is_due

    def _preflight(self, trainer: Any, pl_module: Any, batch: Any) -> bool:
        try:
            with harmless():
                return super()._preflight(trainer, pl_module, batch)
        except Unavailable as error:
            raise Refused(f"{type(self).__name__}: {error}") from error

    def _snapshot(self, trainer: Any, pl_module: Any, due: Sequence[Member]) -> ModelSnapshot:
        with harmless():
            return super()._snapshot(trainer, pl_module, due)

    def _snapshot_of(self, trainer: Any, module: Any, groups: list[Any]) -> ModelSnapshot:
        """Build a snapshot of a twin."""
        snapshot = self._new_snapshot(trainer, module, groups)
        if self.batch_norm == "reference":
            snapshot.use_reference_statistics()
        return snapshot

    def _landscape(self, trainer: Any) -> LossLandscape | None:
        """Compute what the figure shows; None if the paths have no end."""
        twin = self.twins[0]
        if twin.reason is not None or self.quantity.trajectory.last_step != self._step:
            return None
        assert self._step is not None
        try:
            with harmless():
                snapshot = self._new_snapshot(trainer, trainer.lightning_module, self._samples.groups, private=True)
                if self.batch_norm == "reference":
                    snapshot.use_reference_statistics()
                most = max(FIGURE_SECONDS, FIGURE_SHARE * self._clock.elapsed)
                if self.account.limit is not None:
                    most = min(most, self._session.budget.left(self.account, early=True))
                point = self._point_at(trainer, self._step)
                return self.quantity.landscape(snapshot, twin.weights(), point, most)
        except (ValueError, Unavailable) as error:  # for example, no weight has moved
            self._error_policy.warn_once(f"no figure of the paths: {error}", "figure")
            return None

    def _restart(self) -> None:
        super()._restart()
        self._loss_is_shown = False
