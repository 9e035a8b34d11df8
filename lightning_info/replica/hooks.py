"""The user's forward hooks on a replica: they compute there what they compute in training, and act on copies only."""

from __future__ import annotations

import dis
from collections.abc import Callable
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_info.gradients.copies import Copier, NotCopyable, held
from lightning_info.replica.sharded import is_of_sharding
from lightning_info.replica.stand_in_trainer import Silent

TABLES = tuple(name for name in vars(nn.Module()) if "_hooks" in name)
_CALLED = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
"""Tables of hooks that run in a forward pass, and the tables of what they are called with."""
_WATCH = {
    *("aim", "clearml", "comet_ml", "fvcore", "mlflow", "neptune", "ptflops", "thop", "torchinfo", "torchsummary"),
    "wandb",
}
"""Packages whose hooks only watch, and write down what they see outside the module."""
_LIBRARIES = ("functools", "lightning", "numpy", "pytorch_lightning", "torch", "torchmetrics")
_NO_STATE = (type, ModuleType, FunctionType, BuiltinFunctionType, str, bytes, int, float, complex, type(None))


def keep_hooks(module: nn.Module, copier: Copier) -> None:
    """Give a replica copies of the hooks that run in a forward pass, and of those of ``torch.nn.utils``.

    A hook's closure, its owner, and the global variables that no code of the module uses, are copies. What of them
    cannot be copied is silent; such a hook may watch, but not compute.

    Args:
        module: The original.
        copier: With which it was copied, without hooks.

    Raises:
        NotCopyable: A hook cannot be copied.
    """
    pairs = [(path, part, copier.memo.get(id(part))) for path, part in module.named_modules()]
    found = [
        (path, table, key, hook, part, copied)
        for path, part, copied in pairs
        if copied is not None
        for table in TABLES
        for key, hook in (vars(part).get(table) or {}).items()
        if callable(hook)
        and not is_of_sharding(hook)
        and (_is_of_torch(hook) or (table in _CALLED and not _watches(hook)))
    ]
    silent = _shield(module, [hook for *_, hook, _, _ in found], copier)
    for path, table, key, hook, part, copied in found:
        name = f"{getattr(hook, '__qualname__', type(hook).__name__)!r} of {path or type(module).__name__}"
        own, is_whole = _copied(hook, copier, name)
        if not is_whole or silent & set(map(id, _functions(hook))):
            own = _OnlyWatching(own, name)
        vars(copied)[table][key] = own
        for flags in _CALLED.get(table, ()):
            if key in vars(part)[flags]:
                vars(copied)[flags][key] = True


class _OnlyWatching:
    """A hook that works with stand-ins for what cannot be copied."""

    def __init__(self, hook: Callable[..., Any], name: str) -> None:
        self.hook, self.name = hook, name

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call it.

        Raises:
            NotCopyable: It computes something.
        """
        seen = [leaf for leaf in pytree.tree_leaves((args[1:], kwargs)) if isinstance(leaf, Tensor)]
        before = [tensor._version for tensor in seen]
        result = self.hook(*args, **kwargs)
        if not isinstance(result, (Silent, type(None))) or [tensor._version for tensor in seen] != before:
            raise NotCopyable(
                f"the hook {self.name} changes what the module computes and works with what cannot be copied (a file, "
                f"a lock, a logger); make it a method of the module, or leave that out in __getstate__ of its owner"
            )


def _copied(hook: Any, copier: Copier, name: str) -> tuple[Any, bool]:
    """A copy, and whether all of it could be copied."""
    try:
        return copier.copy(hook), True
    except Exception:
        _silence(hook, copier, 0)
    try:
        return copier.copy(hook), False
    except Exception as error:
        raise NotCopyable(f"the hook {name} cannot be copied ({error}); make it a method of the module") from error


def _silence(value: Any, copier: Copier, depth: int) -> None:
    """Put stand-ins in the place of what cannot be copied: objects that a function holds, or their attributes."""
    for item in held(value):
        if _copies(item, copier):
            continue
        is_function = isinstance(item, (FunctionType, MethodType, partial))
        if is_function or depth == 0:
            _silence(item, copier, depth + (not is_function))
        if not _copies(item, copier):
            copier.memo.give({id(item): Silent()})


def _copies(item: Any, copier: Copier) -> bool:
    try:
        copier.copy(item)
    except Exception:
        return False
    return True


# ---- global variables


def _shield(module: nn.Module, hooks: list[Any], copier: Copier) -> set[int]:
    """Copy the global variables that only hooks use; gives the functions in which some of them are silent."""
    functions = {id(f): f for hook in hooks for f in _functions(hook) if not _is_of_library(f)}
    own_code = {function.__code__ for function in functions.values()}
    classes = {cls for part in module.modules() for cls in type(part).__mro__}
    members = [m for cls in classes for name, m in vars(cls).items() if name != "__init__"]
    methods = [method for method in map(_unwrapped, members) if method is not None and method.__code__ not in own_code]
    silent = set()
    for function in functions.values():
        space = function.__globals__
        used, helpers = _state(function, set())
        elsewhere = {name for m in methods if m.__globals__ is space for name in _state(m, own_code)[0]}
        if not used or any(name in elsewhere and id(space[name]) not in copier.memo for name in used):
            continue
        copier.detach_graphs([space[name] for name in used])
        for name in used:
            try:
                copier.use_globals(function, {name: copier.copy(space[name])})
            except Exception:
                copier.use_globals(function, {name: Silent()})
                silent.add(id(function))
        copier.use_globals(function, {name: copier.copy(helper) for name, helper in helpers.items()})
    return silent


def _state(function: FunctionType, but: set[CodeType]) -> tuple[set[str], dict[str, FunctionType]]:
    """Global variables of a file that a function uses, also through other functions of it; and these functions.

    Args:
        function: The function.
        but: Code, of functions that it makes, which is passed over.
    """
    space, used, helpers = function.__globals__, set(), dict[str, FunctionType]()
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [part for part in code.co_consts if isinstance(part, CodeType) and part not in but]
        for name, is_stored in _globals(code):
            value = space.get(name)
            if isinstance(value, FunctionType) and value.__globals__ is space:
                if name not in helpers:
                    helpers[name] = value
                    waiting.append(value.__code__)
            elif name in space and (is_stored or not isinstance(value, _NO_STATE)):
                used.add(name)
    return used, helpers


@cache
def _globals(code: CodeType) -> list[tuple[str, bool]]:
    """Names, and whether they are bound anew."""
    return [
        (instruction.argval, instruction.opname != "LOAD_GLOBAL")
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")
    ]


def _is_of_library(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__")).partition(".")[0] in _LIBRARIES


def _functions(hook: Any) -> list[FunctionType]:
    """Those that a hook is made of: itself, what it wraps, and what it closes over."""
    found, waiting = [], [hook]
    while waiting:
        item = waiting.pop()
        if isinstance(item, FunctionType) and item not in found:
            found.append(item)
        if isinstance(item, (FunctionType, MethodType, partial)):
            waiting.extend(part for part in held(item) if isinstance(part, (FunctionType, MethodType, partial)))
    return found


def _unwrapped(member: Any) -> FunctionType | None:
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return member if isinstance(member, FunctionType) else None


def _is_of_torch(hook: Any) -> bool:
    """One with which ``torch.nn.utils`` recomputes a weight."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _watches(hook: Any) -> bool:
    """By the package that it comes from."""
    while isinstance(hook, partial):
        hook = hook.func
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).partition(".")[0] in _WATCH
