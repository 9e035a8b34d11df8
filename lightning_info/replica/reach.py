"""Which trained weights the loss depends on, and the predictive distribution that was recognised in it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.batches import num_samples, take
from lightning_info.gradients.contract import NotCovered, trainable
from lightning_info.gradients.graph import leaf_uses
from lightning_info.replica.predicted import Prediction, Skipped
from lightning_info.replica.prediction import Predictor


@dataclass(frozen=True)
class Reach:
    """Weights that the loss trains.

    Attributes:
        trained: Elements that the loss depends on.
        beyond: Elements by name of those of them that the outputs do not depend on.
    """

    trained: int
    beyond: dict[str, int]

    @property
    def share(self) -> float:
        """Of the elements that the outputs do not depend on."""
        return sum(self.beyond.values()) / max(1, self.trained)

    def __str__(self) -> str:
        names = list(self.beyond)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{sum(self.beyond.values()):,} of the {self.trained:,} weights that it trains ({listed})"


def reach_of(module: nn.Module, predictor: Predictor, batch: Any, prediction: Prediction) -> Reach:
    """Compare what the loss depends on with what the outputs do, on a few samples.

    A weight counts where the loss has a gradient in it that depends on the data: penalties, which have the same on
    other samples, train no prediction, and a factor of 0 nothing at all.

    Args:
        module: A replica.
        predictor: Its predictions.
        batch: A few samples, on its device.
        prediction: For them.
    """
    losses = [] if prediction.returned is None else prediction.returned.losses
    try:
        reached = {id(leaf) for loss in losses for leaf in leaf_uses(loss)}
        measured = {id(leaf) for leaf in leaf_uses(prediction.outputs)}
    except NotCovered:  # hidden by reentrant checkpointing, which is refused where it hides the outputs
        return Reach(0, {})
    weights = trainable(module)
    candidates = {name: p for name, p in weights.items() if id(p) in reached - measured}
    if not candidates:
        return Reach(0, {})
    gradients = _gradients(losses, candidates)
    half = num_samples(batch) // 2
    parts = (slice(0, half), slice(half, 2 * half)) if half else ()
    others = [_of_part(module, predictor, take(batch, part), candidates) for part in parts]
    beyond = {
        name: p.numel()
        for name, p in candidates.items()
        if gradients[name].any() and not (others and all(_equal(other[name], others[0][name]) for other in others))
    }
    both = sum(p.numel() for p in weights.values() if id(p) in reached & measured)
    return Reach(both + sum(beyond.values()), beyond)


def _of_part(module: nn.Module, predictor: Predictor, part: Any, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    try:
        returned = predictor(module, part).returned
    except Skipped:
        returned = None
    return _gradients([] if returned is None else returned.losses, weights)


def _gradients(losses: list[Tensor], weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Of the sum of the losses; 0 where they do not depend on a weight."""
    if not losses:
        return {name: torch.zeros_like(p) for name, p in weights.items()}
    found = torch.autograd.grad(losses, list(weights.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
        for (name, p), g in zip(weights.items(), found, strict=True)
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max())
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)
