"""Modules that compute their losses in train mode only, and give something else in eval mode: detectors do."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Any

from lightning_info.gradients.batches import num_samples, spread_index, take
from lightning_info.gradients.copies import deep_copy
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.replica.noise import Noise
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.snapshot import ModelSnapshot

TRAIN_MODE_ONLY = (
    "In train mode the same samples go through: the copy runs in eval mode, where everything is measured, and "
    "the module reads `self.training` and then returns something else, predictions in the place of losses. The adapter "
    "calls the part that gives the logits in both modes"
)
"""What is said then."""


def in_train_mode_only(snapshot: ModelSnapshot) -> bool:
    """Whether a module that fails or gives no prediction in eval mode does better in train mode; tried on a copy."""
    if not snapshot.predictor.runs_step:
        return False
    group = snapshot.groups[0]
    evaluated = _gives(snapshot, group, False)
    return evaluated is not Given.PREDICTION and _gives(snapshot, group, True).value > evaluated.value


class Given(Enum):
    """What a step comes to, the better the larger."""

    ERROR = 0
    NO_PREDICTION = 1
    PREDICTION = 2


def _gives(snapshot: ModelSnapshot, group: Any, mode: bool) -> Given:
    try:
        module = deep_copy(snapshot.module)
        for part in module.modules():
            part.training = mode
        few = take(group, spread_index(num_samples(group), CHECK_SAMPLES))
        replace(snapshot.predictor, noise=Noise())(module, snapshot.to_device(few))
    except NoPrediction:
        return Given.NO_PREDICTION
    except Exception:
        return Given.ERROR
    return Given.PREDICTION
