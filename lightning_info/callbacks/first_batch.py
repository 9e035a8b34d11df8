"""The check of the first samples, past those that the module is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from torch import nn

from lightning_info.callbacks.preflight import Findings, preflight
from lightning_info.probing.likelihoods import Skipped
from lightning_info.probing.probe import Probe
from lightning_info.probing.sample_axis import Layouts
from lightning_info.probing.skipped import without_skipped


def findings(
    owner: str,
    module: nn.Module,
    make_probe: Callable[[list[Any]], Probe],
    prepare: Callable[[Probe], Mapping[str, str]],
    batch: Any,
    layouts: Layouts,
    key: Hashable,
) -> Findings | None:
    """What :func:`~.preflight` finds on a few samples of a batch.

    Args:
        owner: See there.
        module: See there.
        make_probe: Builds a probe with a private replica and the given groups.
        prepare: See there.
        batch: The samples.
        layouts: See there.
        key: See there.

    Returns:
        With the batch in its probe, without the samples for which ``training_step`` returns None; None if it does for
        all of them.

    Raises:
        Refused: See there.
    """
    for _ in range(2):
        try:
            found = preflight(owner, module, partial(make_probe, [batch]), prepare, layouts, key)
        except Skipped:
            batch = without_skipped(make_probe([]), batch)
            if batch is None:
                break
        else:
            found.probe.groups = [found.whole]
            return found
    return None
