"""What callbacks that measure at the same step share: replicas, and the forward pass over the reference samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from lightning_info.gradients.batches import num_samples, take, tensors, without_samples
from lightning_info.replica.batch_norm import on_batch_statistics
from lightning_info.replica.prediction import Adapter, Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.sample_axis import Layouts
from lightning_info.replica.snapshot import Audit, ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples spread evenly, so that other samples are looked at from point to point."""


def new_snapshot(
    trainer: Any, pl_module: Any, groups: list[Any], *, adapter: Adapter | None, chunk: int, private: bool
) -> ModelSnapshot:
    """A snapshot with a replica of its own.

    Args:
        trainer: The trainer.
        pl_module: The user's module.
        groups: The samples.
        adapter: See :class:`~.Predictor`.
        chunk: See :class:`~.ModelSnapshot`.
        private: See :func:`~.replicate`.
    """
    stand_in = StandInTrainer(trainer)
    replica = replicate(pl_module, private=private, trainer=trainer, stand_in=stand_in)
    device = pl_module.device
    if device.type == "mps":  # has no float64
        device = torch.device("cpu")
        replica = replica.to(device)
    batch_norms: list[Any] = [replica.get_submodule(name) for name in on_batch_statistics(pl_module)]
    predictor, audit = Predictor(stand_in, adapter, shared=not private), Audit((trainer.global_step + 1) * GOLDEN % 1)
    return ModelSnapshot(replica, predictor, groups, chunk, device, batch_norms, audit=audit)


class SharedSnapshots:
    """The probes of the present step, by what must agree for two callbacks to use the same one."""

    def __init__(self) -> None:
        self._snapshots: list[tuple[Hashable, ModelSnapshot]] = []
        self._initial: dict[Hashable, ModelSnapshot] = {}
        self._begins: dict[tuple[int, int], bool] = {}
        self.layouts: Layouts = {}
        """Where the samples are, by what must agree for two callbacks to find the same."""

    def initial(self, key: Hashable, make: Callable[[], ModelSnapshot]) -> ModelSnapshot:
        """One without samples whose replica keeps the weights of this step; one replica for all with this key."""
        if key not in self._initial:
            self._initial[key] = make()
        return self._initial[key].on([])

    def keep(self, key: Hashable, snapshot: ModelSnapshot) -> None:
        """Offer a snapshot to the others, until :meth:`clear`."""
        self._snapshots.append((key, snapshot))

    def find(self, key: Hashable, groups: list[Any], chunk: int) -> ModelSnapshot | None:
        """A kept snapshot whose samples begin with these; it reads from the pass of the kept one.

        Args:
            key: As it was kept with.
            groups: The samples.
            chunk: The snapshot's chunk must not be larger.
        """
        for other, snapshot in self._snapshots:
            if other == key and snapshot.chunk <= chunk and self.begins(snapshot.groups, groups):
                return snapshot.beginning(groups)
        return None

    def begins(self, pool: list[Any], groups: list[Any]) -> bool:
        """Whether a pool begins with these samples, by their content, which is compared once."""
        if pool is groups:
            return True
        known = (id(pool), id(groups))
        if known not in self._begins:
            self._begins[known] = _begins(pool, groups)
        return self._begins[known]

    def discard(self, snapshot: ModelSnapshot) -> None:
        """Do not offer a snapshot, or the one it reads from, any more: something failed in it, maybe in its samples."""
        self._begins.clear()
        self._snapshots = [kept for kept in self._snapshots if kept[1].module is not snapshot.module]

    def clear(self) -> None:
        """Let go of everything, before training goes on."""
        self._snapshots.clear()
        self._initial.clear()


def _begins(pool: list[Any], groups: list[Any]) -> bool:
    if len(groups) > len(pool):
        return False
    for i, (larger, smaller) in enumerate(zip(pool, groups, strict=False)):
        size, whole = num_samples(smaller), i < len(groups) - 1
        if size > num_samples(larger) or (whole and size != num_samples(larger)):
            return False
        first = take(larger, slice(0, size))
        rest = without_samples(smaller)
        if rest is None or rest != without_samples(first):
            return False
        if not all(map(torch.equal, tensors(first), tensors(smaller))):
            return False
    return True
