"""The check of the first samples, skipping those that the module is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from torch import nn

from lightning_info.callbacks.preflight import Findings, preflight
from lightning_info.replica.predicted import Skipped
from lightning_info.replica.sample_axis import Layouts
from lightning_info.replica.skipped import without_skipped
from lightning_info.replica.snapshot import ModelSnapshot


def findings(
    owner: str,
    module: nn.Module,
    make_snapshot: Callable[[list[Any]], ModelSnapshot],
    prepare: Callable[[ModelSnapshot], Mapping[str, str]],
    batch: Any,
    layouts: Layouts,
    key: Hashable,
) -> Findings | None:
    """Run :func:`~.preflight` on a few samples of a batch.

    Args:
        owner: See :func:`~.preflight`.
        module: See :func:`~.preflight`.
        make_snapshot: Builds a snapshot with a private replica and the given groups.
        prepare: See :func:`~.preflight`.
        batch: The samples.
        layouts: See :func:`~.preflight`.
        key: See :func:`~.preflight`.

    Returns:
        The findings, with the batch without the samples for which ``training_step`` returns None; None if it does so
        for all of them.

    Raises:
        Refused: See :func:`~.preflight`.
    """
    for _ in range(2):
        try:
            found = preflight(owner, module, partial(make_snapshot, [batch]), prepare, layouts, key)
        except Skipped:
            batch = without_skipped(make_snapshot([]), batch)
            if batch is None:
                break
        else:
            found.snapshot.groups = [found.whole]
            return found
    return None
