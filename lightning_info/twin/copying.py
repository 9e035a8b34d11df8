"""Copies with which the twin works, so nothing it does reaches the user's run."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_info.gradients.copies import Copier
from lightning_info.gradients.sample_objects import deep_mapped
from lightning_info.replica.replicate import STEPS, NotCopyable, name_culprit, refuse_what_leads_back

LARGE = 1 << 20
"""Size in bytes above which an array of a data set is shared: it is data, not the state of a generator or counter."""


def copy_module(module: Any, trainer: Any) -> Any:
    """Return a LightningModule that trains as the user's will from here on, on its own weights.

    Args:
        module: The user's module.
        trainer: Its trainer, which is left out.

    Raises:
        NotCopyable: An attribute cannot be copied; the message names it.
    """
    for path, part in module.named_modules():
        if vars(part).get("_compiled_call_impl") is not None:
            raise NotCopyable(f"{path or 'the module'} is compiled in place; compile it with torch.compile(module)")
    for path, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise NotCopyable(f"the lazy parameter {path!r} is not initialised; run one batch through the module first")
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise NotCopyable(f"parameter {path!r} has a hook, which no copy keeps; do in training_step what it does")
    compiled = [getattr(part, "_compiler_ctx", None) for part in module.modules()]
    memo: dict[int, Any] = {id(trainer): None}
    memo.update({id(context): None for context in compiled if context is not None})
    copier = Copier(memo, eager=False)
    copier.detach_graphs(module)
    try:
        twin = copier.copy(module)
    except Exception as error:
        raise NotCopyable(name_culprit(module, dict(copier.memo), error)) from error
    _renew_identities(twin, copier.memo)
    for part, context in zip(twin.modules(), compiled, strict=True):
        if context is not None:  # its compiled steps lead to the original
            for name in STEPS:
                vars(part).pop(name, None)
                vars(part)[name] = context["dynamo_ctx"](getattr(part, name))
    refuse_what_leads_back(module, twin)
    return twin


def _renew_identities(twin: Any, copies: dict[int, Any]) -> None:
    """Replace the ``id`` of parts by that of their copies where the module keeps it (as for Lightning's metrics)."""

    def renewed(key: Any) -> Any:
        return id(copies[key]) if type(key) is int and key in copies else key

    for part in twin.modules():
        if "_current_fx_name" in vars(part):
            part._current_fx_name = None  # the hook in which it was copied
        for value in vars(part).values():
            if type(value) in (dict, OrderedDict) and any(renewed(key) != key for key in value):
                items = [(renewed(key), item) for key, item in value.items()]
                value.clear()
                value.update(items)
            elif type(value) is set and any(renewed(key) != key for key in value):
                keys = list(map(renewed, value))
                value.clear()
                value.update(keys)


def copy_batch(batch: Any) -> Any:
    """Return a batch with its own tensors; only the visible part of views is copied."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    memo = {id(leaf): leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves}
    return copy.deepcopy(batch, memo)


def tensors_of(batch: Any) -> list[Tensor]:
    """Return all tensors of a batch, whatever objects hold them."""
    leaves: list[Tensor] = []

    def collect(leaf: Tensor) -> Tensor:
        leaves.append(leaf)
        return leaf

    deep_mapped(batch, collect)
    return leaves


def copy_datamodule(datamodule: Any, instead: dict[int, Any]) -> Any:
    """Return a copy of a datamodule, for hooks of the twin that ask for it; its large arrays are shared.

    Args:
        datamodule: The user's, or None.
        instead: See :func:`copy_data`.

    Raises:
        NotCopyable: The datamodule cannot be copied.
    """
    try:
        return copy_data(datamodule, instead)
    except Exception as error:
        name = type(datamodule).__name__
        raise NotCopyable(f"{name} cannot be copied ({error}); leave out in __getstate__ what cannot be") from error


def copy_data(value: Any, instead: dict[int, Any]) -> Any:
    """Return a copy of what draws samples (a data set, a collate function), with its own generators and counters.

    Large arrays are shared, as they are only read.

    Args:
        value: Object to copy.
        instead: Replacements of the objects with these identities.
    """
    memo, stack, seen = dict(instead), [value], set(instead)
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type, ModuleType, type(None))):
            continue
        seen.add(id(item))
        if isinstance(item, (Tensor, np.ndarray)):
            if item.nbytes > LARGE:
                memo[id(item)] = item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            stack.extend(item)
        elif isinstance(item, MethodType):
            stack.append(item.__self__)
        else:
            stack.extend(getattr(item, "__dict__", {}).values())
    with torch.no_grad():
        return copy.deepcopy(value, memo)
