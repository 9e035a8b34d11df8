"""What code of the user's that runs once more, on a copy, must not do once more: what outlives it.

It writes files, starts processes, sends messages. An audit hook of the interpreter sees these before they happen, in
the threads that run such code only; it can raise there, and does. Calls that only save something (``torch.save``,
``open(path, "w")``) need not end what runs: they go nowhere instead, see :mod:`~lightning_info.replica.left_out`.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from lightning_info.replica.blame import place_of

FIX = "do it in a callback with a class attribute `changes_training = False` instead"

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_UNNAMED = getattr(os, "O_TMPFILE", 0)

_PATHS: dict[str, tuple[str, tuple[tuple[int, int | None], ...]]] = {
    "os.chmod": ("change the mode of", ((0, 2),)),
    "os.chown": ("change the owner of", ((0, 3),)),
    "os.link": ("link", ((0, 2), (1, 3))),
    "os.mkdir": ("make the folder", ((0, 2),)),
    "os.remove": ("remove", ((0, 1),)),
    "os.rename": ("move", ((0, 2), (1, 3))),
    "os.rmdir": ("remove", ((0, 1),)),
    "os.symlink": ("link", ((1, 2),)),
    "os.truncate": ("truncate", ((0, None),)),
    "os.utime": ("touch", ((0, 3),)),
    "shutil.chown": ("change the owner of", ((0, None),)),
    "shutil.copytree": ("copy", ((1, None),)),
    "shutil.make_archive": ("write", ((0, None),)),
    "shutil.move": ("move", ((0, None), (1, None))),
    "shutil.rmtree": ("remove", ((0, None),)),
    "shutil.unpack_archive": ("unpack into", ((1, None),)),
    "sqlite3.connect": ("connect to the database", ((0, None),)),
}
"""Audit event -> what it is about to do, and where in its arguments are the paths and the folders they start from."""

_OTHERS = {
    "_thread.start_joinable_thread": "start a thread",
    "_thread.start_new_thread": "start a thread",
    "os.chdir": "change the working folder",
    "os.exec": "become another program",
    "os.fork": "start a process",
    "os.forkpty": "start a process",
    "os.kill": "send a signal to a process",
    "os.killpg": "send a signal to processes",
    "os.posix_spawn": "start a process",
    "os.spawn": "start a process",
    "os.startfile": "open a file in another program",
    "os.system": "start a process",
    "signal.pthread_kill": "send a signal to a thread",
    "socket.bind": "listen on the network",
    "socket.connect": "connect to the network",
    "socket.sendmsg": "send to the network",
    "socket.sendto": "send to the network",
    "subprocess.Popen": "start a process",
}
"""Audit event -> what else it is about to do."""

_THROUGH = {*sys.stdlib_module_names, "filelock", "lightning_info", "matplotlib", "torch"}
"""Packages that write on behalf of whoever calls them ..."""
_MACHINERY = (
    "_frozen_importlib", "importlib._bootstrap", "matplotlib.font_manager",
    "matplotlib.texmanager", "torch._dynamo", "torch._functorch", "torch._inductor", "torch.utils.cpp_extension",
    "torch.utils.data", "triton", "weakref",
)  # fmt: skip
"""... and those that keep caches, compile, or clean up, with files and processes of their own."""


class SideEffect(BaseException):
    """Something that outlives the copy was about to happen; no Exception, as user code may not go on after it."""


class SideEffectRefused(Exception):
    """What the copy was about to do, where, and what to do about it."""


class Guard:
    """Keeps code that runs on a copy from doing what outlives it.

    Args:
        whose: Who runs that code, for messages: ``"the twin"``.
        is_mute: What it prints and logs goes nowhere either.

    Attributes:
        refused: What it was about to do when it was stopped; None if it never was.
        left_out: What was left out, by the path of the file that was not written.
    """

    def __init__(self, whose: str, *, is_mute: bool = False) -> None:
        self.whose, self.is_mute = whose, is_mute
        self.refused: str | None = None
        self.left_out: dict[str, str] = {}
        self._own: set[str] = set()  # temporary files and folders

    @contextmanager
    def acting(self) -> Iterator[None]:
        """What this thread does inside is guarded.

        Raises:
            SideEffectRefused: It was about to do something that outlives it, even if it went on after that.
        """
        _install()
        outer, _here.guard = acting(), self
        try:
            yield
        except BaseException as error:
            if self.refused is None:
                raise
            raise SideEffectRefused(self.refused) from error
        finally:
            _here.guard = outer
        if self.refused is not None:
            raise SideEffectRefused(self.refused)

    def clean_up(self) -> None:
        """Remove the temporary files that the code has left behind."""
        for path in self._own:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                os.remove(path)

    def refuse(self, what: str) -> NoReturn:
        """Stop what is about to happen.

        Args:
            what: It, as in "the twin was about to ...".

        Raises:
            SideEffect: Always.
        """
        place = place_of(sys._getframe(1))
        message = f"{self.whose} was about to {what}{place}, which is for the run itself to do; {FIX}"
        self.refused = self.refused or message
        raise SideEffect(message)

    def leaves_out(self, path: Any, what: str) -> bool:
        """Whether a file must not be written; then it is noted.

        Args:
            path: Of the file.
            what: How it was to be written: ``"torch.save"``.
        """
        real = _real(path)
        if self._is_own(real) or not _is_file(real) or by_machinery():
            return False
        self.left_out.setdefault(real, f"{what} to {os.fsdecode(path)!r}{place_of(sys._getframe(1))}")
        return True

    def reads(self, path: Any) -> None:
        """A file is about to be read.

        Raises:
            SideEffect: It is one that was left out: what is there is the run's.
        """
        if self.left_out and _real(path) in self.left_out:
            self.refuse(f"read {os.fsdecode(path)!r}, which holds what the run wrote and not what {self.whose} would")

    # ---- the audit hook

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """What the interpreter is about to do in a thread that acts."""
        if event == "open":
            self._see_open(*args)
        elif event in ("tempfile.mkstemp", "tempfile.mkdtemp"):
            self._own.add(_real(args[0]))
        elif event in _PATHS:
            self._see_change(event, args)
        elif event in _OTHERS and not by_machinery():
            self.refuse(_OTHERS[event])

    def _see_open(self, path: Any, mode: Any, flags: int) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):  # a descriptor, of a file that was opened before
            return
        if not flags & _WRITING:
            self.reads(path)
        elif not (_UNNAMED and flags & _UNNAMED == _UNNAMED):
            real = _real(path)
            if not self._is_own(real) and _is_file(real) and not by_machinery():
                self.refuse(f"write to {os.fsdecode(path)!r}")

    def _see_change(self, event: str, args: tuple[Any, ...]) -> None:
        what, places = _PATHS[event]
        given = [(args[n], args[folder] if folder is not None else -1) for n, folder in places if n < len(args)]
        changed = [(path, _real(path, folder)) for path, folder in given if isinstance(path, (str, bytes, os.PathLike))]
        if event == "sqlite3.connect":
            changed = [(path, real) for path, real in changed if os.fsdecode(path) not in ("", ":memory:")]
        if event == "os.mkdir":  # which fails where there is one, as it did in the run
            changed = [(path, real) for path, real in changed if not os.path.isdir(real)]
        others = [path for path, real in changed if not self._is_own(real)]
        if others and not by_machinery():
            self.refuse(f"{what} {os.fsdecode(others[0])!r}")

    def _is_own(self, real: str) -> bool:
        return any(real == own or real.startswith(own + os.sep) for own in self._own)


def acting() -> Guard | None:
    """The guard of this thread, if what it does is guarded."""
    return getattr(_here, "guard", None)


def by_machinery() -> bool:
    """Whether a cache, a compiler or a finaliser does what is about to be done, not code of the user's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == "matplotlib" or name.startswith(_MACHINERY) or frame.f_code.co_name == "__del__":
            return True
        if name.partition(".")[0] not in _THROUGH:
            return False
        frame = frame.f_back
    return False


_here = threading.local()  # not by the thread's number, which a forked process gives to another thread
_installed = False


def _install() -> None:
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)  # for good; there is no way to remove one


def _hook(event: str, args: tuple[Any, ...]) -> None:
    guard = acting()
    if guard is not None:
        guard.see(event, args)


def _real(path: Any, folder: int | None = -1) -> str:
    text = os.fsdecode(path)
    if folder is not None and folder >= 0 and not os.path.isabs(text):
        with suppress(OSError):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    return os.path.realpath(text)


def _is_file(real: str) -> bool:
    """Whether something is kept there, unlike in /dev/null."""
    try:
        mode = os.stat(real).st_mode
    except OSError:
        return True
    return not (stat.S_ISCHR(mode) or stat.S_ISDIR(mode))
