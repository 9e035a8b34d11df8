"""The checkpoints of two runs, matched by optimiser step."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_info.gradients.contract import first_line
from lightning_info.gradients.real import in_double

OWNER = "compare_runs"

PathLike = str | os.PathLike[str]


def matched(
    run: PathLike | Sequence[PathLike], twin: PathLike | Sequence[PathLike], weights_only: bool
) -> dict[int, tuple[Path, Path]]:
    """The pairs of checkpoints with one ``global_step``, by it, rising.

    Args:
        run: Checkpoints of the one, or their folder.
        twin: Of the other.
        weights_only: See :func:`torch.load`.

    Raises:
        ValueError: There are none, or what is no checkpoint.
    """
    ours, theirs = (_by_step(name, given, weights_only) for name, given in (("run", run), ("twin", twin)))
    steps = sorted(ours.keys() & theirs.keys())
    if not steps:
        raise ValueError(
            f"{OWNER}: no global_step has a checkpoint of both runs: run has {_few(ours)}, twin has {_few(theirs)}; "
            f"save both at the same steps, for example ModelCheckpoint(every_n_train_steps=100, save_top_k=-1)"
        )
    return {step: (ours[step], theirs[step]) for step in steps}


def load_weights(module: nn.Module, path: Path, weights_only: bool) -> None:
    """Give a module the parameters and buffers of a checkpoint.

    Double precision stays double, half becomes what the module has.

    Raises:
        ValueError: They do not fit; the message says where they differ.
    """
    state: Mapping[str, Any] = _read(path, weights_only)["state_dict"]
    own = module.state_dict()
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
            f"{OWNER}: {path} does not fit {type(module).__name__}: {_few(odd, '; ')}. Both runs have to be of "
            f"module=..., made with the arguments that they were trained with"
        )
    if any(isinstance(value, Tensor) and value.dtype in (torch.float64, torch.complex128) for value in state.values()):
        module.double()
        module._apply(in_double)  # type: ignore[no-untyped-call]  # what the line before leaves as it is: complex weights
    module.load_state_dict(state)


def _by_step(name: str, given: PathLike | Sequence[PathLike], weights_only: bool) -> dict[int, Path]:
    if not isinstance(given, (str, os.PathLike)):
        paths = [Path(path) for path in given]
    elif Path(given).is_dir():
        paths = sorted(Path(given).glob("*.ckpt"))
    else:
        paths = [Path(given)]
    if not paths:
        raise ValueError(
            f"{OWNER}: {name}={given!r} holds no file *.ckpt; give a list of paths, {name}=['a.ckpt', ...]"
        )
    return {_step(path, weights_only): path for path in paths}


def _step(path: Path, weights_only: bool) -> int:
    checkpoint = _read(path, weights_only)
    if "global_step" not in checkpoint:
        raise ValueError(
            f"{OWNER}: {path} has no 'global_step', by which the runs are matched; a file of your own is "
            f"torch.save({{'state_dict': model.state_dict(), 'global_step': 0}}, path)"
        )
    return int(checkpoint["global_step"])


def _read(path: Path, weights_only: bool) -> dict[str, Any]:
    if path.is_dir():
        raise ValueError(
            f"{OWNER}: {path} is a folder, as a sharded run saves it; make it one file with python -m "
            f"lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{OWNER}: {path} holds more than tensors and plain values, or is no checkpoint. If you trust it, let it "
            f"run code: weights_only=False (--no-weights-only)"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{OWNER}: {path} cannot be read as a checkpoint ({first_line(error)})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"{OWNER}: {path} has no 'state_dict'; give checkpoints that trainer.save_checkpoint wrote")
    return checkpoint


def _few(items: Any, separator: str = ", ") -> str:
    texts = [str(item) for item in (sorted(items) if isinstance(items, dict) else items)]
    return separator.join(texts[:5]) + (f"{separator}and {len(texts) - 5} more" if len(texts) > 5 else "")
