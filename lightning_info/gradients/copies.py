"""Deep copies that take functions along: what a function closes over is copied with the rest, by the same memo.

``copy.deepcopy`` hands on functions as they are, so that a closure over a module's parameters, or over a list of them,
would act on the original's. Tensors with a graph, which it refuses, are detached.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

T = TypeVar("T")

_LEAVES = (str, bytes, int, float, complex, type(None), type, ModuleType, CodeType, np.ndarray, torch.Generator)
_LOOKED_INTO = (Tensor, nn.Module, functools._lru_cache_wrapper)
"""What has a ``__deepcopy__`` and still leads on."""
_COMPILED = "_torchdynamo_orig_callable"
"""Attribute of a function that ``torch.compile`` made: the one it was made of."""


class NotCopyable(Exception):
    """A module cannot be copied; the message names the attribute."""


def deep_copy(value: T, memo: dict[int, Any] | None = None) -> T:
    """A deep copy with functions that hold on to the copy, eager ones where they are compiled.

    Args:
        value: What to copy.
        memo: What stands in the place of the objects with these identities.

    Raises:
        Exception: Whatever an object raises that cannot be copied.
    """
    copier = Copier(memo or {})
    copier.detach_graphs(value)
    return copier.copy(value)


class Copier:
    """Makes deep copies that share one memo.

    Args:
        memo: What stands in the place of the objects with these identities.
        eager: Put the function itself in the place of one that ``torch.compile`` made of it.
    """

    def __init__(self, memo: dict[int, Any], eager: bool = True) -> None:
        self.memo = _Memo(memo)
        self.eager = eager
        self._walked: set[int] = set()
        self._cells: dict[int, tuple[CellType, CellType]] = {}  # functions can share one, and write to it
        self._globals: dict[int, tuple[Any, dict[str, Any]]] = {}

    def copy(self, value: T) -> T:
        """A copy; one that fails leaves the memo as it was."""
        mark, cells = len(self.memo.made), dict(self._cells)
        try:
            result: T = self._own(copy.deepcopy(value, self.memo))
        except BaseException:
            self.memo.forget(mark)
            self._walked.clear()
            self._cells = cells
            raise
        return result

    def detach_graphs(self, value: Any) -> None:
        """Tensors with a graph that can be reached from here are detached copies from now on."""
        for item in reachable([value], set(self.memo)):
            if isinstance(item, Tensor) and (not item.is_leaf or is_functorch_wrapped_tensor(item)):
                self.memo.setdefault(id(item), _detached(item))

    def use_globals(self, function: FunctionType, instead: dict[str, Any]) -> None:
        """Copies of functions of the same file find these in the place of its global variables."""
        known = self._globals.setdefault(id(function.__globals__), (function.__globals__, {**function.__globals__}))
        known[1].update(instead)

    # ---- the functions in a copy

    def _own(self, value: Any) -> Any:
        """The value with functions of its own; what is no copy is left alone."""
        if isinstance(value, (_LEAVES, Tensor)):
            return value
        if isinstance(value, FunctionType):
            return value if id(value) in self.memo.copies else self._function(value)
        if isinstance(value, MethodType):
            function, owner = self._own(value.__func__), self._own(value.__self__)
            same = function is value.__func__ and owner is value.__self__
            return value if same else MethodType(function, owner)
        if isinstance(value, (BuiltinMethodType, MethodWrapperType)):
            return self._builtin(value)
        if type(value) in (tuple, frozenset) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            items = [self._own(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if id(value) in self.memo.copies and id(value) not in self._walked:
            self._walked.add(id(value))
            self._walk(value)
        return value

    def _walk(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            keywords = {name: self._own(item) for name, item in value.keywords.items()}
            value.__setstate__((self._own(value.func), self._own(value.args), keywords, vars(value)))  # type: ignore
        elif isinstance(value, dict):
            self._walk_items(value, list(value.items()), dict.__setitem__)
        elif isinstance(value, list):
            self._walk_items(value, list(enumerate(value)), list.__setitem__)
        elif isinstance(value, deque):
            self._walk_items(value, list(enumerate(value)), deque.__setitem__)
        elif isinstance(value, set):
            items = [self._own(item) for item in value]
            value.clear()
            value.update(items)
        attributes = _attributes(value)
        self._walk_items(attributes, list(attributes.items()), lambda _, name, item: vars(value).update({name: item}))
        slots = [(name, getattr(value, name)) for name in _slots(value)]
        self._walk_items(value, slots, object.__setattr__)

    def _walk_items(self, owner: Any, items: list[tuple[Any, Any]], put: Callable[[Any, Any, Any], None]) -> None:
        for key, old in items:
            new = self._own(old)
            if new is not old:
                put(owner, key, new)

    def _function(self, old: FunctionType) -> Any:
        if id(old) in self.memo:
            return self.memo[id(old)]
        compiled = vars(old).get(_COMPILED)
        if compiled is not None:
            return self.copy(compiled) if self.eager else old
        namespace = self._globals.get(id(old.__globals__), (None, old.__globals__))[1]
        if namespace is old.__globals__ and (_is_opaque(old) or next(iter(held(old)), self) is self):
            return old
        pairs = [self._cells.setdefault(id(cell), (cell, CellType())) for cell in old.__closure__ or ()]
        new = FunctionType(old.__code__, namespace, old.__name__, None, tuple(cell for _, cell in pairs) or None)
        self.memo[id(old)] = new
        new.__defaults__, new.__kwdefaults__ = self.copy(old.__defaults__), self.copy(old.__kwdefaults__)
        new.__qualname__, new.__module__, new.__doc__ = old.__qualname__, old.__module__, old.__doc__
        new.__annotations__ = old.__annotations__
        for source, cell in pairs:
            if _is_empty(cell) and not _is_empty(source):
                cell.cell_contents = self.copy(source.cell_contents)
        vars(new).update(self.copy(vars(old)))
        # a cell's number can be bound anew by the function (nonlocal), a default's cannot
        bound = all(isinstance(content, (type, ModuleType, FunctionType)) for content in _contents(old))
        if bound and namespace is old.__globals__ and all(a is b for a, b in zip(held(new), held(old), strict=True)):
            self.memo[id(old)] = old
        return self.memo[id(old)]

    def _builtin(self, old: Any) -> Any:
        owner = old.__self__
        if owner is None or isinstance(owner, (type, ModuleType)):
            return old
        new = self.copy(owner)
        return old if new is owner else getattr(new, old.__name__)


class _Memo(dict[Any, Any]):
    """A memo of ``copy.deepcopy`` that knows the copies, and gives them for themselves."""

    def __init__(self, given: dict[int, Any]) -> None:
        super().__init__()
        self.give(given)
        self.copies: set[int] = set()
        self.made: list[Any] = []

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.made.append(key)
        if id(value) not in self:
            super().__setitem__(id(value), value)
            self.copies.add(id(value))
            self.made.append(id(value))

    def give(self, entries: dict[int, Any]) -> None:
        """Further objects that stand in the place of others."""
        super().update({**entries, **{id(value): value for value in entries.values()}})

    def forget(self, mark: int) -> None:
        """All that was made after so many entries."""
        for key in self.made[mark:]:
            self.copies.discard(key)
            self.pop(key, None)
        del self.made[mark:]


def held(value: Any) -> Iterable[Any]:
    """What an object holds on to directly; of a function what it closes over and its defaults."""
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        return (*value.keys(), *value.values())
    if kind in (list, tuple, set):
        return list(value)
    return _held(value)


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, FunctionType) and _COMPILED in vars(value):
        yield vars(value)[_COMPILED]
    elif isinstance(value, _LEAVES) or _is_opaque(value):
        return
    elif isinstance(value, FunctionType):
        yield from _contents(value)
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, (BuiltinMethodType, MethodWrapperType)):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif isinstance(value, (weakref.WeakValueDictionary, weakref.WeakKeyDictionary, dict)):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque, weakref.WeakSet)):
        yield from list(value)
    elif not isinstance(value, _LOOKED_INTO) and hasattr(type(value), "__deepcopy__"):
        return  # it takes care of itself
    yield from _attributes(value).values()
    yield from (getattr(value, name) for name in _slots(value))


def reachable(values: Iterable[Any], seen: set[int]) -> Iterable[Any]:
    """All that can be reached from some objects, but numbers and the like, each once, nearest first.

    Args:
        values: The objects.
        seen: Identities of objects through which not to go; those that are passed are added.
    """
    waiting = deque(values)
    while waiting:
        item = waiting.popleft()
        if not isinstance(item, _LEAVES) and id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting.extend(held(item))


def _detached(tensor: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(tensor):  # kept from a pass under torch.vmap
        tensor = get_unwrapped(tensor)
    return tensor.detach().clone()


def _is_opaque(value: Any) -> bool:
    """What torch.compile works with."""
    module = value.__module__ if isinstance(value, FunctionType) else type(value).__module__
    compiler = (module or "").startswith("torch._dynamo") and not isinstance(value, nn.Module)
    return compiler or isinstance(value, torch.jit.ScriptModule)


def _attributes(value: Any) -> dict[str, Any]:
    """An object's own, but for what leads from a LightningModule to all of the run."""
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    if isinstance(value, nn.Module) and type(value).__module__.startswith("torch._dynamo"):
        return value._modules  # the rest leads through the compiler
    if isinstance(value, nn.Module):
        return {name: item for name, item in attributes.items() if name not in ("_trainer", "_fabric")}
    return attributes


def _slots(value: Any) -> list[str]:
    kind: Any = type(value)
    return [name for name in _slot_names(kind) if hasattr(value, name)]


@functools.cache
def _slot_names(cls: type) -> list[str]:
    slots = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else tuple(some))]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _contents(function: FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]


def _is_empty(cell: CellType) -> bool:
    return cell == CellType()
