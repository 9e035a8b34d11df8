"""Operator calls under ``torch.vmap``, tapped: each runs once, on the tensor that holds all samples.

The call goes through an ``autograd.Function`` whose ``vmap`` rule receives that tensor. Ordinary autograd records what
happens in the rule, so its output has an edge to tap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.layers.base import UNDER_VMAP, OnAllSamples, Operator, SampleAxes
from lightning_info.gradients.memory import LIMITS
from lightning_info.gradients.recorder import OperatorCall, Recorder
from lightning_info.gradients.taps import listed, tap

_REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_QUESTIONS = {_REQUIRES_GRAD, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.item, Tensor.tolist}
_NO_TENSOR = (int, float, str, torch.Size, torch.dtype, torch.device, type(None))


class OverBudget(NotCovered):
    """The copies of parameters take too much memory for so many samples."""


class Disagreement(NotCovered):
    """The module asks for values that decide what it does, and they differ between samples.

    Attributes:
        answers: ``(N, values)``.
    """

    def __init__(self, answers: Tensor) -> None:
        super().__init__("values that decide what the module does differ from sample to sample")
        self.answers = answers.cpu()


class Physical(torch.autograd.Function):
    """Calls a rule with N, the tensors that hold all samples and their sample axes; its output has them on axis 0."""

    @staticmethod
    def forward(anchor: Tensor, rule: OnAllSamples, *tensors: Tensor) -> Tensor:
        """Called where there is no sample axis."""
        raise NotCovered("a tapped call lies outside of the vmap over samples")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Asked for by torch.func."""

    @staticmethod
    def vmap(
        info: Any, in_dims: SampleAxes, anchor: Tensor, rule: OnAllSamples, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        """Called by ``torch.vmap`` in place of :meth:`forward`; the anchor has the sample axis for sure."""
        if in_dims[0] is None:
            raise NotCovered("the module uses torch.vmap itself")
        return rule(info.batch_size, in_dims[2:], tensors), 0


class VmapTaps(Recorder):
    """Taps the calls that rules fit, and gives all others copies of the parameters, one per sample.

    Args:
        parameters: All of them.
        copied: Names of those that must not be tapped.
        samples: N.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], copied: set[str], samples: int) -> None:
        super().__init__({name: p for name, p in parameters.items() if name not in copied})
        self.by_id = {id(p): name for name, p in parameters.items()}
        self.sizes = {name: p.numel() * p.element_size() for name, p in parameters.items()}
        self.samples = samples
        self.seen: set[str] = set()
        self.beside: set[str] = set()
        self.copies: dict[str, Tensor] = {}

    def enter(self, copies: dict[str, Tensor]) -> VmapTaps:
        """Take the copies as vmap hands them in."""
        self.copies = copies
        return self

    def tapped(self, call: OperatorCall) -> Tensor:
        """Tap the call where its weights are as the rule takes them."""
        func, args, kwargs, operator, names = call
        x, own = operator.inputs, (operator.weight, operator.bias)
        rows = operator.axes is None and not operator.is_unbatched  # axis 0 of a single sample
        # frozen weights have no sample axis; computed ones may have one
        known = all(p is None or id(p) in self.names or _is_frozen(p) for p in own)
        if not known:
            self.beside.update(names.values())
        if not known or any(p is x for p in own) or (rows and operator.key is None and len(x) > 1):
            plain: Tensor = self.other(func, args, kwargs)
            return plain

        def rule(samples: int, dims: SampleAxes, tensors: tuple[Tensor, ...]) -> Tensor:
            if any(dim is not None for dim in dims[1:]):
                raise NotCovered(f"the statistics next to {listed(names.values())} depend on the sample")
            (dim, *_), (inputs, *_) = dims, tensors
            inputs = inputs.expand(samples, *inputs.shape) if dim is None else inputs.movedim(dim, 0)
            flat, shape = _flatten(operator, inputs, rows)
            output = func(
                *(flat if value is x else value for value in args),
                **{key: flat if value is x else value for key, value in kwargs.items()},
            )
            if output._is_view():  # changed in place, it would get another node
                output = output.clone()
            operator.inputs = flat
            if output.requires_grad:
                self.taps.append(tap(operator, names, output))
            return _unflatten(output, shape)

        others = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and all(v is not o for o in (x, *own))]
        used: set[str] = set()
        carried = self._with_copies(x, used)
        self._note(used)
        return self._apply(rule, carried, *others)

    def other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call anything else, on the copies."""
        if func in _QUESTIONS:
            return self._ask(func, *args)
        if not torch.is_grad_enabled():
            return self._call(func, args, kwargs)
        used: set[str] = set()
        args = self._with_copies(args, used)
        result = self._call(func, args, {key: self._with_copies(value, used) for key, value in kwargs.items()})
        if not isinstance(result, _NO_TENSOR):
            self._note(used)
        return result

    def _with_copies(self, value: Any, used: set[str]) -> Any:
        if isinstance(value, Tensor):
            name = self.by_id.get(id(value))
            if name is None:
                return value
            used.add(name)
            return self.copies[name]
        if type(value) in (list, tuple):
            return type(value)([self._with_copies(item, used) for item in value])
        return value

    def _note(self, used: set[str]) -> None:
        if not used <= self.seen:
            self.seen |= used
            if self.samples > 1 and self.samples * self.bytes_per_sample > LIMITS.copies:
                raise OverBudget("the copies of parameters take too much memory for so many samples")

    @property
    def bytes_per_sample(self) -> int:
        """Of the copies that the module has used."""
        return sum(self.sizes[name] for name in self.seen)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        replacement = UNDER_VMAP.get(func)
        return func(*args, **kwargs) if replacement is None else replacement(self._apply, *args, **kwargs)

    def _ask(self, func: Callable[..., Any], tensor: Tensor, *args: Any) -> Any:
        """Answer what only values tell, where all samples give the same answer.

        What vmap shows of a tensor never requires a gradient, which would mislead code that asks for it.
        """
        answer: Any = None

        def rule(samples: int, dims: SampleAxes, tensors: tuple[Tensor, ...]) -> Tensor:
            nonlocal answer
            (value,) = tensors
            if dims[0] is not None and func != _REQUIRES_GRAD:
                value = value.detach().movedim(dims[0], 0)
                if samples > 1 and not (value == value[:1]).all():
                    raise Disagreement(value.flatten(1) if value.dim() > 1 else value.unsqueeze(1))
                value = value[0]
            answer = func(value, *args)
            return torch.empty(samples)

        self._apply(rule, tensor)
        return answer

    def _apply(self, rule: OnAllSamples, *tensors: Tensor) -> Tensor:
        anchor = next(iter(self.copies.values()))
        apply: Any = Physical.apply
        output: Tensor = apply(anchor, rule, *tensors)
        return output


def _is_frozen(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.Parameter) and not parameter.requires_grad


def _flatten(operator: Operator, inputs: Tensor, rows: bool) -> tuple[Tensor, tuple[int, ...]]:
    """All samples' rows in one axis, and the axes that this makes of axis 0."""
    end = 1 if rows else inputs.dim() - 2 if operator.layer.takes_matrix else 0
    return inputs.flatten(0, end), inputs.shape[: end + 1]


def _unflatten(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.view(*shape, *tensor.shape[1:])
