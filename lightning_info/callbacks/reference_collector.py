"""Source of the reference samples: the user, a checkpoint, or the first that training uses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_info.callbacks.error_policy import ErrorPolicy, Refused, WrongArgument
from lightning_info.callbacks.processes import in_all_processes
from lightning_info.gradients.batches import num_samples
from lightning_info.gradients.layout import Layout
from lightning_info.replica.declared_samples import DeclaredSamples, DoesNotFit
from lightning_info.replica.isolation import exits_are_errors
from lightning_info.replica.reference_samples import ReferenceSamples
from lightning_info.replica.sample_store import SampleStore
from lightning_info.replica.uncut import why_not_cut


class ReferenceCollector:
    """Collects the reference samples, in the same way in every process.

    Args:
        size: Number of samples wanted.
        reference: Samples given by the user, or None.
        faults: The error policy.
        declared: What the user says about the samples of a batch.

    Attributes:
        samples: The reference samples.
        chunk: Samples of the largest training batch seen.
        origin: Where they come from, in words.
        same: Whether they are those of the checkpoint.
        expected: How many there will be if there is memory for them, as the summary says.
        has_gaps: Whether a batch between them was left out.
    """

    def __init__(
        self,
        size: int,
        reference: Dataset[Any] | Sequence[Tensor] | None,
        faults: ErrorPolicy,
        declared: DeclaredSamples,
    ) -> None:
        self.samples = ReferenceSamples(size)
        self.reference = reference
        self.faults = faults
        self.declared = declared
        self.chunk = 32
        self.origin = "the first that pass in training"
        self.same = False
        self.expected = size
        self.has_gaps = False

    def start(self, trainer: Any, batch: Any, saved: list[dict[str, Any]] | None, store: SampleStore) -> None:
        """Look at the first batch, and take the samples that are available at once.

        Args:
            trainer: The trainer.
            batch: The first batch of this process.
            saved: Samples of a checkpoint, in the form of :meth:`ReferenceSamples.state`.
            store: Keeps the samples of all callbacks of the run.

        Raises:
            Refused: Neither the batch nor ``reference`` has samples.
        """
        self.samples.store = store
        try:
            self.chunk = max(1, num_samples(batch))
        except Exception as error:
            if self.reference is None:
                raise Refused(f"{self.faults.owner}: {why_not_cut(batch, error)}") from error
        if self.reference is not None:
            self._fill(trainer)
        else:
            self.samples.size = self.samples.asked = math.ceil(self.samples.size / trainer.world_size)
        if saved is not None:
            with contextlib.suppress(Exception):  # of another make, or the batches of this run look different
                if self.reference is not None:
                    self.same = _equal(saved, self.samples.state())
                else:
                    self.samples.restore(saved, batch)
                    self.origin, self.same = "those of the checkpoint", True

    def start_anew(self) -> None:
        """Collect new samples, as those of the checkpoint do not fit this run."""
        self.samples.reopen()
        self.origin, self.same = "the first that pass in training", False

    def _fill(self, trainer: Any) -> None:
        assert self.reference is not None
        self.origin = "those given as reference"
        try:
            with exits_are_errors("drawing reference samples"):
                self.samples.fill(self.reference, self.declared, trainer.precision_plugin.convert_input)
        except DoesNotFit as error:
            raise WrongArgument(
                f"{self.faults.owner}: of reference={type(self.reference).__name__}(...), {error}"
            ) from error
        except Exception as error:
            raise Refused(
                f"{self.faults.owner}: no samples can be taken from reference={type(self.reference).__name__}(...): "
                f"{error}; give a Dataset, or tensors such as reference=(x, y)"
            ) from error

    def agree(self, trainer: Any) -> None:
        """Have all processes collect samples, unless all have theirs already."""
        if not in_all_processes(trainer, self.samples.complete):
            self.samples.reopen()

    def add(self, trainer: Any, batch: Any, batch_idx: int) -> bool:
        """Keep samples of a training batch; True if there will be no more."""
        if batch_idx == 0 and self.samples.groups:  # an epoch that ended early: its samples come again
            return in_all_processes(trainer, True)
        with self.faults.guard("keeping reference samples"):
            self._keep(batch, (trainer.current_epoch, batch_idx))
        last_of_epoch = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        return in_all_processes(trainer, self.samples.full or last_of_epoch or bool(trainer.fast_dev_run))

    def lay(self, layout: Layout) -> None:
        """Set where the samples of a batch are."""
        self.samples.lay(layout)

    def _keep(self, batch: Any, of: tuple[int, int]) -> None:
        layout = self.samples.layout
        try:
            laid = batch if layout is None else layout.wrap(batch)
        except ValueError as error:
            self.has_gaps = True
            self.faults.warn_once(
                f"a batch does not look like the first one ({error}); such batches are not among the reference samples",
                "another form",
            )
            return
        self.samples.add(laid, of=of)
        if self.samples.full and len(self.samples) < min(self.samples.asked, self.expected):
            self.faults.warn_once(
                f"{len(self.samples)} of {self.samples.asked} reference samples are kept, as those of all callbacks "
                f"may take {self.samples.store.limit >> 20} MiB of host memory; reference=... gives any samples",
                "host memory",
            )
        self.chunk = max(self.chunk, num_samples(laid))


def _equal(saved: list[dict[str, Any]], state: list[dict[str, Any]] | None) -> bool:
    leaves = [[leaf for group in groups for leaf in group["tensors"]] for groups in (saved, state or [])]
    return len(leaves[0]) == len(leaves[1]) and all(map(torch.equal, *leaves))
