"""The weights that training started from: the mean, or the scale, of the prior."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import trainable
from lightning_info.gradients.real import as_real, flat


class InitialWeights:
    """Copies on the CPU of the trainable weights at the start, by name; they are saved in checkpoints.

    A complex weight counts as two numbers, its real and imaginary part.

    Attributes:
        std: Standard deviation over all weights, one number; NaN if they are not known.
        weights: The weights by name; None if they are not known, or not kept.
        rest: Fingerprints of the frozen weights and the buffers, by name; None if they are not known.
    """

    def __init__(self) -> None:
        self.std = math.nan
        self.weights: dict[str, Tensor] | None = None
        self.rest: dict[str, str] | None = None

    def keep(self, module: nn.Module, whole: bool) -> None:
        """Keep the current weights.

        Args:
            module: The module.
            whole: Whether to keep the weights themselves, not only their standard deviation.
        """
        parameters = {name: p.detach() for name, p in trainable(module).items()}
        self.std = spread(parameters.values())
        self.weights = {name: p.cpu().clone() for name, p in parameters.items()} if whole else None
        self.rest = {name: fingerprint(tensor) for name, tensor in untrained(module).items()}

    def changed(self, module: nn.Module) -> str:
        """Return the name of a tensor that is no trainable weight now and differs from the start; empty without one."""
        for name, tensor in untrained(module).items():
            kept = (self.weights or {}).get(name)
            before = fingerprint(kept) if kept is not None else (self.rest or {}).get(name)
            if before != fingerprint(tensor):
                return name
        return ""

    def squared_distance(self, module: nn.Module) -> float | None:
        """Return ``‖w - w_0‖²`` over the weights that are trainable now; None if one of them was not kept."""
        parameters, kept = trainable(module), self.weights
        if kept is None or any(name not in kept or kept[name].shape != p.shape for name, p in parameters.items()):
            return None
        moved = (flat(p.detach()).double().cpu() - flat(kept[name]).double() for name, p in parameters.items())
        return sum(part.square().sum().item() for part in moved)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"std": self.std, "weights": self.weights, "rest": self.rest}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.std, self.weights, self.rest = float(state["std"]), state["weights"], state.get("rest")


def untrained(module: nn.Module) -> dict[str, Tensor]:
    """Return the frozen weights and the buffers of a module, by name."""
    weights = trainable(module)
    frozen = {name: p for name, p in module.named_parameters() if name not in weights}
    return {**frozen, **dict(module.named_buffers())}


def fingerprint(tensor: Tensor) -> str:
    """Return a text that two tensors share only if their bytes agree."""
    numbers = as_real(tensor.detach()).cpu().contiguous().reshape(-1)
    return hashlib.sha256(numbers.view(torch.uint8).numpy().tobytes()).hexdigest()


def spread(parameters: Any) -> float:
    """Return the standard deviation over all elements of some tensors."""
    count = total = squares = 0.0
    for p in parameters:
        p = as_real(p.detach()).double()
        count, total, squares = count + p.numel(), total + p.sum().item(), squares + p.square().sum().item()
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2)) if count else math.nan


def squared_norm(module: nn.Module) -> float:
    """Return ``‖w‖²`` of the trainable weights."""
    return sum(as_real(p.detach()).double().square().sum().item() for p in trainable(module).values())
