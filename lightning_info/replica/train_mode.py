"""Modules that compute their losses in train mode only, and give something else in eval mode: detectors do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_info.gradients.batches import num_samples, spread_index, take
from lightning_info.gradients.copies import deep_copy
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.replica.noise import Noise
from lightning_info.replica.snapshot import ModelSnapshot

TRAIN_MODE_ONLY = (
    "In train mode the same samples give a likelihood: the copy runs in eval mode, where everything is measured, and "
    "the module reads `self.training` and then returns something else, predictions in the place of losses. The adapter "
    "calls the part that gives the logits in both modes"
)
"""What is said then."""


def in_train_mode_only(snapshot: ModelSnapshot) -> bool:
    """Whether a module that gives no prediction in eval mode does in train mode; tried on a copy of the replica."""
    if not snapshot.predictor.runs_step:
        return False
    group = snapshot.groups[0]
    return not _goes_through(snapshot, group, False) and _goes_through(snapshot, group, True)


def _goes_through(snapshot: ModelSnapshot, group: Any, mode: bool) -> bool:
    try:
        module = deep_copy(snapshot.module)
        for part in module.modules():
            part.training = mode
        few = take(group, spread_index(num_samples(group), CHECK_SAMPLES))
        replace(snapshot.predictor, noise=Noise())(module, snapshot.to_device(few))
    except Exception:
        return False
    return True
