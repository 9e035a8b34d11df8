"""The check of the first samples, past those that the module is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_info.callbacks.preflight import Findings, preflight
from lightning_info.gradients.plan import CHECK_SAMPLES
from lightning_info.gradients.samples import take
from lightning_info.probing.likelihoods import Skipped
from lightning_info.probing.probe import Probe
from lightning_info.probing.skipped import without_skipped


def findings(
    owner: str,
    module: nn.Module,
    make_probe: Callable[[list[Any]], Probe],
    prepare: Callable[[Probe], Mapping[str, str]],
    batch: Any,
) -> Findings | None:
    """What :func:`~.preflight` finds on a few samples of a batch.

    Args:
        owner: See there.
        module: See there.
        make_probe: Builds a probe with a private replica and the given groups.
        prepare: See there.
        batch: The samples.

    Returns:
        With the batch in its probe, without the samples for which ``training_step`` returns None; None if it does for
        all of them.

    Raises:
        Refused: See there.
    """
    for _ in range(2):
        few = [take(batch, slice(0, CHECK_SAMPLES))]
        try:
            found = preflight(owner, module, lambda few=few: make_probe(few), prepare)  # type: ignore[misc]
        except Skipped:
            batch = without_skipped(make_probe([]), batch)
            if batch is None:
                break
        else:
            found.probe.groups = [batch]
            return found
    return None
