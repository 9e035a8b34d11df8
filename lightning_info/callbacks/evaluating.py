"""The samples that a trained network is judged by: a random part of the first epoch and of the validation data."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler

from lightning_info.callbacks.resuming import Resuming, steps_taken
from lightning_info.gradients.batches import SampleCount
from lightning_info.quantities.quantity import Point
from lightning_info.replica.isolation import isolated
from lightning_info.replica.random_subset import RandomSubset, SampledSet

PROCESSES = "with several processes none of them sees the whole epoch"
RESUMED = "the run goes on from a checkpoint without the samples of its first epoch"


class Evaluating(Resuming):
    """Draws samples from what passes in the first epoch and in the first validation, if the quantity asks for them."""

    _active: bool
    _training_set: RandomSubset
    _validation_set: RandomSubset
    _count: SampleCount
    _missing: dict[str, str]  # why there is no set, by name
    _saved_set: dict[str, Any] | None  # that of a checkpoint

    def _new_sets(self) -> None:
        most = self.quantity.evaluation_samples
        self._training_set = RandomSubset(most, 2 * self.seed)
        self._validation_set = RandomSubset(most, 2 * self.seed + 1)
        self._missing, self._saved_set = {}, None
        self._count = SampleCount()

    def _restore_sets(self, batch: Any) -> None:
        """Take up the samples of a checkpoint, in the form of a batch of this run."""
        saved, self._saved_set = self._saved_set, None
        if saved is not None:
            with contextlib.suppress(Exception):  # the batches of this run look different
                self._training_set.samples.restore(saved["groups"], batch)
                self._training_set.total = int(saved["total"])

    def _see_training(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let a training batch pass by; it is the next to be trained on."""
        if not self.quantity.evaluation_samples or self._training_set.is_closed or "training" in self._missing:
            return
        layout = self._samples.layout
        runs_code = layout is not None and bool(layout.objects)  # of the user, to take samples out of a batch
        with self._clock.spending(), isolated(pl_module.device) if runs_code else contextlib.nullcontext():
            try:
                self._let_pass(trainer, batch, batch_idx)
            except Exception as error:
                self._missing["training"] = f"the batches of the first epoch cannot be kept ({error})"

    def _let_pass(self, trainer: Any, batch: Any, batch_idx: int) -> None:
        subset, layout = self._training_set, self._samples.layout
        if trainer.world_size > 1:
            self._missing["training"] = PROCESSES
        elif not subset.total and not trainer.overfit_batches and (reason := repeats(trainer.train_dataloader)):
            self._missing["training"] = f"{reason}, so the number of independent training samples is not known"
        elif not subset.total and steps_taken(trainer) and not self._is_first(trainer, batch_idx):
            self._missing["training"] = RESUMED
        elif subset.total and batch_idx == 0:  # the epoch ended early
            subset.close()
        else:
            subset.pass_by(self._count(batch, layout), lambda: batch if layout is None else layout.wrap(batch))
            if trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches:
                subset.close()

    def _is_first(self, trainer: Any, batch_idx: int) -> bool:
        return bool(trainer.current_epoch == 0 and batch_idx == 0)

    def _end_first_epoch(self) -> None:
        """Fit ends: the samples that passed are all there are."""
        if self._training_set.total and not self._training_set.is_closed and "training" not in self._missing:
            self._training_set.close()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let a validation batch of fit pass by."""
        if (
            not self._active
            or not self.quantity.evaluation_samples
            or trainer.sanity_checking
            or trainer.state.fn != "fit"
            or dataloader_idx
            or self._validation_set.is_closed
            or "validation" in self._missing
        ):
            return
        with self._clock.spending(), isolated(pl_module.device):
            try:
                layout = self._samples.layout
                if batch_idx == 0 and self._validation_set.total:
                    self._validation_set.close()
                    return
                loaders = trainer.val_dataloaders
                first = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
                if trainer.world_size > 1:
                    self._missing["validation"] = PROCESSES
                elif trainer.overfit_batches:
                    self._missing["validation"] = "overfit_batches validates on training samples"
                elif reason := repeats(first):
                    self._missing["validation"] = reason
                elif chosen := _choosing(trainer):
                    self._missing["validation"] = f"{chosen} decides by the validation data, which are no fresh samples"
                self._validation_set.add(batch if layout is None else layout.wrap(batch))
            except Exception as error:
                self._missing["validation"] = f"the validation batches cannot be kept ({error})"

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the pass over the validation data."""
        if self._active and self._validation_set.total and not self._validation_set.is_closed:
            with self._clock.spending():
                self._validation_set.close()

    def _point_at(self, trainer: Any, step: int) -> Point:
        return replace(
            super()._point_at(trainer, step),
            training_set=self._set("training", self._training_set),
            validation_set=self._set("validation", self._validation_set),
        )

    def _set(self, name: str, subset: RandomSubset) -> SampledSet | None:
        return SampledSet(missing=self._missing[name]) if name in self._missing else subset.set()

    def _state(self) -> dict[str, Any]:
        subset = self._training_set
        groups = subset.samples.state() if self.save_samples and subset.is_closed else None
        return {**super()._state(), "training_set": groups and {"groups": groups, "total": subset.total}}

    def _take_up(self, state: dict[str, Any]) -> None:
        super()._take_up(state)
        self._saved_set = state.get("training_set")


def repeats(loader: Any) -> str:
    """Return how a loader may give one sample several times in an epoch; empty if it gives each at most once."""
    sampler = getattr(loader, "sampler", None)
    inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    sampler = sampler if inner is None else inner
    if sampler is None or not hasattr(getattr(loader, "dataset", None), "__len__"):
        return "the data are no data set with a length"
    if type(sampler) in (SequentialSampler, SubsetRandomSampler):
        return ""
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples <= len(sampler.data_source):
        return ""
    return f"the sampler {type(sampler).__name__} may repeat samples within an epoch"


def _choosing(trainer: Any) -> str:
    """Return what acts on the validation data in training; empty if nothing does."""
    for callback in trainer.callbacks:
        monitor = str(getattr(callback, "monitor", None) or "")
        if type(callback).__name__ == "EarlyStopping" and not monitor.startswith("train"):
            return f"EarlyStopping(monitor={monitor!r})"
    for config in trainer.lr_scheduler_configs:
        monitor = str(getattr(config, "monitor", None) or "")
        if config.reduce_on_plateau and not monitor.startswith("train"):
            return f"ReduceLROnPlateau, which monitors {monitor!r},"
    return ""
