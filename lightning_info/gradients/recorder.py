"""Sees the torch functions that a forward pass calls, opens those that hide operators, and hands over the operators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.layers.base import FUSED, OPENED, Operator, read
from lightning_info.gradients.taps import Tap


class OperatorCall(NamedTuple):
    """A call of a known operator on parameters of the module.

    Attributes:
        func: What is called.
        args: With these.
        kwargs: And these.
        operator: What it computes.
        names: Of the parameters in its slots, ``"weight"`` and ``"bias"``.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operator: Operator
    names: dict[str, str]


class Recorder(TorchFunctionMode):
    """Records one tap per call of a known operator on parameters of the module.

    Args:
        parameters: The parameters to tap, by name.
    """

    fuses: ClassVar[bool] = False
    """Opens functions in their form for all samples at once."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in parameters.items()}
        self.taps: list[Tap] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        opened = FUSED.get(func) if self.fuses else None
        opened = OPENED.get(func) if opened is None else opened
        if opened is not None:
            with self:
                return opened(*args, **kwargs)
        operator = read(func, args, kwargs) if torch.is_grad_enabled() else None
        if operator is not None:
            slots = {"weight": operator.weight, "bias": operator.bias}
            names = {slot: self.names[id(p)] for slot, p in slots.items() if id(p) in self.names}
            if names and operator.refused:
                raise NotCovered(operator.refused)
            if names:
                return self.tapped(OperatorCall(func, args, kwargs, operator, names))
        return self.other(func, args, kwargs)

    @abstractmethod
    def tapped(self, call: OperatorCall) -> Tensor:
        """Call an operator on parameters of the module, and tap it."""

    def other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call anything else."""
        return func(*args, **kwargs)
