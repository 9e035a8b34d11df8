"""Many networks of one architecture as one batched model: trained together they end where each would end alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm


class Ensemble:
    """M networks, whose weights are stacked: every tensor of ``parameters`` has M as its first axis.

    The sum of their losses has the gradient of each in its own slice, and optimisers that act on each weight alone
    (SGD, Adam, but not those that clip a norm) do to it what they would do to the network alone.

    Args:
        modules: The networks, of one architecture, in their initial state; they are not changed. Their buffers stay as
            they are: BatchNorm must not train.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self._template = deepcopy(modules[0])
        self.parameters, self.buffers = stack_module_state(list(modules))

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs ``(M, N, ...)`` of inputs ``(M, N, ...)``, those of each network."""
        return vmap(lambda p, b, x: functional_call(self._template, (p, b), (x,)))(self.parameters, self.buffers, x)

    def member(self, i: int) -> nn.Module:
        """Return a copy of one network."""
        module = deepcopy(self._template)
        state = {**self.parameters, **self.buffers}
        module.load_state_dict({name: value[i].detach() for name, value in state.items()}, strict=False)
        return module


def train(
    ensemble: Ensemble,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    title: str = "",
) -> None:
    """Train all networks of an ensemble.

    Args:
        ensemble: The networks.
        batches: A batch of each network for every step, ``(M, B, ...)`` each.
        loss: Mean loss of one network, from its outputs and targets ``(B, ...)``.
        optimiser: Optimiser of ``ensemble.parameters.values()``.
        title: Title of the progress bar; it has a length if ``batches`` has.
    """
    for x, y in tqdm(batches, desc=title, disable=not sys.stdout.isatty()):
        optimiser.zero_grad()
        vmap(loss)(ensemble(x), y).sum().backward()
        optimiser.step()
