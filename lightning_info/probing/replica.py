"""The replica: a module that computes what the user's computes, sees its weights, and can disturb nothing."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_info.gradients.graph import without_graph

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
_MEMBERS = ("_parameters", "_buffers", "_modules", "_trainer", "_fabric")
_HOOKS = tuple(name for name in vars(nn.Module()) if "_hooks" in name)


class NotCopyable(Exception):
    """A module cannot be copied; the message names the attribute."""


def replicate(module: nn.Module, *, private: bool = False, trainer: Any = None, stand_in: Any = None) -> nn.Module:
    """Copy a module for a measurement.

    Parameters share the storage of the originals (no memory, always up to date) but have gradients of their own;
    half-precision ones are upcast copies. Buffers are private copies. The user's hooks and the closures of
    ``torch.compile`` are left out; the hooks with which ``torch.nn.utils`` recomputes a weight (``weight_norm``,
    ``spectral_norm``, pruning) are kept. The copy is in eval mode.

    Args:
        module: The user's module.
        private: Copy the parameters too: the replica keeps today's weights, and may write to them.
        trainer: The trainer, which must not be copied where the module refers to it ...
        stand_in: ... and what stands in its place.

    Returns:
        The replica, at least float32.

    Raises:
        NotCopyable: An attribute of the module cannot be copied.
    """
    memo: dict[int, Any] = {id(trainer): stand_in} if trainer is not None else {}
    with torch.inference_mode(False), torch.no_grad():
        for parameter in module.parameters():
            if isinstance(parameter, nn.UninitializedParameter):
                raise NotCopyable("a lazy parameter is not initialised; run one batch through the module first")
            data = _at_least_float32(parameter.detach())
            if private and data.data_ptr() == parameter.data_ptr():
                data = data.clone()
            memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for buffer in module.buffers():
            memo[id(buffer)] = _at_least_float32(buffer.detach().clone())
        for original in module.modules():
            memo.update(_without_hooks(original))
        memo.update(without_graph(module))
        try:
            replica = copy.deepcopy(module, dict(memo))
        except Exception as error:
            raise NotCopyable(_name_culprit(module, memo, error)) from error
    for copied, parameter in zip(replica.parameters(), module.parameters(), strict=True):
        copied.requires_grad_(parameter.requires_grad)  # TorchScript copies its parameters by itself
    part: Any
    for part in replica.modules():
        if getattr(part, "_compiler_ctx", None) is not None:  # a compiled LightningModule: closures over the original
            part._compiler_ctx = None
            for name in _STEPS:
                vars(part).pop(name, None)
        vars(part).pop("_compiled_call_impl", None)  # module.compile()
        part.training = False
    _refuse_closures(module, replica)
    return replica


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _without_hooks(module: nn.Module) -> dict[int, Any]:
    """Memo entries that put emptied hook tables in the place of the module's."""
    entries: dict[int, Any] = {}
    for table in _HOOKS:
        hooks = vars(module).get(table)
        if isinstance(hooks, dict):
            kept = {key: hook for key, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils")}
            entries[id(hooks)] = OrderedDict(copy.deepcopy(kept)) if kept else OrderedDict()
    return entries


def _refuse_closures(module: nn.Module, replica: nn.Module) -> None:
    """Copies of functions and weak references still lead to the original, which a measurement would change."""
    originals = {id(part) for part in module.modules()}
    for path, part in replica.named_modules():
        members = {name: value for name, value in vars(part).items() if name not in _MEMBERS}
        for name, value in members.items():
            for leaf in pytree.tree_leaves(value):
                if any(id(held) in originals for held in _held(leaf)):
                    where = f"{path}.{name}" if path else name
                    raise NotCopyable(
                        f"attribute {where!r} of {type(module).__name__} is a function (or weak reference) that holds "
                        f"on to the original; make it a method"
                    )


def _held(value: Any) -> list[Any]:
    """What a function closes over, or a weak reference leads to."""
    if isinstance(value, weakref.ref):
        return [value()]
    if not isinstance(value, FunctionType):
        return []
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]


def _name_culprit(module: nn.Module, memo: dict[int, Any], error: Exception) -> str:
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in _MEMBERS:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as cause:
                where = f"{path}.{name}" if path else name
                owner = type(module).__name__
                return f"attribute {where!r} of {owner} cannot be copied ({cause}); leave it out in __getstate__"
    return f"{type(module).__name__} cannot be copied ({error})"
