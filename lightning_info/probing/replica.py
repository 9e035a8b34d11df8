"""The replica: a module that computes what the user's computes, sees its weights, and can disturb nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.graph import without_graph

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
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


def _name_culprit(module: nn.Module, memo: dict[int, Any], error: Exception) -> str:
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules", "_trainer", "_fabric"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as cause:
                where = f"{path}.{name}" if path else name
                owner = type(module).__name__
                return f"attribute {where!r} of {owner} cannot be copied ({cause}); leave it out in __getstate__"
    return f"{type(module).__name__} cannot be copied ({error})"
