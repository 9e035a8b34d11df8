"""Noise that a ``training_step`` draws (latents, time steps of a diffusion, masks), fixed for each sample.

A sample's gradient must be a function of that sample alone, and the same in every pass. So what random operators of
PyTorch give along the sample axis is drawn for each sample by itself, seeded by the sample's own values and by the
number of the draw in the pass; what has no sample axis is seeded by the latter only, and so is what numpy and Python's
``random`` give. Which axis is that of the samples is told by two passes over different numbers of them.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_info.gradients.batches import take, tensors
from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.replica.blame import place_of
from lightning_info.replica.experiments import experiment
from lightning_info.replica.isolation import RandomStates, global_generators, seeded
from lightning_info.replica.predicted import NoPrediction
from lightning_info.replica.sample_keys import sample_keys

_LOW = {torch.float64: torch.float32, torch.complex128: torch.complex64}
"""In which precision numbers are drawn, so that a float64 copy of a module has the noise of the module."""
T = TypeVar("T")


class DrawsNoise(NoPrediction):
    """The module began to draw noise; from now on it is fixed, and the pass is to be made again."""


class SampleAxis(NamedTuple):
    """Where a draw has the samples: so many entries of an axis for each of them."""

    axis: int
    entries: int


@dataclass
class Noise:
    """What the passes of one callback draw.

    Attributes:
        seed: Of all of it.
        draws: The module draws noise; None as long as no pass was looked at.
        by_others: It also draws from numpy or Python's ``random``.
        axes: Of every draw in a pass, None for one that all samples share; None as long as it was not looked at.
    """

    seed: int = 0
    draws: bool | None = None
    by_others: bool = False
    axes: list[SampleAxis | None] | None = None
    _keys: list[int] | None = field(default=None, repr=False)

    @contextmanager
    def of(self, batch: Any) -> Iterator[None]:
        """Passes over other values of as many samples draw what this batch would."""
        self._keys = sample_keys(batch) if self.draws else None
        try:
            yield
        finally:
            self._keys = None

    def fixed(self, batch: Any, predict: Callable[[Any], T], has_drawn: Callable[[], bool] = lambda: False) -> T:
        """What a pass over a batch gives, at each sample's own noise.

        Args:
            batch: On the module's device.
            predict: Makes the pass.
            has_drawn: Whether the last one has drawn from generators of the module's own.

        Raises:
            DrawsNoise: A module draws that did not before.
            NoPrediction: The noise of a sample cannot be told from that of others.
            NotCovered: Under ``torch.func``, where it cannot be fixed.
        """
        if any(map(is_functorch_wrapped_tensor, tensors(batch))):
            if self.draws:
                raise NotCovered("it draws noise, which is not fixed for each sample under torch.func")
            return predict(batch)
        device = next((leaf.device for leaf in tensors(batch)), torch.device("cpu"))
        if not self.draws:
            states = RandomStates(device)
            try:
                result = predict(batch)
            except Exception:
                if not (any(states.moved()) or has_drawn()):
                    raise
            else:
                if not (any(states.moved()) or has_drawn()):
                    self.draws = False
                    return result
            states.restore()
            is_late, self.draws = self.draws is False, True
            if is_late:
                raise DrawsNoise("it draws noise where it did not before")
        if self.axes is None:
            self.axes = self._find_axes(batch, predict, device)
        result, _ = self._drawn(batch, predict, device)
        self.by_others |= has_drawn()
        return result

    def __str__(self) -> str:
        shared = sum(axis is None for axis in self.axes or ())
        parts = [
            f"the module draws noise also in eval mode; a sample's is drawn anew from seed {self.seed} and its own "
            f"values, the same in every pass and at every point, and all values are given that noise"
        ]
        if shared:
            parts.append(f"{shared} of {len(self.axes or ())} draws are one for all samples")
        if self.by_others:
            parts.append("what it draws from numpy or random is one for all samples")
        return "; ".join(parts)

    def _drawn(self, batch: Any, predict: Callable[[Any], T], device: torch.device) -> tuple[T, list[_Draw]]:
        with seeded(device, self.seed) as states:
            mode = _PerSample(self.seed, self._keys or sample_keys(batch), self.axes, device)
            with mode:
                result = predict(batch)
            self.by_others |= states.moved()[1]
        return result, mode.draws

    def _find_axes(self, batch: Any, predict: Callable[[Any], Any], device: torch.device) -> list[SampleAxis | None]:
        """By the shapes for two and for three samples; empty where such passes fail."""
        try:
            with experiment():
                copies = (take(batch, torch.zeros(size, dtype=torch.int64)) for size in (2, 3))
                two, three = (self._drawn(some, predict, device)[1] for some in copies)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, NotItsOwnNoise):
                raise
            return []
        if len(two) != len(three):
            raise NotItsOwnNoise(
                f"it draws noise sample by sample{(two or three)[0].place}, so that it depends on a sample's place in "
                f"its batch; draw it for all samples at once, or write an adapter"
            )
        return [_axis_of(*pair) for pair in zip(two, three, strict=True)]


class NotItsOwnNoise(NoPrediction):
    """What is drawn for a sample cannot be told from what is drawn for others; the message tells what to write."""


class _Draw(NamedTuple):
    shape: tuple[int, ...]
    numbers: tuple[int, ...]  # whole ones among the arguments
    is_order: bool
    place: str


def _axis_of(two: _Draw, three: _Draw) -> SampleAxis | None:
    if two.numbers != three.numbers:
        raise NotItsOwnNoise(_mixes(three))
    if two.shape == three.shape:
        return None
    differ = [axis for axis, pair in enumerate(zip(two.shape, three.shape, strict=False)) if pair[0] != pair[1]]
    axis = differ[0] if len(differ) == 1 and len(two.shape) == len(three.shape) else -1
    if axis < 0 or 3 * two.shape[axis] != 2 * three.shape[axis]:
        raise NotItsOwnNoise(
            f"it draws noise of shape {two.shape} for two samples and {three.shape} for three{three.place}, so that "
            f"none of it belongs to one sample; write an adapter"
        )
    if three.is_order:
        raise NotItsOwnNoise(_mixes(three))
    return SampleAxis(axis, two.shape[axis] // 2)


def _mixes(draw: _Draw) -> str:
    return (
        f"it draws numbers of samples of its batch{draw.place}, as mixup, CutMix and negatives do, so that what it "
        f"computes for a sample depends on the others. An adapter predicts for every sample by itself, without that"
    )


class _PerSample(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Random operators draw for every sample by itself.

    Args:
        seed: Of all draws.
        keys: Of the samples.
        axes: See :class:`Noise`; for draws without, the first axis as long as the samples are many is theirs.
        device: Of the batch.
    """

    def __init__(self, seed: int, keys: list[int], axes: list[SampleAxis | None] | None, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.keys, self.axes = seed, keys, axes
        self.draws: list[_Draw] = []
        self.generators = global_generators(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        args = tuple(None if isinstance(value, torch.Generator) else value for value in args)
        kwargs = kwargs | ({"generator": None} if "generator" in kwargs else {})
        before = [generator.get_state() for generator in self.generators]
        result = func(*args, **kwargs)
        states = zip(self.generators, before, strict=True)
        if all(torch.equal(generator.get_state(), state) for generator, state in states):
            return result  # dropout with p = 0, say
        first = result if isinstance(result, Tensor) else result[0]
        number, shape = len(self.draws), tuple(first.shape)
        place = place_of(sys._getframe(1)) if self.axes is None else ""  # for messages
        if _is_checkpointed():
            raise NotItsOwnNoise(f"it draws noise in a part that is checkpointed{place}, where it is drawn again later")
        numbers = tuple(value for value in args if isinstance(value, int) and not isinstance(value, bool))
        is_order = func.overloadpacket is torch.ops.aten.randperm
        self.draws.append(_Draw(shape, () if is_order else numbers, is_order, place))
        written = [argument.name for argument in func._schema.arguments if _is_written(argument)]
        if set(written) - {"self", "out"}:
            raise NotItsOwnNoise(f"it draws noise by {func}{place}, which cannot be fixed for each sample")
        at = None if is_order else self._axis(number, shape)
        if at is None:
            drawn = _one(func, args, kwargs, first, bool(written), self._seeding(number))
        else:
            parts = []
            for n, key in enumerate(self.keys):
                start = n * at.entries

                def cut(value: Any, start: int = start, at: SampleAxis = at) -> Any:
                    if isinstance(value, Tensor):
                        carries = value.dim() > at.axis and value.shape[at.axis] == shape[at.axis]
                        return value.narrow(at.axis, start, at.entries) if carries else value
                    is_size = isinstance(value, (list, tuple)) and tuple(value) == shape
                    return [*shape[: at.axis], at.entries, *shape[at.axis + 1 :]] if is_size else value

                few, named = tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}
                row = first.narrow(at.axis, start, at.entries)
                parts.append(_one(func, few, named, row, bool(written), self._seeding(number, key)))
            columns = [pytree.tree_leaves(part) for part in parts]
            whole = [torch.cat(column, at.axis) for column in zip(*columns, strict=True)]
            drawn = pytree.tree_unflatten(whole, pytree.tree_structure(parts[0]))
        if written:
            first.copy_(drawn if isinstance(drawn, Tensor) else drawn[0])
            return result
        return drawn

    def _axis(self, number: int, shape: tuple[int, ...]) -> SampleAxis | None:
        size = len(self.keys)
        if self.axes is not None and number < len(self.axes):
            at = self.axes[number]
            if at is None or (len(shape) > at.axis and shape[at.axis] == size * at.entries):
                return at
        return next((SampleAxis(axis, 1) for axis, length in enumerate(shape) if length == size), None)

    def _seeding(self, *numbers: int) -> Callable[[], None]:
        text = struct.pack(f"{len(numbers) + 1}q", self.seed % 2**63, *numbers)
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

        def start() -> None:
            for generator in self.generators:
                generator.manual_seed(seed)

        return start


def _one(func: Any, args: Any, kwargs: Any, like: Tensor, is_written: bool, start: Callable[[], None]) -> Any:
    """One draw from a seed, its result in the precision of a tensor but drawn in that of :data:`_LOW`."""

    def low(value: Any) -> Any:
        return value.to(_LOW.get(value.dtype, value.dtype)).contiguous() if isinstance(value, Tensor) else value

    args, kwargs = tuple(map(low, args)), {name: low(value) for name, value in kwargs.items()}
    if is_written and isinstance(args[0], Tensor):
        args = (args[0].clone(), *args[1:])
    if like.dtype in _LOW and any(argument.name == "dtype" for argument in func._schema.arguments):
        kwargs["dtype"] = _LOW[like.dtype]
    kwargs.pop("memory_format", None)
    start()
    drawn = func(*args, **kwargs)
    return pytree.tree_map(lambda part: part.to(like.dtype) if part.dtype in _LOW.values() else part, drawn)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _is_checkpointed() -> bool:
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and "checkpoint" in getattr(hooks[0], "__qualname__", "")
