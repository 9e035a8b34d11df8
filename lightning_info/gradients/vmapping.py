"""What fails under ``torch.vmap``, told as what cannot be computed that way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_info.gradients.contract import NotCovered, first_line
from lightning_info.gradients.memory import is_out_of_memory


@contextmanager
def vmapping(what: str) -> Iterator[None]:
    """Run something under ``torch.vmap``; that an operator has no fast rule is not said.

    Args:
        what: Runs, for the message.

    Raises:
        NotCovered: It raises whatever it raises; but for a lack of memory, which is raised as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    except NotCovered:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NotCovered(f"{what} does not vmap ({first_line(error)})") from error
