"""What must agree as long as the twin follows the user's run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def same_weights(module: nn.Module, twin: nn.Module) -> bool:
    """Tell whether all parameters and buffers are equal bit for bit, except the sign of zeros; NaN equals NaN."""
    return all(equal(one, other) for one, other in zip(_tensors(module), _tensors(twin), strict=True))


def different_setting(trainer: Any, twin_trainer: Any) -> str | None:
    """Return the first setting that was changed in the user's run only; None if there is none."""
    ours = _settings(twin_trainer)
    for name, value in _settings(trainer).items():
        if ours.get(name) != value:
            return f"{name} is {value}, and {ours.get(name)} in the twin"
    return None


def fingerprint(module: nn.Module, optimizers: Iterable[Any]) -> dict[str, Any]:
    """Return a fingerprint that any edit of the weights or of the optimisers changes."""
    return {"the weights": sums_of_bits(_tensors(module)), "the optimisers": optimizer_state(optimizers)}


def optimizer_state(optimizers: Iterable[Any]) -> list[Any]:
    """Return all numbers of the optimisers' groups (rates, decays) and states, with the sums of bits of tensors."""
    held: list[Any] = []
    for optimizer in optimizers:
        held += [value for group in optimizer.param_groups for key, value in group.items() if key != "params"]
        held += optimizer.state.values()
    return [comparable(leaf) for leaf in pytree.tree_leaves(held)]


def comparable(value: Any) -> Any:
    """Return what distinguishes two values: the sum of the bits of a tensor, else its representation."""
    return sums_of_bits([value]) if isinstance(value, Tensor) else repr(value)


def sums_of_bits(tensors: Iterable[Tensor]) -> list[int]:
    """Return the sum of the bits of each tensor, which any edit of one number changes."""
    sums = []
    for tensor in map(Tensor.detach, tensors):
        numbers = tensor.coalesce().values() if tensor.is_sparse else tensor
        numbers = torch.view_as_real(numbers.resolve_conj()) if numbers.is_complex() else numbers
        bits = numbers.contiguous().reshape(-1).view(_INTEGER_OF_SIZE[numbers.element_size()])
        sums.append(bits.sum(dtype=torch.int64))
    return torch.stack([total.cpu() for total in sums]).tolist() if sums else []


_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _settings(trainer: Any) -> dict[str, Any]:
    module = trainer.lightning_module
    settings = {
        "the epoch": trainer.current_epoch,
        "the number of optimiser steps": trainer.global_step,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
    }
    settings.update((f"{path or 'the module'}.training", part.training) for path, part in module.named_modules())
    settings.update((f"{name}.requires_grad", p.requires_grad) for name, p in module.named_parameters())
    for number, optimizer in enumerate(trainer.optimizers):
        groups = [len(group["params"]) for group in optimizer.param_groups]
        settings[f"the number of parameters in the groups of optimiser {number}"] = groups
    return settings


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether all numbers are equal bit for bit, except the sign of zeros; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    if one.is_complex():
        return equal(torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj()))
    return one.is_floating_point() and bool(((one == other) | (one.isnan() & other.isnan())).all())
