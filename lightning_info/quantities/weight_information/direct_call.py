"""The module call that a prediction comes from, made directly, for passes at many weights over the same samples.

Finding out what a ``training_step`` predicts takes longer than a small network in it. If the prediction is the output
of one call, other weights need only that call and the loss of its outputs. The function may still be another one at
other weights: :meth:`DirectCalls.like` compares one pass with a whole one.

If no weight has more axes than a matrix, several draws of the weights run as one with ``torch.vmap``, in batched
products. Convolutions with other weights for each draw are slower batched than one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_info.gradients.contract import trainable
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import sizes
from lightning_info.quantities.weight_information.noisy_loss import moved
from lightning_info.replica.isolation import default_dtype_of
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.snapshot import ModelSnapshot

MOST_DRAWS = 16
"""Largest number of draws that run as one; more of them gain little."""
AT_ONCE = 1 << 20
"""Largest number of elements in the weights, or in the largest output of a module, over all draws that run as one."""

Run = Callable[[], Tensor]
"""Function that makes the call and returns the outputs, in the form of the prediction's."""
Body = Callable[["DirectCall", Run], dict[str, Tensor]]
"""Function that returns what is read of a pass."""


@dataclass
class DirectCall:
    """One call of a part of a replica, for one chunk of samples.

    Attributes:
        part: The module, or the replica itself.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        prediction: The prediction at the weights at which the call was found, without its graph.
        mask: See :attr:`Prediction.mask`.
        largest: Number of elements of the largest output of a module inside.
    """

    part: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    prediction: Prediction
    mask: Tensor | None
    largest: int

    @property
    def samples(self) -> int:
        """N."""
        return len(self.prediction.outputs)

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the summed loss of the samples, float64; NaN without targets."""
        if not self.prediction.has_loss:
            return torch.full((), math.nan, dtype=torch.float64, device=outputs.device)
        return self.prediction.summed_of(outputs, self.mask)

    def run(self, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Return the outputs, at the module's weights or at others, given by their names in :attr:`part`."""
        found: Tensor = (
            self.part(*self.args, **self.kwargs)
            if weights is None
            else torch.func.functional_call(self.part, weights, self.args, self.kwargs)
        )
        return found.reshape(self.prediction.outputs.shape)


def find_call(snapshot: ModelSnapshot, batch: Any) -> DirectCall | None:
    """Find the call that the prediction of a batch comes from; None if there is not just one, or a pass does more.

    Args:
        snapshot: A snapshot with a private replica.
        batch: The batch, on the replica's device.
    """
    module, predictor = snapshot.module, snapshot.predictor
    seen, saved = _Calls(), []

    def keep(tensor: Tensor) -> list[Tensor]:
        saved.append([tensor])
        return saved[-1]

    with seen.of(module), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept[0]):
        prediction = predictor(module, batch)
    mask = None if prediction.unknown else prediction.mask
    for tensors in saved:
        tensors.clear()
    if (
        predictor.noise.draws is not False
        or predictor.state.changed(module)
        or prediction.writes
        or prediction.unknown
        or len(seen.found) != 1
    ):
        return None
    ((part, args, kwargs, output),) = seen.found
    z = prediction.outputs.detach()
    if not isinstance(output, Tensor) or output.dtype != z.dtype or output.numel() != z.numel():
        return None
    if not torch.equal(output.detach().reshape(z.shape), z):
        return None
    return DirectCall(part, args, kwargs, prediction, mask, seen.largest)


