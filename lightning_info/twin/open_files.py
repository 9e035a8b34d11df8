"""Files that the user's code keeps open, where a twin's writing could not be told from the run's."""

from __future__ import annotations

import functools
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from lightning_info.replica.blame import is_library

_MOST = 20_000  # objects to examine
_LONGEST = 1000  # entries of a container that are examined


def refuse_open_file(module: nn.Module, without: Callable[[str], bool]) -> str | None:
    """Return a file that is open for writing and within reach of what a twin runs; None if there is none.

    Globals, closures and defaults of the module's methods are searched, of the functions that these call, and of
    objects of the user's own classes that these use.

    Args:
        module: The user's module.
        without: Tells whether a method of this name is not run by a twin.
    """
    seen: set[int] = set()
    stack: list[tuple[str, str, Any]] = []
    for part in module.modules():
        for name, function in _methods(type(part)):
            if not without(name):
                stack.append((f"{type(part).__name__}.{name}", name, function))
    while stack and len(seen) < _MOST:
        method, name, value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        path = _written_file(value)
        if path is not None:
            return (
                f"{name}, within reach of {method}, is {path}, to which the twin would write too; open the file where "
                f'it is written, with open(..., "a"), or write in a callback with a class attribute '
                f"`changes_training = False`"
            )
        stack.extend((method, found, held) for found, held in _held(name, value))
    return None


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if not _is_of_library(base):
            for name, member in vars(base).items():
                yield name, getattr(member, "__func__", getattr(member, "fget", member))


def _held(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function, container or object leads to, by name."""
    if isinstance(value, FunctionType):
        yield from _used(value)
    elif isinstance(value, MethodType):
        yield from ((name, value.__func__), (name, value.__self__))
    elif isinstance(value, functools.partial):
        yield from ((name, held) for held in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, dict):
        yield from ((name, held) for held in list(value.values())[:_LONGEST])
    elif isinstance(value, (list, tuple, set)):
        yield from ((name, held) for held in list(value)[:_LONGEST])
    elif isinstance(value, type):
        yield from () if _is_of_library(value) else _methods(value)
    elif not isinstance(value, (ModuleType, Tensor, nn.Module)) and not _is_of_library(type(value)):
        yield from ((f"{name}.{key}", held) for key, held in getattr(value, "__dict__", {}).items())
        yield name, type(value)


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    if is_library(function.__code__.co_filename):
        return
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, ModuleType) and not is_library(str(getattr(value, "__file__", "<"))):
            yield from ((f"{name}.{key}", vars(value)[key]) for key in names & vars(value).keys())
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue
    yield from (("a default", value) for value in (function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _is_of_library(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return is_library(str(getattr(module, "__file__", None) or ("" if cls.__module__ == "__main__" else "<")))


def _written_file(value: Any) -> str | None:
    if type(value).__module__ == "_csv" and hasattr(value, "writerow"):
        return "a csv.writer"
    if not isinstance(value, io.IOBase):
        return None
    try:
        kept = not value.closed and value.writable() and stat.S_ISREG(os.fstat(value.fileno()).st_mode)
        is_standard = kept and value.fileno() <= 2
    except (OSError, ValueError):  # in memory
        return None
    return f"the open file {getattr(value, 'name', '')!r}" if kept and not is_standard else None
