"""Parameters sharded over processes by ``fully_shard`` (FSDP2): a replica has whole ones, gathered for the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lightning_info.gradients.copies import Copier, NotCopyable

LARGEST_WHOLE = 1 << 32
"""Sharded parameters of up to 4 GiB are gathered in every process."""
WholeParameters = dict[int, Tensor]
"""Gathered parameters, by the identity of the sharded ones."""
_STATE = "__composable_api"
"""First part of the names of attributes that hold what ``fully_shard`` knows of a module."""


def is_sharded(module: nn.Module) -> bool:
    """Tell whether no process has all of some parameter."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def bytes_of_whole(module: nn.Module) -> int:
    """Return the memory that the sharded parameters take when they are gathered."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if isinstance(p, DTensor))


def gathered(module: nn.Module) -> WholeParameters:
    """Gather the sharded parameters; every process of the run has to call it.

    Raises:
        NotCopyable: They take more than :data:`LARGEST_WHOLE`.
    """
    size = bytes_of_whole(module)
    if size > LARGEST_WHOLE:
        raise NotCopyable(
            f"its sharded parameters take {size / 2**30:.3g} GiB in each process when they are gathered, and up to "
            f"{LARGEST_WHOLE / 2**30:.3g} GiB are"
        )
    with torch.inference_mode(False), torch.no_grad():
        return {id(p): p.full_tensor() for p in module.parameters() if isinstance(p, DTensor)}


def unwrapped(module: nn.Module, copier: Copier) -> Callable[[], None]:
    """Make copies of modules that ``fully_shard`` wraps ones of the class that they had before.

    Args:
        module: The original.
        copier: With which it will be copied.

    Returns:
        Gives these copies their attributes; to be called before the module is copied.
    """
    parts = [part for part in module.modules() if _original_class(type(part)) is not type(part)]
    shells: list[Any] = [object.__new__(_original_class(type(part))) for part in parts]
    copier.memo.give({id(value): value for part in module.modules() for value in _meshes(part)})
    copier.memo.give({id(part): shell for part, shell in zip(parts, shells, strict=True)})

    def fill() -> None:
        for part, shell in zip(parts, shells, strict=True):
            kept = {name: value for name, value in vars(part).items() if not name.startswith(_STATE)}
            vars(shell).update(copier.copy(kept))

    return fill


def is_of_sharding(hook: Any) -> bool:
    """Tell whether a hook is one by which torch distributes a module."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")


def _meshes(part: nn.Module) -> list[Any]:
    return [value for value in vars(part).values() if isinstance(value, DeviceMesh)]


def _original_class(kind: type) -> type:
    """Return the class that ``fully_shard`` derives one of its own from."""
    bases = kind.__bases__
    return bases[1] if len(bases) > 1 and bases[0].__name__ == "FSDPModule" else kind
