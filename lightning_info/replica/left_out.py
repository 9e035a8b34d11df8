"""Calls that only save, print or log: in a thread that is guarded they go nowhere, and whoever called them goes on.

They are replaced at the place that all callers come through, whatever name they imported, and only while guarded code
runs; any other thread comes through to the original.
"""

from __future__ import annotations

import builtins
import functools
import io
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import IO, Any

import torch

from lightning_info.replica.side_effects import Guard, acting, by_machinery

_Call = Callable[..., Any]
_Instead = Callable[[Guard, _Call], _Call]


@contextmanager
def saves_left_out() -> Iterator[None]:
    """What guarded threads save, print and log inside goes nowhere."""
    with ExitStack() as stack:
        for owner, name, instead in _replacements():
            stack.enter_context(_replaced(owner, name, _of_guarded_threads(getattr(owner, name), instead)))
        if sys.stdout is not None:
            stack.enter_context(_replaced(sys, "stdout", _Stdout(sys.stdout)))
        yield


def _replacements() -> Iterator[tuple[Any, str, _Instead]]:
    yield builtins, "open", _open
    yield io, "open", _open
    yield torch._C, "PyTorchFileWriter", _archive
    yield torch._C.ScriptModule, "save", functools.partial(_to_path, "torch.jit.save", 1)
    yield torch._C.ScriptFunction, "save", functools.partial(_to_path, "torch.jit.save", 1)
    for module, owner, name, instead in _OF_OTHERS:
        found = sys.modules.get(module)
        found = getattr(found, owner, None) if owner else found
        if found is not None and name in vars(found):
            yield found, name, instead
    yield logging.Logger, "handle", _if_mute
    for elsewhere, name in (
        (Thread, "start"), (BaseProcess, "start"), (ThreadPoolExecutor, "submit"), (ProcessPoolExecutor, "submit"),
    ):  # fmt: skip
        yield elsewhere, name, functools.partial(_refused, "hand work to another thread or process")
    for name in ("_exit", "abort"):
        yield os, name, functools.partial(_refused, "end the process")
    yield signal, "raise_signal", functools.partial(_refused, "send a signal to the process")


def _open(guard: Guard, original: _Call) -> _Call:
    def opened(file: Any, mode: str = "r", *args: Any, opener: Any = None, **kwargs: Any) -> Any:
        is_path, letters = isinstance(file, (str, bytes, os.PathLike)), set(mode) - set("bt")
        saves = is_path and letters & set("wax") and letters != set("a+")  # the last reads what is there too
        if not saves or opener is not None or not guard.leaves_out(file, "a file opened for writing"):
            return original(file, mode, *args, opener=opener, **kwargs)
        file = _Withheld(file, "".join(letters) + "b")
        names = ("buffering", "encoding", "errors", "newline")
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        text = {name: options[name] for name in names[1:] if name in options}
        return file if "b" in mode else io.TextIOWrapper(file, **text, write_through=True)

    return opened


def _archive(guard: Guard, original: _Call) -> _Call:
    def writer(file: Any, *args: Any, **kwargs: Any) -> Any:
        is_path = isinstance(file, (str, bytes, os.PathLike))
        return original(_Nowhere() if is_path and guard.leaves_out(file, "torch.save") else file, *args, **kwargs)

    return writer


def _to_path(what: str, position: int, guard: Guard, original: _Call) -> _Call:
    """For a call that does nothing but write to the path in one of its arguments."""

    def save(*args: Any, **kwargs: Any) -> Any:
        path = args[position] if len(args) > position else kwargs.get("filename", kwargs.get("f"))
        return None if path is not None and guard.leaves_out(path, what) else original(*args, **kwargs)

    return save


def _reads(guard: Guard, original: _Call) -> _Call:
    def read(file: Any, *args: Any, **kwargs: Any) -> Any:
        guard.reads(file)
        return original(file, *args, **kwargs)

    return read


def _h5py(guard: Guard, original: _Call) -> _Call:
    def init(self: Any, name: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode != "r" and isinstance(name, (str, bytes, os.PathLike)):
            guard.refuse(f"write to {os.fsdecode(name)!r}")
        return original(self, name, mode, *args, **kwargs)

    return init


def _nothing(guard: Guard, original: _Call) -> _Call:
    return lambda *args, **kwargs: None


def _if_mute(guard: Guard, original: _Call) -> _Call:
    return _nothing(guard, original) if guard.is_mute else original


def _refused(what: str, guard: Guard, original: _Call) -> _Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not by_machinery():
            guard.refuse(what)
        return original(*args, **kwargs)

    return call


_OF_OTHERS: tuple[tuple[str, str, str, _Instead], ...] = (
    ("safetensors.torch", "", "serialize_file", functools.partial(_to_path, "safetensors", 1)),
    ("safetensors.numpy", "", "serialize_file", functools.partial(_to_path, "safetensors", 1)),
    ("safetensors.torch", "", "safe_open", _reads),
    ("safetensors.numpy", "", "safe_open", _reads),
    ("h5py", "File", "__init__", _h5py),
    ("tensorboard.summary.writer.event_file_writer", "EventFileWriter", "add_event", _nothing),
    ("tensorboardX.event_file_writer", "EventFileWriter", "add_event", _nothing),
    ("wandb.sdk.wandb_run", "Run", "_log", _nothing),
)
"""Module, class or nothing, name: what writes to files or loggers in other ways than through Python's ``open``."""


def _of_guarded_threads(original: _Call, instead: _Instead) -> _Call:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        guard = acting()
        return (original if guard is None else instead(guard, original))(*args, **kwargs)

    return call


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = vars(owner)[name]  # unbound, as the class keeps it
    setattr(owner, name, value)
    try:
        yield
    finally:
        if vars(owner)[name] is value:  # else someone else replaced it, and keeps what was there
            setattr(owner, name, original)


class _Withheld(io.BufferedIOBase):
    """A file that guarded threads write to in vain; kept where the run finds it too, it is for the run what it asks.

    Unbuffered, as nothing may wait here until another thread writes.
    """

    def __init__(self, path: Any, mode: str) -> None:
        self.name, self.mode, self._path = path, mode, os.path.abspath(path)
        self._vain: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this)
        self._real: IO[bytes] | None = None

    @property
    def _file(self) -> Any:
        if acting() is not None:
            return self._vain
        if self._real is None:
            self._real = open(self._path, self.mode, buffering=0)  # noqa: SIM115 (closed with this)
        return self._real

    def readable(self) -> bool:
        return "+" in self.mode

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._file.write(data))

    def readinto(self, buffer: Any) -> int:
        return int(self._file.readinto(buffer))

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self._file.read(-1 if size is None else size))

    def seek(self, *position: int) -> int:
        return int(self._file.seek(*position))

    def tell(self) -> int:
        return int(self._file.tell())

    def truncate(self, size: int | None = None) -> int:
        return int(self._file.truncate(size))

    def fileno(self) -> int:
        return int(self._file.fileno())

    def flush(self) -> None:
        for file in (self._vain, self._real):
            if file is not None and not file.closed:
                file.flush()

    def close(self) -> None:
        super().close()
        for file in (self._vain, self._real):
            if file is not None:
                file.close()


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


class _Stdout:
    """Standard output, on which threads that are mute print nothing."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def write(self, text: str) -> int:
        guard = acting()
        return len(text) if guard is not None and guard.is_mute else int(self._real.write(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
