"""What callbacks that measure at the same step share: replicas, and the forward pass over the reference samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch

from lightning_info.gradients.samples import num_samples, take, tensors, without_samples
from lightning_info.probing.batch_norm import on_batch_statistics
from lightning_info.probing.inert import StandInTrainer
from lightning_info.probing.prediction import Adapter, Predictor
from lightning_info.probing.probe import Audit, Probe
from lightning_info.probing.replica import replicate
from lightning_info.probing.sample_axis import Layouts

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples spread evenly, so that other samples are looked at from point to point."""


def new_probe(
    trainer: Any, pl_module: Any, groups: list[Any], *, adapter: Adapter | None, chunk: int, private: bool
) -> Probe:
    """A probe with a replica of its own.

    Args:
        trainer: The trainer.
        pl_module: The user's module.
        groups: The samples.
        adapter: See :class:`~.Predictor`.
        chunk: See :class:`~.Probe`.
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
    return Probe(replica, predictor, groups, chunk, device, batch_norms, audit=audit)


class Bench:
    """The probes of the present step, by what must agree for two callbacks to use the same one."""

    def __init__(self) -> None:
        self._probes: list[tuple[Hashable, Probe]] = []
        self._initial: dict[Hashable, Probe] = {}
        self._begins: dict[tuple[int, int], bool] = {}
        self.layouts: Layouts = {}
        """Where the samples are, by what must agree for two callbacks to find the same."""

    def initial(self, key: Hashable, make: Callable[[], Probe]) -> Probe:
        """A probe without samples whose replica keeps the weights of this step; one replica for all with this key."""
        if key not in self._initial:
            self._initial[key] = make()
        return replace(self._initial[key], groups=[], readers=[], _read={})

    def keep(self, key: Hashable, probe: Probe) -> None:
        """Offer a probe to the others, until :meth:`clear`."""
        self._probes.append((key, probe))

    def find(self, key: Hashable, groups: list[Any], chunk: int) -> Probe | None:
        """A kept probe whose samples begin with these; it reads from the pass of the kept one.

        Args:
            key: As it was kept with.
            groups: The samples.
            chunk: The probe's chunk must not be larger.
        """
        for other, probe in self._probes:
            if other == key and probe.chunk <= chunk and self.begins(probe.groups, groups):
                return replace(probe, groups=groups, whole=probe)
        return None

    def begins(self, pool: list[Any], groups: list[Any]) -> bool:
        """Whether a pool begins with these samples, by their content, which is compared once."""
        if pool is groups:
            return True
        known = (id(pool), id(groups))
        if known not in self._begins:
            self._begins[known] = _begins(pool, groups)
        return self._begins[known]

    def discard(self, probe: Probe) -> None:
        """Do not offer a probe, or the one it reads from, any more: something failed in it, maybe in its samples."""
        self._begins.clear()
        self._probes = [kept for kept in self._probes if kept[1].module is not probe.module]

    def clear(self) -> None:
        """Let go of everything, before training goes on."""
        self._probes.clear()
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
