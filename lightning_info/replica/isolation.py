"""Everything global that a measurement could disturb, put back when it ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


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
