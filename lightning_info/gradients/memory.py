"""Out of memory, in the forms in which allocators say it."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.memory import is_oom_error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller chunk may help."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or is_oom_error(error)
