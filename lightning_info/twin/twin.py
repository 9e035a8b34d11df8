"""The twin: the user's run once more, in lockstep, on data in which one sample is replaced by another.

With ``w`` the user's weights and ``w'`` the twin's, ``delta = w' - w`` is how much the one sample changes what is
learned (Achille, Paolini & Soatto, section 2.3).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_info.replica.blame import text_of
from lightning_info.replica.replicate import NotCopyable
from lightning_info.twin.certificate import different_setting, fingerprint, same_weights
from lightning_info.twin.copying import copy_batch, copy_datamodule, copy_module
from lightning_info.twin.handover import OutOfStep, Place, Word
from lightning_info.twin.locating import Locator
from lightning_info.twin.open_files import refuse_open_file
from lightning_info.twin.randomness import random_state, undisturbed
from lightning_info.twin.refusals import NotSupported, refuse_run, refuse_strategy, watched_hooks
from lightning_info.twin.replacing import Replacer, choose_samples
from lightning_info.twin.second_trainer import SecondTrainer, is_left_out
from lightning_info.twin.state import TwinState, loops_of
from lightning_info.twin.watching import Watch


class Twin:
    """A second real ``Trainer.fit`` in its own thread, which gets each batch when the user's run is done with it.

    Precision, clipping, accumulation, manual optimisation, schedulers and overridden hooks are Lightning's own. The
    user's run is not affected: weights, losses, optimisers and random numbers are bit-identical to a run without it.
    Anything that goes wrong after the first step ends the twin, not the run; :attr:`reason` says why.

    Each method says in which hook of a callback it must be called; :meth:`stop` at the end of ``on_train_end``, in
    ``on_exception`` and in ``teardown``. In between :meth:`weights` returns what can be measured.

    Args:
        index: Index of the replaced sample in the training data set; None: drawn by ``seed``.
        replacement: Index of the sample that takes its place; None: drawn by ``seed``. If it equals ``index``, nothing
            is replaced, and the twin must stay equal to the run (the null test).
        seed: Seed of the two draws, and of the random augmentation of the replacement.
        number: Number of the twin among those of this seed, whose drawn samples differ.
        trust: Names of classes of callbacks that change nothing of what is trained, though they could.

    Attributes:
        index: The replaced sample, as given or drawn by :meth:`start`.
        replacement: The replacement, as given or drawn by :meth:`start`.
        first_difference_step: The optimiser step whose batch was the first that held the replaced sample: the weights
            before it are equal. None as long as there was none.
        reason: Why there is no twin, or no longer one; None while it follows the run.
        lost_at: The optimiser step of the run at which it was lost; the weights after it have no twin.
        error: The error with which it failed, if that is the reason.
    """

    def __init__(
        self,
        index: int | None = None,
        replacement: int | None = None,
        seed: int = 0,
        number: int = 0,
        trust: Collection[str] = (),
    ) -> None:
        self._asked, self._seed, self._number, self._trust = (index, replacement), seed, number, tuple(trust)
        self._locator, self._watch = Locator(), Watch()
        self._trainer: Any = None
        self._second: SecondTrainer | None = None
        self._kept: TwinState | None = None  # of the last run
        self._loaded: TwinState | None = None  # of the checkpoint from which the next run goes on
        self._restart()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the state of a copy, which does not follow the run that the original follows."""
        told = ("index", "replacement", "first_difference_step", "reason", "lost_at", "_kept", "_loaded")
        return (
            type(self),
            (*self._asked, self._seed, self._number, self._trust),
            {name: getattr(self, name) for name in told},
        )

    def _restart(self) -> None:
        self.index, self.replacement = self._asked
        self.first_difference_step: int | None = None
        self.reason: str | None = None
        self.lost_at: int | None = None
        self.error: Exception | None = None
        self._visits = 0
        self._fingerprint: dict[str, Any] | None = None  # of the run at the end of its last batch, if watched
        self._pending: Word | None = None  # the batch on which the user's run trains now
        self._has_stepped = False  # the twin has trained on a batch
        self._steps = 0  # optimiser steps of the user's run when it got that batch

    @property
    def is_null(self) -> bool:
        """Whether nothing is replaced."""
        return self.index == self.replacement

    @property
    def notes(self) -> list[str]:
        """Notes on how it follows the run, one sentence each; available once it has started."""
        notes = []
        if self._watch.names:
            notes.append(
                f"{', '.join(self._watch.names)} could change what is trained: every call is looked at, and a change "
                f"ends the twin"
            )
        if self._trainer is not None and any(c.reduce_on_plateau for c in self._trainer.lr_scheduler_configs):
            notes.append(
                "a scheduler follows a validation metric, and the twin is never validated: it takes the learning "
                "rates of the run, and the influence of the sample through them is left out"
            )
        return notes

    @property
    def left_out(self) -> list[str]:
        """Calls of the user's code that save something and were left out in the twin, with the line of each."""
        return [] if self._second is None else list(self._second.guard.left_out.values())

    def weights(self) -> Any:
        """Return the twin's LightningModule, after as many batches as the user's; to be read only.

        Raises:
            OutOfStep: There is none; the message is :attr:`reason`.
        """
        if self._second is None:
            raise OutOfStep(self.reason or "no training runs")
        return self._module

    def replaced_sample(self, trainer: Any) -> Any:
        """Return a batch of the replaced sample alone, as it is trained on; with augmentation always the same draw.

        Raises:
            OutOfStep: There is no twin.
        """
        self.weights()
        return self._replacer.alone(trainer.train_dataloader, trainer.strategy.root_device)

    # ---- before the first step

    def install(self, trainer: Any) -> None:
        """Prepare; called in ``setup`` of fit, before any training loader is made.

        Raises:
            NotSupported: No twin can be trained with this strategy.
        """
        refusal = refuse_strategy(trainer)
        if refusal is not None:
            raise NotSupported(refusal)
        self._locator.uninstall()
        self._locator.install(trainer)

    def start(self, trainer: Any, pl_module: Any) -> None:
        """Start the twin in ``on_train_start``, as a copy of the module as it is now, or from the checkpoint.

        Raises:
            NotSupported: No twin can follow this run; the message says why and what to do.
        """
        self._close()
        state, self._loaded, self._kept = self._loaded, None, None
        self._restart()
        refuse_run(
            trainer,
            self._locator.refuse(trainer.train_dataloader),
            refuse_open_file(pl_module, without=is_left_out),
            trust=self._trust,
        )
        self._watch.install((c, hook) for c in trainer.callbacks for hook in watched_hooks(c, self._trust))
        checkpoint = None
        if state is not None and state.belongs_to(*self._asked, trainer.global_step):
            self.index, self.replacement, self._visits = state.index, state.replacement, state.visits
            self.first_difference_step, self.reason = state.first_difference_step, state.reason
            self.lost_at = state.lost_at
            checkpoint = state.of_twin() if state.reason is None else None
        elif trainer.global_step > 0 or trainer.current_epoch > 0:
            self.lost_at = _steps_taken(trainer)
            self.reason = (
                f"the run goes on at step {trainer.global_step} without the twin of that step; start anew, or from a "
                f"checkpoint that was saved with the same twin"
            )
        size = len(trainer.train_dataloader.dataset)
        pair = self.index, self.replacement = choose_samples(
            self.index, self.replacement, self._seed, size, self._number
        )
        if self.reason is not None:
            return
        try:
            with undisturbed(trainer.strategy.root_device):
                self._begin(trainer, pl_module, checkpoint, *pair)
        except BaseException:
            self._close()
            raise

    def _begin(
        self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any] | None, index: int, replacement: int
    ) -> None:
        device = trainer.strategy.root_device
        try:
            self._module = copy_module(pl_module, trainer)
            instead = {id(trainer): None, id(pl_module): self._module}
            datamodule = copy_datamodule(trainer.datamodule, instead)
        except NotCopyable as error:
            raise NotSupported(f"the twin is a copy of the module, but {error}") from error
        instead[id(trainer.datamodule)] = datamodule
        second = SecondTrainer(trainer, self._module, datamodule, random_state(device), checkpoint, self._trust)
        self._replacer = Replacer(index, replacement, self._seed, second.transfer, instead)
        self._trainer, self._second, self._length = trainer, second, trainer.num_training_batches
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the second Trainer, the same as of the first
            second.start()
        if second.error is not None:
            known = isinstance(second.error, OutOfStep)
            raise NotSupported(
                f"a copy of {type(pl_module).__name__} cannot be trained: "
                f"{second.error if known else text_of(second.error)}"
            ) from second.error
        if not self.is_null:
            self._replacer.check(trainer.train_dataloader, device)

    # ---- in training

    def epoch_start(self, trainer: Any) -> None:
        """Start an epoch; called in ``on_train_epoch_start``."""
        self._tell(trainer, "the start of an epoch")

    def batch_start(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        """Check the twin, which has the weights of this step; called in ``on_train_batch_start``."""
        with self._in_step(trainer) as second:
            if second is None:
                return
            self._hand_over(second)  # a batch whose end was not told, as its epoch was ended before
            second.take_rates()
            self._certify(trainer, pl_module, second)
            indices = self._locator.next_batch(trainer)
            device = trainer.strategy.root_device
            now, batch = random_state(device), copy_batch(batch)
            replaced_at = None
            if not self.is_null and self.index in indices:
                batch = self._replacer(trainer.train_dataloader, batch, indices, self._visits, device)
                replaced_at = _steps_taken(trainer)
            self._pending, self._steps = Word("a batch", now, batch, replaced_at), trainer.global_step

    def batch_end(self, trainer: Any) -> None:
        """Train the twin on its batch; called in ``on_train_batch_end``."""
        with self._in_step(trainer) as second:
            if second is not None:
                if not self._has_stepped:
                    refusal = refuse_open_file(trainer.lightning_module, without=is_left_out)  # opened in this step
                    if refusal is not None:
                        raise OutOfStep(refusal)
                    self._has_stepped = True
                self._hand_over(second)
                watched = second.fingerprint is not None
                self._fingerprint = fingerprint(trainer.lightning_module, trainer.optimizers) if watched else None

    def epoch_end(self, trainer: Any) -> None:
        """End an epoch; called in ``on_train_epoch_end``."""
        self._tell(trainer, "the end of an epoch")

    def finish(self, trainer: Any, pl_module: Any) -> None:
        """Check the last weights before they are measured; called in ``on_train_end``."""
        with self._in_step(trainer) as second:
            if second is not None:
                self._hand_over(second)
                self._certify(trainer, pl_module, second)

    def stop(self) -> None:
        """Keep the state for a checkpoint that is saved later, end the thread, leave everything as it was found.

        May be called at any time, and more than once.
        """
        if self._second is not None:
            self._kept = self._state()
        self._close()
        self._locator.uninstall()

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on; it holds the bytes of the second Trainer's checkpoint."""
        state = self._kept if self._second is None else self._state()
        return {} if state is None else state.as_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the next :meth:`start` goes on from there."""
        self._kept = self._loaded = TwinState(**state_dict) if state_dict else None

    def _state(self) -> TwinState | None:
        """Return the current state; if it is unavailable, the one that :meth:`_in_step` keeps of a failed twin."""
        trainer, state = self._trainer, None
        with self._in_step(trainer) as second:
            assert second is not None
            if trainer.global_step > self._steps:  # saved after the optimiser's step, before the end of the batch
                self._hand_over(second)
            state = self._told(trainer.global_step, second.save(), loops_of(trainer))
        return state or self._kept

    def _told(self, steps: int, checkpoint: Tensor, loops: dict[str, Any]) -> TwinState:
        told = (self.index, self.replacement, self._visits, self.first_difference_step, self.reason)
        return TwinState(*told, steps, checkpoint, loops, self.lost_at)

    # ---- small things

    def _tell(self, trainer: Any, place: Place) -> None:
        with self._in_step(trainer) as second:
            if second is not None:
                self._hand_over(second)
                word = Word(place, random_state(trainer.strategy.root_device), stopping=trainer.should_stop)
                second.give(word)

    def _hand_over(self, second: SecondTrainer) -> None:
        word, self._pending = self._pending, None
        if word is None:
            return
        if word.replaced_at is not None:
            self._visits += 1
            if self.first_difference_step is None:
                self.first_difference_step = word.replaced_at
        second.give(word)

    def _certify(self, trainer: Any, pl_module: Any, second: SecondTrainer) -> None:
        """Raise OutOfStep if the twin is elsewhere than the run."""
        if trainer.num_training_batches != self._length:
            raise OutOfStep(f"an epoch of {self._length} batches has become one of {trainer.num_training_batches}")
        difference = different_setting(trainer, second.trainer)
        if self._watch.found is not None:
            raise OutOfStep(self._watch.found)
        if difference is not None:
            raise OutOfStep(f"something changed the run but not the twin: {difference}")
        before, self._fingerprint = self._fingerprint, None
        if before is not None and second.fingerprint is not None:
            now, twins = fingerprint(pl_module, trainer.optimizers), second.fingerprint
            twins_now = fingerprint(self._module, second.trainer.optimizers)
            parted = [what for what in now if (now[what] != before[what]) != (twins_now[what] != twins[what])]
            if parted:
                what = " and ".join(parted)
                raise OutOfStep(f"something changed {what} between two batches, but not those of the twin")
        if self.first_difference_step is None and not same_weights(pl_module, self._module):
            raise OutOfStep(
                "the twin's weights differ though nothing has been replaced yet: the training is not deterministic, or "
                "depends on what a copy of the module does not have"
            )

    @contextmanager
    def _in_step(self, trainer: Any) -> Iterator[SecondTrainer | None]:
        """Yield the second Trainer, if it still follows; a failure ends it, and the user's run goes on."""
        if self._second is None:
            yield None
            return
        try:
            with undisturbed(trainer.strategy.root_device):
                yield self._second
        except Exception as error:
            is_fault = not isinstance(error, OutOfStep)
            self.reason, self.error = (f"the twin failed: {text_of(error)}", error) if is_fault else (str(error), None)
            self.lost_at = _steps_taken(trainer)
            self._kept = self._told(0, torch.empty(0, dtype=torch.uint8), {})
            self._close()

    def _close(self) -> None:
        second, self._second, self._trainer, self._pending = self._second, None, None, None
        self._watch.uninstall()
        if second is not None:
            second.stop()
            del self._module, self._replacer


def _steps_taken(trainer: Any) -> int:
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)
