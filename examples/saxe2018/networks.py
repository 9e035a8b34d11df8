"""The networks: those of all seeds as one LightningModule, trained in one run of a Trainer.

The loss is the sum over the networks, and Adam and SGD act on each weight alone, so this is the same as training each
network separately, in a fraction of the time. ``forward`` is one network as one would usually write it;
InfoPlaneCallback measures this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "linear": lambda x: x}
Init = Callable[[int, int, torch.Generator], Tensor]


def truncated_normal(units: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Draw weights as in the authors' networks: a normal cut at 2 σ, σ² = 1 / inputs."""
    std = inputs**-0.5
    return nn.init.trunc_normal_(torch.empty(units, inputs), 0, std, -2 * std, 2 * std, generator=generator)


def normal(std: float) -> Init:
    return lambda units, inputs, generator: std * torch.randn(units, inputs, generator=generator)


def scaled_normal(gain: float) -> Init:
    return lambda units, inputs, generator: gain * inputs**-0.5 * torch.randn(units, inputs, generator=generator)


class Networks(pl.LightningModule):
    """S networks of one shape.

    Args:
        seeds: Seeds of their initial weights.
        widths: Widths of the layers, input first.
        activation: Activation function of the hidden layers.
        task: ``"classes"``: softmax and cross-entropy, Adam; ``"teacher"``: no bias, squared error, plain SGD.
        init: Initialisation of the weights; biases start at 0.
        lr: Step size.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        widths: Sequence[int],
        activation: str,
        task: Literal["classes", "teacher"] = "classes",
        init: Init = truncated_normal,
        lr: float = 4e-4,
    ):
        super().__init__()
        self.seeds, self.activation, self.task, self.lr = list(seeds), ACTIVATIONS[activation], task, lr
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        self.weights = nn.ParameterList(torch.stack([init(*shape, g) for g in generators]) for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(len(self.seeds), units, 1) for units, _ in shapes)
        self.biases.requires_grad_(task == "classes")
        self.layers = [f"layer{i}" for i in range(1, len(shapes) + 1)]
        for name in self.layers:
            self.add_module(name, nn.Identity())  # a name for what the callback measures

    def forward(self, x: Tensor, network: int = 0) -> Tensor:
        """Return one network's outputs before the softmax, ``(N, outputs)``, for ``x (N, inputs)``."""
        for i, name in enumerate(self.layers):
            x = F.linear(x, self.weights[i][network], self.biases[i][network, :, 0])
            if i + 1 < len(self.layers):
                x = self.get_submodule(name)(self.activation(x))
        self.get_submodule(name)(x.softmax(1) if self.task == "classes" else x)
        return x

    def activations(self, x: Tensor, network: int = 0) -> dict[str, Tensor]:
        """Return the activations ``(N, units)`` of one network, by layer; the last are the class probabilities."""
        seen: dict[str, Tensor] = {}
        hooks = [
            self.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
            for name in self.layers
        ]
        with torch.no_grad():
            self(x, network)
        for hook in hooks:
            hook.remove()
        return seen

    def all_outputs(self, x: Tensor) -> Tensor:
        """Return all outputs, ``(S, outputs, N)``, for ``x (S, inputs, N)``: samples last, as layers are narrow."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, weight, x) if self.task == "classes" else weight @ x
            if i + 1 < len(self.weights):
                x = self.activation(x)
        return x

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of each network, ``(S,)``; ``y (S, N)`` classes or ``(S, outputs, N)``."""
        outputs = self.all_outputs(x)
        if self.task == "teacher":
            return (outputs - y).square().mean((1, 2))
        return F.cross_entropy(outputs, y, reduction="none").mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.losses(x.movedim(0, -1), y.movedim(0, -1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.task == "teacher":
            return torch.optim.SGD(trained, self.lr)
        return torch.optim.Adam(trained, self.lr, fused=True)  # half of the time of a step
