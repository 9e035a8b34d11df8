"""What the commands of ``python -m lightning_info`` share: names of objects, literal arguments, errors of one line."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from inspect import getmodule, isclass, isfunction, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_info.checkpoints import few
from lightning_info.gradients.contract import first_line

WORD = re.compile(r"[\w./~-][\w./~ -]*")
"""Pattern of a string value without quotes, which a shell removes."""


def imported(option: str, name: str) -> Any:
    """Return the object with a name.

    Args:
        option: The option that names it, for messages.
        name: ``package.module:Name`` or ``path/to/file.py:Name``; ``package.module.Name`` too.

    Raises:
        ValueError: It cannot be imported; the message says why and what to type.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon:
        source, _, attribute = name.rpartition(".")
    if not source or not attribute:
        raise ValueError(f"{option} {name} names no module; give package.module:Name or path/to/file.py:Name")
    try:
        module = _of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:
        raise ValueError(
            f"{option} {name}: {source} cannot be imported ({type(error).__name__}: {first_line(error)}); give "
            f"package.module:Name, seen from the present folder, or path/to/file.py:Name"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        own = [key for key, value in vars(module).items() if (isclass(value) or isfunction(value)) and key[0] != "_"]
        own = [key for key in own if getmodule(getattr(module, key)) is module]
        has = f"it has {few(own)}" if own else "it defines no class or function"
        raise ValueError(f"{option} {name}: there is no {attribute!r} in {source}; {has}") from error


def made(option: str, name: str, given: Iterable[str]) -> Any:
    """Call a class or a function, given by name, with arguments; return any other object of that name as it is.

    Raises:
        ValueError: There is no such object, or it fails.
    """
    return call(option, name, imported(option, name), arguments(option, given))


def call(option: str, name: str, function: Any, given: dict[str, Any]) -> Any:
    """Call a class or a function with arguments; return any other object as it is.

    Raises:
        ValueError: It fails, or takes other arguments.
    """
    if not (isclass(function) or isfunction(function)):
        return function
    try:
        signature(function).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"{option} {name}: {error}; it takes {_parameters(function)}, for example {option_of(option)} key=value"
        ) from error
    try:
        return function(**given)
    except Exception as error:
        raise ValueError(f"{option} {name} fails ({type(error).__name__}: {first_line(error)})") from error


def option_of(option: str) -> str:
    """Return the option for the arguments of the object that another option names."""
    return {"--module": "--init"}.get(option, f"{option}-init")


def arguments(option: str, given: Iterable[str]) -> dict[str, Any]:
    """Parse arguments in the form ``key=value``, whose values are Python literals or words.

    Raises:
        ValueError: One has another form.
    """
    found = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{option_of(option)} {one} is not key=value, for example {option_of(option)} width=64")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            if not WORD.fullmatch(text):
                raise ValueError(
                    f"{option_of(option)} {one}: {text} is not a literal; give a number, a word, or for example {key}="
                    f"'[64, 64]'"
                ) from error
            found[key] = text
    return found


def constructed(option: str, text: str, classes: dict[str, Any]) -> Any:
    """Build an object from a call such as ``Name(key="value")``, without running any other code.

    Args:
        option: The option that has the call, for messages.
        text: The call; a name alone is a call without arguments.
        classes: Classes that may be called, by name.

    Raises:
        ValueError: It is not such a call, or the class refuses the arguments.
    """
    try:
        node: ast.expr = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{option} {text} is not a call; give for example {next(iter(classes))}()") from error
    called = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(called.func, ast.Name):
        raise ValueError(f"{option} {text} is not a call of a callback; give for example {next(iter(classes))}()")
    name = called.func.id
    if name not in classes:
        raise ValueError(f"{option} {text}: unknown callback {name!r}; choose one of {', '.join(classes)}")
    try:
        positional = [ast.literal_eval(one) for one in called.args]
        named = {one.arg: ast.literal_eval(one.value) for one in called.keywords if one.arg}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{option} {text}: arguments are literals: numbers, strings, lists, True, None") from error
    if len(named) < len(called.keywords):
        raise ValueError(f"{option} {text}: arguments are given one by one, key=value, without **")
    try:
        signature(classes[name]).bind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"{option} {text}: {error}; it takes {_parameters(classes[name])}") from error
    return classes[name](*positional, **named)


def tensors(option: str, path: str) -> tuple[Tensor, ...]:
    """Return the tensors of a file that ``torch.save((x, y), path)`` wrote.

    Raises:
        ValueError: It holds something else.
        OSError: There is no such file.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{option} {path} cannot be read; write it with torch.save((x, y), {path!r})") from error
    if not isinstance(found, (tuple, list)) or not all(isinstance(part, Tensor) for part in found):
        raise ValueError(f"{option} {path} holds {type(found).__name__}; write it with torch.save((x, y), {path!r})")
    return tuple(found)


def one_line(error: Exception) -> str:
    """Return an error's message without the code that some hold, which is for Python."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {error.filename}"
    text = " ".join(str(error).partition("\n\n")[0].split())
    return f"{text} --likelihood, or --adapter package.module:function" if text.endswith("predicts:") else text


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # what stands beside it can be imported, as when it is run
        sys.path.insert(0, folder)
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path.resolve()):
            return known
        raise ImportError(f"another module is called {path.stem!r}; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # classes are looked up there, by pickle and dataclasses
    spec.loader.exec_module(module)
    return module


def _parameters(function: Any) -> str:
    names: Sequence[str] = list(signature(function).parameters)
    return ", ".join(names) if names else "no arguments"
