"""The replica: a module that computes what the user's computes, sees its weights, and can disturb nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import has_large_frozen
from lightning_info.gradients.copies import Copier, NotCopyable, deep_copy, reachable
from lightning_info.replica.hooks import TABLES, keep_hooks
from lightning_info.replica.sharded import WholeParameters, gathered, is_sharded, unwrapped

__all__ = ["NotCopyable", "replicate"]

STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
_MEMBERS = ("_parameters", "_buffers", "_modules", "_trainer", "_fabric")
_HALF = (torch.float16, torch.bfloat16)


def replicate(
    module: nn.Module,
    *,
    private: bool = False,
    frozen_too: bool = True,
    trainer: Any = None,
    stand_in: Any = None,
    whole: WholeParameters | None = None,
) -> nn.Module:
    """Copy a module for a measurement.

    Parameters share the storage of the originals (no memory, always up to date) but have gradients of their own;
    half-precision ones are upcast copies. Buffers are private copies. Functions that the module holds close over
    copies, eager ones where ``torch.compile`` made them. Hooks that run in a forward pass are kept, see
    :func:`~.keep_hooks`; other hooks are left out, but for those with which ``torch.nn.utils`` recomputes a weight
    (``weight_norm``, ``spectral_norm``, pruning). The copy is in eval mode.

    Args:
        module: The user's module.
        private: Copy the parameters too: the replica keeps today's weights, and may write to them.
        frozen_too: Copy those that are not trained as well, even if they are many.
        trainer: The trainer, which must not be copied where the module refers to it ...
        stand_in: ... and what stands in its place.
        whole: Parameters in the place of sharded ones, see :func:`~.gathered`.

    Returns:
        The replica, at least float32.

    Raises:
        NotCopyable: An attribute of the module cannot be copied.
    """
    memo: dict[int, Any] = {id(trainer): stand_in} if trainer is not None else {}
    is_copied = _copied_storages(module, frozen_too) if private else set()
    with torch.inference_mode(False), torch.no_grad():
        for parameter in module.parameters():
            if isinstance(parameter, nn.UninitializedParameter):
                raise NotCopyable("a lazy parameter is not initialised; run one batch through the module first")
            is_half = parameter.dtype in _HALF
            value = (whole or {}).get(id(parameter), parameter.detach())
            own = private and (is_copied is None or _storage_of(parameter) in is_copied)
            data = value.float() if is_half else _by_storage(value, memo, own)
            memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        for buffer in module.buffers():
            data = _by_storage(buffer.detach(), memo, private=True)
            memo[id(buffer)] = data.float() if buffer.dtype in _HALF else data
        copier = Copier(memo)
        copier.detach_graphs(module)
        copier.memo.give(_no_hooks(module))
        fill = unwrapped(module, copier)
        try:
            fill()
            replica = copier.copy(module)
        except Exception as error:
            raise NotCopyable(name_culprit(module, dict(copier.memo), error)) from error
        keep_hooks(module, copier)
    for copied, parameter in zip(replica.parameters(), module.parameters(), strict=True):
        copied.requires_grad_(parameter.requires_grad)  # TorchScript copies its parameters by itself
    part: Any
    for part in replica.modules():
        if getattr(part, "_compiler_ctx", None) is not None:  # a compiled LightningModule: closures over the original
            part._compiler_ctx = None
            for name in STEPS:
                vars(part).pop(name, None)
        vars(part).pop("_compiled_call_impl", None)  # module.compile()
        part.training = False
    refuse_what_leads_back(module, replica)
    return replica


def with_whole_parameters(module: nn.Module, trainer: Any) -> nn.Module:
    """Return the module, or where parameters of it are sharded a replica that has whole ones, in all processes."""
    return replicate(module, trainer=trainer, whole=gathered(module)) if is_sharded(module) else module


def _copied_storages(module: nn.Module, frozen_too: bool) -> set[int] | None:
    """Return the storages of the parameters that a private replica copies; None for all."""
    if frozen_too or not has_large_frozen(module):
        return None
    return {_storage_of(p) for p in module.parameters() if p.requires_grad}


def _storage_of(tensor: Tensor) -> int:
    """Return an identity of a tensor's memory."""
    is_plain = tensor.layout == torch.strided and tensor.device.type != "meta"
    return tensor.untyped_storage()._cdata if is_plain else id(tensor)


def _by_storage(tensor: Tensor, memo: dict[Any, Any], private: bool) -> Tensor:
    """The tensor, or a copy; other tensors on its memory, as ``p.data``, will be on the same memory as this one."""
    if tensor.is_inference() or tensor.layout != torch.strided or tensor.device.type == "meta":
        return tensor.clone() if private else tensor
    if private:
        return copy.deepcopy(tensor, memo)
    storage = tensor.untyped_storage()
    memo.setdefault("torch", {})[storage._cdata] = storage
    return tensor


def _no_hooks(module: nn.Module) -> dict[int, Any]:
    """Memo entries that put empty hook tables in the place of the module's."""
    tables = [vars(part).get(name) for part in module.modules() for name in TABLES]
    return {id(table): OrderedDict() for table in tables if isinstance(table, dict)}


def refuse_what_leads_back(module: nn.Module, copied: nn.Module) -> None:
    """Weak references, and what a copy shares with the original, can lead to it, and a measurement would change it.

    Raises:
        NotCopyable: With the attribute.
    """
    originals = {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}
    seen = {id(part) for part in copied.modules()}
    for path, part in copied.named_modules():
        for name, value in vars(part).items():
            if name in _MEMBERS:
                continue
            for item in reachable([value], seen):
                if id(item) in originals:
                    where = f"{path}.{name}" if path else name
                    raise NotCopyable(
                        f"attribute {where!r} of {type(module).__name__} is a function (or weak reference) that holds "
                        f"on to the original; make it a method"
                    )


def name_culprit(module: nn.Module, memo: dict[int, Any], error: Exception) -> str:
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in _MEMBERS:
                continue
            try:
                deep_copy(value, dict(memo))
            except Exception as cause:
                where = f"{path}.{name}" if path else name
                owner = type(module).__name__
                return f"attribute {where!r} of {owner} cannot be copied ({cause}); leave it out in __getstate__"
    return f"{type(module).__name__} cannot be copied ({error})"
