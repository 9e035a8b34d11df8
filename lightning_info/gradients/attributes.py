"""Attributes that modules set while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Put all attributes and buffers back at the end: what a module sets under ``torch.vmap`` is of no use behind it.

    ``torch.nn.utils.weight_norm``, for one, sets the weight that it computed.
    """
    tables = [table for part in module.modules() for table in (vars(part), part._buffers)]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            if table.keys() != entries.keys() or any(table[key] is not value for key, value in entries.items()):
                table.clear()
                table.update(entries)
