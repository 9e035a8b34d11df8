"""Checkpoints on disk: of a Lightning Trainer or plain state dicts, in the order of their optimiser steps."""

from __future__ import annotations

import glob
import itertools
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import first_line
from lightning_info.gradients.real import in_double

PathLike = str | os.PathLike[str]

ENDINGS = ("*.ckpt", "*.pt", "*.pth", "*.bin")
"""Endings of the files in a folder that count as checkpoints."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint file.

    Attributes:
        path: Path of the file.
        step: Optimiser steps of its weights.
        epoch: Its epoch; 0 if the file does not say.
    """

    path: Path
    step: int
    epoch: int


@dataclass(frozen=True)
class CheckpointReader:
    """Reads checkpoints for a function that the user called.

    Attributes:
        owner: Name of this function, for messages.
        weights_only: See :func:`torch.load`.
    """

    owner: str
    weights_only: bool

    def checkpoints(self, name: str, given: PathLike | Sequence[PathLike]) -> list[Checkpoint]:
        """Return the checkpoints that an argument names, by rising step.

        Args:
            name: Name of the argument.
            given: A folder, a path, or a pattern such as ``"run/checkpoints/*.ckpt"``; or several of the latter two.

        Raises:
            ValueError: There are none, two of the same step, or files that are not checkpoints.
        """
        found = sorted((self._described(name, path) for path in self._paths(name, given)), key=lambda one: one.step)
        for one, other in itertools.pairwise(found):
            if one.step == other.step:
                raise ValueError(
                    f"{self.owner}: {one.path} and {other.path} are both of step {one.step}; give one of them, or the "
                    f"checkpoints of one run, for example {name}='run/checkpoints/*.ckpt'"
                )
        return found

    def load(self, module: nn.Module, path: Path) -> None:
        """Give a module the parameters and buffers of a checkpoint.

        Double precision stays double, half becomes what the module has. A module that is part of what was saved
        (``net`` of a LightningModule, the module behind DistributedDataParallel) takes its part.

        Raises:
            ValueError: They do not fit; the message says where they differ.
        """
        self.fit(module, self._weights(path), str(path))

    def fit(self, module: nn.Module, state: Mapping[str, Any], source: str) -> None:
        """Give a module the parameters and buffers of a state dict, as :meth:`load` does.

        Args:
            module: The module.
            state: The state dict.
            source: Its name in messages.

        Raises:
            ValueError: They do not fit; the message says where they differ.
        """
        own = module.state_dict()
        state = _part_for(own, state)
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        odd = [f"{name!r} is missing" for name in own if name not in state]
        odd += [f"{name!r} is not in the module" for name in state if name not in own]
        odd += [
            f"{name!r} is {tuple(state[name].shape)}, in the module {tuple(value.shape)}"
            for name, value in tensors.items()
            if isinstance(state.get(name), Tensor) and state[name].shape != value.shape
        ]
        if odd:
            raise ValueError(
                f"{self.owner}: {source} does not fit {type(module).__name__}: {few(odd, '; ')}. Give module=... "
                f"made with the arguments that it was trained with"
            )
        double = (torch.float64, torch.complex128)
        if any(isinstance(value, Tensor) and value.dtype in double for value in state.values()):
            module.double()
            module._apply(in_double)  # type: ignore[no-untyped-call]  # complex weights, which double() leaves
        module.load_state_dict(state)

    def hyperparameters(self, path: Path) -> dict[str, Any]:
        """Return what Lightning keeps in a checkpoint to build the module anew; empty if it keeps nothing."""
        return dict(self._read(path).get("hyper_parameters", {}))

    def made(self, cls: Any, path: Path, **arguments: Any) -> Any:
        """Build a LightningModule of a class from a checkpoint.

        Args:
            cls: The class.
            path: The checkpoint.
            arguments: Arguments of the class; the others are the hyperparameters that the checkpoint holds.

        Raises:
            ValueError: It cannot be built; the message says what to give instead.
        """
        takes = signature(cls.load_from_checkpoint).parameters  # before Lightning 2.6 it knows no weights_only
        options = {"weights_only": self.weights_only} if "weights_only" in takes else {}
        try:
            return cls.load_from_checkpoint(path, map_location="cpu", **options, **arguments)
        except Exception as error:
            told = shorten(str(error), 300) or type(error).__name__
            raise ValueError(
                f"{self.owner}: {cls.__name__} cannot be made from {path} ({told}); give an instance, "
                f"module={cls.__name__}(...), or call self.save_hyperparameters() in its __init__ before training"
            ) from error

    def _paths(self, name: str, given: PathLike | Sequence[PathLike]) -> list[Path]:
        if not isinstance(given, (str, os.PathLike)):
            paths = [path for one in given for path in ([Path(one)] if Path(one).is_dir() else self._paths(name, one))]
        elif Path(given).is_dir():
            paths = sorted(path for ending in ENDINGS for path in Path(given).glob(ending))
        elif glob.has_magic(os.fspath(given)) and not Path(given).exists():
            paths = sorted(map(Path, glob.glob(os.fspath(given), recursive=True)))
        else:
            paths = [Path(given)]
        if not paths:
            raise ValueError(
                f"{self.owner}: {name}={os.fspath(given) if isinstance(given, os.PathLike) else given!r} holds no file "
                f"{', '.join(ENDINGS)}; give a list of paths, {name}=['a.ckpt', ...]"
            )
        return paths

    def _described(self, name: str, path: Path) -> Checkpoint:
        content = self._read(path)
        step = content.get("global_step")
        if step is None:
            told = re.findall(r"step[=_-]?(\d+)|checkpoint[=_-](\d+)", str(path))
            if not told:
                raise ValueError(
                    f"{self.owner}: {path} has no 'global_step', and its name tells no step either; call it "
                    f"step=100.pt, or save torch.save({{'state_dict': model.state_dict(), 'global_step': 100}}, path)"
                )
            step = next(filter(None, told[-1]))
        epoch = content.get("epoch", 0)
        return Checkpoint(path, int(step), epoch if isinstance(epoch, int) else 0)

    def _weights(self, path: Path) -> Mapping[str, Any]:
        content = self._read(path)
        state: Mapping[str, Any] = content.get("state_dict", content)
        return state

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.exists():
            beside = sorted(found.name for ending in ENDINGS for found in path.parent.glob(ending))
            raise FileNotFoundError(
                f"{self.owner}: there is no file {path}; its folder "
                + (f"holds {few(beside)}" if beside else "holds no checkpoint")
            )
        if path.is_dir():
            raise ValueError(
                f"{self.owner}: {path} is a folder, as a sharded run saves it; make it one file with python -m "
                f"lightning.pytorch.utilities.consolidate_checkpoint {path}"
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=self.weights_only, mmap=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{self.owner}: {path} holds more than tensors and plain values, or is not a checkpoint. If you "
                f"trust it, let it run code: weights_only=False (--no-weights-only)"
            ) from error
        except (RuntimeError, EOFError) as error:
            raise ValueError(f"{self.owner}: {path} cannot be read as a checkpoint ({first_line(error)})") from error
        if not isinstance(content, dict) or not _is_state(content.get("state_dict", content)):
            raise ValueError(
                f"{self.owner}: {path} has no 'state_dict' and is not one; give checkpoints that "
                f"trainer.save_checkpoint or torch.save(model.state_dict(), path) wrote"
            )
        return content


def few(items: Any, separator: str = ", ") -> str:
    """Join the first five texts, and say how many more there are."""
    texts = [str(item) for item in items]
    return separator.join(texts[:5]) + (f"{separator}and {len(texts) - 5} more" if len(texts) > 5 else "")


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and any(isinstance(value, Tensor) for value in state.values())


def _part_for(own: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a state that a module takes, under its own names."""
    if not own or own.keys() <= state.keys():
        return dict(state)
    first = next(iter(own))
    for name in state:
        head = name.removesuffix(first)
        if head != name and all(head + other in state for other in own):
            return {other: state[head + other] for other in own}
    return dict(state)
