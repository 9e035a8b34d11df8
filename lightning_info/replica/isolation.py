"""Everything global that a measurement could disturb, put back when it ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, nn


class RandomStates:
    """States of the global random number generators: of the CPU and a device, of numpy and of Python's ``random``."""

    def __init__(self, device: torch.device) -> None:
        self.generators = global_generators(device)
        self.torch = [generator.get_state() for generator in self.generators]
        self.numpy: Any = np.random.get_state()  # noqa: NPY002 (the user's global one)
        self.python = random.getstate()

    def restore(self) -> None:
        """Put them back."""
        for generator, state in zip(self.generators, self.torch, strict=True):
            generator.set_state(state)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def moved(self) -> tuple[bool, bool]:
        """Whether torch has drawn from its generators since, and whether numpy or ``random`` have from theirs."""
        pairs = zip(self.generators, self.torch, strict=True)
        by_torch = not all(torch.equal(generator.get_state(), state) for generator, state in pairs)
        now: Any = np.random.get_state()  # noqa: NPY002
        same = now[2:] == self.numpy[2:] and np.array_equal(now[1], self.numpy[1]) and now[0] == self.numpy[0]
        return by_torch, not same or random.getstate() != self.python


def global_generators(device: torch.device) -> list[Generator]:
    """Those from which torch draws on the CPU and on a device."""
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[RandomStates]:
    """All global generators start from a seed, and are put back at the end.

    Args:
        device: One that draws besides the CPU.
        seed: From which every block draws the same.
    """
    before = RandomStates(device)
    try:
        for generator in before.generators:
            generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield RandomStates(device)
    finally:
        before.restore()


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Gradients on, inference mode and autocast off, no compilation; random number generators restored at the end.

    Args:
        device: Where the measurement runs; the generators of the CPU, of this device, of numpy and of Python's
            ``random`` are restored.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the user's global one)
    accelerators = [device] if device.type not in ("cpu", "meta", "mps") else []
    with ExitStack() as stack:
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        stack.enter_context(torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {device.type, "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class Exited(RuntimeError):
    """Code of the user tried to end the program in a measurement, by ``sys.exit()`` for example."""


@contextmanager
def exits_are_errors(what: str) -> Iterator[None]:
    """Make errors of exceptions that would end the program, as ``SystemExit``; but not of Ctrl-C.

    Args:
        what: What is called, for the message.

    Raises:
        Exited: In the place of such an exception.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Exited(f"{what} ended with {type(error).__name__}({error})") from error


@contextmanager
def default_dtype_of(module: nn.Module) -> Iterator[None]:
    """Tensors that the module makes have the precision of its weights, as in Lightning's step."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(next((p.dtype for p in module.parameters() if p.is_floating_point()), before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)
