"""The check before the first step: what cannot be measured is refused with the fix, what can is described."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.graph import leaf_uses
from lightning_info.probing.prediction import ADAPTER_LINES, NoPrediction, Prediction
from lightning_info.probing.probe import Probe
from lightning_info.probing.replica import NotCopyable

_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel", "XLAFSDP")


def refuse_sharding(owner: str, strategy: str) -> None:
    """Refuse a strategy, by the name of its class, that leaves no process with whole parameters.

    Raises:
        MisconfigurationException: With what to do instead.
    """
    if strategy.startswith(_SHARDED):
        raise MisconfigurationException(
            f"{owner}: {strategy} shards the parameters, so that no process can compute a sample's gradient; train "
            f"with strategy='ddp' or remove the callback"
        )


def preflight(
    owner: str, module: nn.Module, make_probe: Callable[[], Probe], prepare: Callable[[Probe], str]
) -> tuple[list[str], bool]:
    """Look at a few samples through a replica as a measurement will.

    Args:
        owner: Name of the callback's class.
        module: The user's module.
        make_probe: Builds a probe with a private replica and a few samples as its only group.
        prepare: The callback's own check; says in a few words how it will measure.

    Returns:
        What the user should know, a line each; and whether the module writes to its parameters when it runs, so that
        a replica must not share them.

    Raises:
        MisconfigurationException: The module cannot be measured; the message tells what to write.
    """
    name = type(module).__name__
    try:
        probe = make_probe()
        prediction = _predict(probe, name)
        originals = {id(p) for p in module.parameters()}
        if any(id(leaf) in originals for leaf in leaf_uses(prediction.outputs)):
            raise NotCopyable(f"a copy of {name} still computes with the original's parameters (a closure over it?)")
        pairs = zip(probe.module.parameters(), module.parameters(), strict=True)
        writes = prediction.writes or any(not torch.equal(p, q.to(p)) for p, q in pairs)
        again = _predict(probe, name).outputs
        if not torch.allclose(prediction.outputs, again, rtol=1e-3, atol=1e-4, equal_nan=True):
            cause = "it changes its parameters while it runs" if writes else "noise belongs under `if self.training`"
            raise NoPrediction(
                f"{name} gives other outputs in a second pass over the same samples in eval mode; {cause}"
            )
        how = prepare(probe)
    except NoPrediction as error:
        lines = ADAPTER_LINES.format(callback=owner)
        raise MisconfigurationException(f"{owner}: {error}. Tell it what the module predicts:\n\n{lines}") from error
    except NotCopyable as error:
        raise MisconfigurationException(f"{owner} measures on a copy of the module, but {error}") from error
    except NotCovered as error:
        raise MisconfigurationException(
            f"{owner}: no engine gives exact per-sample gradients of {name}: {error}"
        ) from error
    said = [f"{owner}: {prediction.likelihood} outputs {tuple(prediction.outputs.shape[1:])} a sample; {how}"]
    if abs(prediction.extra_loss) > 1e-5:
        said.append(
            f"{owner}: the loss of {name}.training_step holds {prediction.extra_loss:.4g} beyond the likelihood "
            f"(penalties, a scale); only the predictive distribution is measured"
        )
    return said, writes


def _predict(probe: Probe, module: str) -> Prediction:
    try:
        return probe.predictor(probe.module, probe.to_device(probe.groups[0]))
    except (NoPrediction, torch.OutOfMemoryError):
        raise
    except Exception as error:
        source = f"{module}.training_step" if probe.predictor.adapter is None else "the adapter"
        raise NoPrediction(f"{source} fails on a copy of the module: {type(error).__name__}: {error}") from error
