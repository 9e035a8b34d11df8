"""Which engine computes the per-sample gradients of a module, why, and the proof on two samples."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_info.gradients import func, loop, taps, vmap_taps
from lightning_info.gradients.contract import Engine, Norms, NotCovered, Predict, trainable
from lightning_info.gradients.graph import leaf_uses, without_graph
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.samples import take
from lightning_info.gradients.uses import listed
from lightning_info.validation import one_of

EngineName = Literal["auto", "backpack", "backpack_vmap", "func", "loop"]
ENGINES: dict[str, Engine] = {
    "backpack": taps.squared_norms,
    "backpack_vmap": vmap_taps.squared_norms,
    "func": func.squared_norms,
    "loop": loop.squared_norms,
}
CHECK_SAMPLES = 8
CHECK_PARAMETERS = 1 << 28
"""Larger modules are checked without the float64 copy, which would take more than 2 GiB."""


@dataclass
class Plan:
    """The engine chosen for a module.

    Attributes:
        engine: Its name.
        checked: Samples in the batch on which two were compared with plain autograd; 0 if nothing could be compared.
        reasons: Why engines that come before it were not taken, by name.
        routes: Who computes each trainable parameter's gradient: ``"rule: linear"`` and so on, the operator that uses
            it; ``"copied per sample: ..."``, with why no rule fits; ``"torch.func"``; ``"loop"``; ``"unused"``.
    """

    engine: str
    checked: int
    reasons: dict[str, str] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """The routes in a line: how many parameters take each, and of copied ones a few names.

        For example ``"rules: 41 of linear, 20 of convolution; 1 copied per sample (token: no rule for the operator
        that uses it)"``.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for name, route in self.routes.items():
            way, _, detail = route.partition(": ")
            found.setdefault(way, {}).setdefault(detail, []).append(name)
        rules = sorted(found.pop("rule", {}).items(), key=lambda item: -len(item[1]))
        parts = ["rules: " + ", ".join(f"{len(names)} of {kind}" for kind, names in rules)] if rules else []
        for way, details in found.items():
            why = "; ".join(f"{listed(names, 2)}: {reason}" for reason, names in details.items() if reason)
            parts.append(f"{sum(map(len, details.values()))} {way}" + (f" ({why})" if why else ""))
        return "; ".join(parts)

    def squared_norms(
        self, module: nn.Module, predict: Predict, batch: Any, cotangents: Iterable[Tensor]
    ) -> dict[str, Tensor]:
        """See :class:`~.contract.Engine`."""
        return ENGINES[self.engine](module, predict, batch, cotangents)


def choose_engine(module: nn.Module, predict: Predict, batch: Any, engine: EngineName = "auto") -> Plan:
    """Take the first engine that covers every trainable parameter and agrees with plain autograd on two samples.

    The comparison runs in float64 on a copy of the module, on at most eight samples of ``batch``, with random
    cotangents; all samples go forward together in the reference, so layouts that fold or swap the sample axis and
    modules that mix samples are caught. Where float64 does not run (hard-coded types, modules of more than
    :data:`CHECK_PARAMETERS`) it is done in the module's own precision to 5 %.

    Args:
        module: The module.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples; one sample can show no mixing of samples, so check again when more are at hand.
        engine: ``"auto"`` or the only engine to try.

    Returns:
        The plan; ``checked`` is 0 if outputs or gradients are not finite, so that nothing could be compared.

    Raises:
        NotCovered: No engine is exact; the message has every reason.
        ValueError: There is no engine of that name.
    """
    if not trainable(module):
        raise NotCovered("none of its parameters requires a gradient")
    one_of("choose_engine", "engine", engine, get_args(EngineName))
    candidates = list(ENGINES) if engine == "auto" else [engine]
    batch = take(batch, slice(0, CHECK_SAMPLES))
    module, batch, tolerance = _float64(module, predict, batch)
    outputs = predict(module, batch)
    leaf_uses(outputs)  # raises where autograd does not see all of them
    outputs = outputs.detach()
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    reasons: dict[str, str] = {}
    samples = range(min(2, len(outputs)))
    truth = loop.whole_batch(module, predict, batch, cotangent, samples)
    comparable = bool(outputs.isfinite().all()) and all(values.isfinite().all() for values in truth.values())
    for name in candidates:
        try:
            found = ENGINES[name](module, predict, batch, [cotangent])
            if comparable:
                _compare(found, truth, len(samples), tolerance)
        except (NotCovered, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reasons[name] = str(error)
        else:
            routes = found.routes if isinstance(found, Norms) else {}
            return Plan(name, len(outputs) if comparable else 0, reasons, routes)
    raise NotCovered("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def squared_norms(
    module: nn.Module, inputs: Any, cotangents: Tensor | Iterable[Tensor], engine: EngineName = "auto"
) -> dict[str, Tensor]:
    """Per-sample squared gradient norms ``‖J_nᵀ u_n‖²`` of ``module(inputs)``, summed over the cotangents.

    Args:
        module: A module in eval mode that maps inputs to outputs ``(N, ...)``; never changed.
        inputs: Its input, sample axis first.
        cotangents: One tensor of the outputs' shape, or several.
        engine: ``"auto"`` or one of ``"backpack"``, ``"backpack_vmap"``, ``"func"``, ``"loop"``; see
            :func:`choose_engine`.

    Returns:
        ``(N,)`` float64 per trainable parameter, by name.

    Raises:
        NotCovered: No engine is exact for this module.
    """
    cotangents = [cotangents] if isinstance(cotangents, Tensor) else cotangents
    return choose_engine(module, _call, inputs, engine).squared_norms(module, _call, inputs, cotangents)


def _call(module: nn.Module, inputs: Any) -> Tensor:
    outputs: Tensor = module(inputs)
    return outputs


def _float64(module: nn.Module, predict: Predict, batch: Any) -> tuple[nn.Module, Any, float]:
    """A float64 copy of the module and batch and the tolerance to compare with, if it runs at all."""
    if sum(p.numel() for p in module.parameters()) > CHECK_PARAMETERS:
        return module, batch, 0.05
    precise = copy.deepcopy(module, dict(without_graph(module))).to(dtype=torch.float64)
    precise_batch = apply_to_collection(batch, Tensor, lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
    try:
        if predict(precise, precise_batch).dtype == torch.float64:
            return precise, precise_batch, 1e-6
    except (RuntimeError, ValueError, TypeError) as error:
        if is_out_of_memory(error):
            raise
    return module, batch, 0.05


def _compare(found: dict[str, Tensor], truth: dict[str, Tensor], samples: int, tolerance: float) -> None:
    total = torch.stack(list(truth.values())).sum(0)
    for name, expected in truth.items():
        if len(found[name]) < samples:
            raise NotCovered(f"{name} has values for {len(found[name])} samples only")
        error = (found[name][:samples] - expected).abs() / torch.maximum(expected, 1e-6 * total).clamp_min(1e-300)
        if not (error <= tolerance).all():  # also where it is NaN
            worst = int(error.nan_to_num(torch.inf).argmax())
            raise NotCovered(
                f"{name} gives {found[name][worst].item():.4g} for a sample where plain autograd on the whole batch "
                f"gives {expected[worst].item():.4g} (do outputs depend on the other samples of the batch?)"
            )


def coverage(module: nn.Module, norms: dict[str, Tensor]) -> float:
    """Share of the trainable elements of the module whose per-sample norms are in ``norms``."""
    sizes = {name: p.numel() for name, p in trainable(module).items()}
    return sum(sizes[name] for name in norms) / max(1, sum(sizes.values()))