class _Calls:
    """Outermost calls of modules with weights whose arguments depend on no weight."""

    def __init__(self) -> None:
        self.found: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []
        self.largest = 0
        self._versions: list[list[int]] = []

    def of(self, module: nn.Module) -> ExitStack:
        stack = ExitStack()
        for part in module.modules():
            if not isinstance(part, torch.jit.ScriptModule):
                stack.callback(part.register_forward_pre_hook(self._begins, with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(self._ends, with_kwargs=True, always_call=True).remove)
        return stack

    def _begins(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        self._versions.append([leaf._version for leaf in _leaves((args, kwargs))])

    def _ends(self, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = self._versions.pop()
        self.largest = max([self.largest, *(leaf.numel() for leaf in _leaves(output))])
        if self._versions or next(part.parameters(), None) is None:
            return
        given = _leaves((args, kwargs))
        is_fixed = not any(leaf.requires_grad for leaf in given) and [leaf._version for leaf in given] == before
        # two of them, so not just one
        self.found += [(part, args, kwargs, output)] * (1 if is_fixed else 2)


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass
class DirectCalls:
    """Passes over some samples by direct calls alone.

    Attributes:
        snapshot: The snapshot of their replica.
        calls: One call for each chunk of the samples.
        as_one: Number of draws of the weights that run as one; with 1, one after the other.
    """

    snapshot: ModelSnapshot
    calls: list[DirectCall]
    as_one: int

    @classmethod
    def like(
        cls,
        snapshot: ModelSnapshot,
        batches: Iterable[Any],
        noise: Tensor,
        body: Body,
        expected: Mapping[str, Tensor],
        most_draws: int | None = None,
    ) -> DirectCalls | None:
        """Return direct calls that give what whole passes gave; None if there are none.

        Args:
            snapshot: A snapshot with a private replica.
            batches: The samples in chunks, on the replica's device.
            noise: Noise on the weights in the whole passes, ``(k,)``.
            body: Returns what is read of a pass.
            expected: What was read of the whole passes, without the axis of the draws.
            most_draws: Largest number of draws that run as one; None: :data:`MOST_DRAWS`.
        """
        calls, most = [], MOST_DRAWS if most_draws is None else most_draws
        for batch in batches:
            call = find_call(snapshot, batch)
            if call is None:
                return None
            calls.append(call)
        for as_one in dict.fromkeys((_draws_as_one(snapshot, calls, most), 1)):
            found = cls(snapshot, calls, as_one)
            try:
                read = found.read(noise[None], body)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                continue
            if _agree(snapshot, {name: values[0] for name, values in read.items()}, expected):
                return found
        return None

    def read(self, noises: Tensor, body: Body) -> dict[str, Tensor]:
        """Return what is read of passes at some draws; samples of all chunks follow the axis of the draws.

        Args:
            noises: Noise ``(K, k)``, added to the weights of the replica.
            body: Returns what is read, with the samples of a chunk on the first axis.
        """
        with torch.no_grad(), default_dtype_of(self.snapshot.module):
            if self.as_one > 1:
                groups = torch.split(noises, self.as_one)
                return _joined([_joined([self._as_one(call, some, body) for call in self.calls], 1) for some in groups])
            draws = []
            for noise in noises:
                with moved(self.snapshot, noise):
                    draws.append(_joined([body(call, call.run) for call in self.calls]))
            return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def _as_one(self, call: DirectCall, noises: Tensor, body: Body) -> dict[str, Tensor]:
        parameters = list(trainable(self.snapshot.module).values())
        parts = dict(zip(map(id, parameters), torch.split(noises, sizes(parameters), 1), strict=True))
        weights = {
            name: (p.detach() + parts[id(p)].view(-1, *p.shape)).to(p.dtype)
            for name, p in call.part.named_parameters()
            if id(p) in parts
        }
        found: dict[str, Tensor] = torch.vmap(lambda own: body(call, lambda: call.run(own)))(weights)
        return found


def _joined(parts: list[dict[str, Tensor]], axis: int = 0) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts], axis) for name in parts[0]}


def _draws_as_one(snapshot: ModelSnapshot, calls: Sequence[DirectCall], most: int) -> int:
    parameters = list(trainable(snapshot.module).values())
    if any(p.dim() > 2 or not p.is_floating_point() for p in parameters):
        return 1
    largest = max(sum(p.numel() for p in parameters), *(call.largest for call in calls), 1)
    return max(1, min(most, AT_ONCE // largest))


def _agree(snapshot: ModelSnapshot, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Tell whether two passes agree within the rounding of the replica's precision."""
    dtypes = {p.dtype for p in snapshot.module.parameters() if p.is_floating_point()}
    share = 0.1 * max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0) ** 0.5
    return found.keys() == expected.keys() and all(_close(found[name], one, share) for name, one in expected.items())


def _close(one: Tensor, other: Tensor, share: float) -> bool:
    finite = other[other.isfinite()]
    largest = finite.abs().max().item() if len(finite) else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=share * largest, equal_nan=True)
