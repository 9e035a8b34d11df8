"""Which engine computes the per-sample gradients of a module, why, and the proof on a few samples."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_info.gradients import engine_taps as taps
from lightning_info.gradients import engine_vmap_taps as vmap_taps
from lightning_info.gradients import func, loop
from lightning_info.gradients.batches import map_tensors, shuffled, spread, take, tensors
from lightning_info.gradients.contract import Engine, Norms, NotCovered, Predict, call, has_large_frozen, trainable
from lightning_info.gradients.copies import deep_copy
from lightning_info.gradients.definition import Definition
from lightning_info.gradients.layout import Batch
from lightning_info.gradients.memory import is_out_of_memory
from lightning_info.gradients.real import in_double, sizes
from lightning_info.gradients.taps import listed
from lightning_info.validation import one_of

EngineName = Literal["auto", "backpack", "backpack_vmap", "func", "loop"]
ENGINES: dict[str, Engine] = {
    "backpack": taps.squared_norms,
    "backpack_vmap": vmap_taps.squared_norms,
    "func": func.squared_norms,
    "loop": loop.squared_norms,
}
_PLANS: WeakKeyDictionary[nn.Module, dict[Hashable, Plan]] = WeakKeyDictionary()
"""Of :func:`squared_norms`, by module and form."""
CHECK_SAMPLES = 8
"""On which engines are compared with plain autograd; half of them for modules of more than :data:`LARGE` weights."""
LARGE = 1 << 20
CHECK_PARAMETERS = 1 << 28
"""Larger modules are checked without the float64 copy, which would take more than 2 GiB."""


@dataclass
class Plan:
    """The engine chosen for a module.

    Attributes:
        engine: Its name.
        checked: Samples that were compared with plain autograd; 0 if nothing could be compared.
        reasons: Why engines that come before it were not taken, by name.
        routes: Who computes each trainable parameter's gradient: ``"rule: linear"`` and so on, the operator that uses
            it; ``"copied per sample: ..."``, with why no rule fits; ``"torch.func"``; ``"loop"``; ``"unused"``.
    """

    engine: str
    checked: int
    reasons: dict[str, str] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)

    @property
    def makes_one_pass(self) -> bool:
        """The engine goes forward once, over the whole batch, before it takes the first cotangent."""
        return self.engine == "backpack"

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
        self,
        module: nn.Module,
        predict: Predict,
        batch: Any,
        cotangents: Iterable[Tensor],
        sums: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See :class:`~.contract.Engine`."""
        return ENGINES[self.engine](module, predict, batch, cotangents, sums)


def choose_engine(module: nn.Module, predict: Predict, batch: Any, engine: EngineName = "auto") -> Plan:
    """Take the first engine that covers every trainable parameter and agrees with plain autograd on a few samples.

    The comparison runs in float64 on a copy of the module, on four or eight samples spread over ``batch``, with random
    cotangents, in another order than theirs unless it matters. The truth is each sample's gradient alone, and these
    must add up to the gradient of all samples together (:class:`~.definition.Definition`), so that modules that mix
    samples are caught as well as engines that misread a layout. Where float64 does not run (hard-coded types, modules
    of more than :data:`CHECK_PARAMETERS`, many frozen weights) it is done in the module's own precision to 5 %.

    Args:
        module: The module.
        predict: Gives the outputs ``(N, ...)``.
        batch: N samples; one sample can show no mixing of samples, so check again when more are at hand.
        engine: ``"auto"`` or the only engine to try.

    Returns:
        The plan; ``checked`` is 0 if outputs or gradients are not finite, so that nothing could be compared.

    Raises:
        NotCovered: No engine is exact; the message has every reason, or says that samples are mixed.
        ValueError: There is no engine of that name.
    """
    if not trainable(module):
        raise NotCovered("none of its parameters requires a gradient")
    one_of("choose_engine", "engine", engine, get_args(EngineName))
    candidates = list(ENGINES) if engine == "auto" else [engine]
    module, batch, tolerance = in_float64(module, predict, spread(batch, checked_samples(module)))
    definition = Definition(module, predict, batch)
    truth = definition.squared_norms(tolerance)
    order = torch.arange(definition.samples)
    if not (isinstance(batch, Batch) and batch.layout.ordered) and definition.samples > 1:
        order = shuffled(definition.samples)
        batch = take(batch, order)
    cotangent = definition.columns[0][order.to(definition.columns.device)]
    if truth is not None:
        truth = {key: values[order.to(values.device)] for key, values in truth.items()}
    reasons: dict[str, str] = {}
    for name in candidates:
        try:
            found = ENGINES[name](module, predict, batch, [cotangent])
            if truth is not None:
                _compare(found, truth, tolerance)
        except (NotCovered, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reasons[name] = str(error)
        else:
            routes = found.routes if isinstance(found, Norms) else {}
            return Plan(name, definition.samples if truth is not None else 0, reasons, routes)
    raise NotCovered("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def checked_samples(module: nn.Module) -> int:
    """See :data:`CHECK_SAMPLES`."""
    return CHECK_SAMPLES if sum(sizes(trainable(module).values())) <= LARGE else CHECK_SAMPLES // 2


def squared_norms(
    module: nn.Module, inputs: Any, cotangents: Tensor | Iterable[Tensor], engine: EngineName = "auto"
) -> dict[str, Tensor]:
    """Per-sample squared gradient norms ``‖J_nᵀ u_n‖²`` of ``module(inputs)``, summed over the cotangents.

    The engine is compared with plain autograd at the first call for a module, and again when its submodules, their
    modes, which parameters are trained, or the form of a sample have changed; :func:`choose_engine` always does.

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
    cotangents = [cotangents] if isinstance(cotangents, Tensor) else list(cotangents)
    plans, form = _PLANS.setdefault(module, {}), _form(module, inputs, engine)
    if form in plans:
        try:
            return plans[form].squared_norms(module, call, inputs, cotangents)
        except NotCovered:  # the module does something else with these inputs
            del plans[form]
    plan = choose_engine(module, call, inputs, engine)
    if plan.checked > 1:
        plans[form] = plan
    return plan.squared_norms(module, call, inputs, cotangents)


def _form(module: nn.Module, inputs: Any, engine: EngineName) -> Hashable:
    """What must not change for a plan to be used again."""
    parts = tuple((name, type(part), part.training) for name, part in module.named_modules())
    weights = tuple((name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in module.named_parameters())
    samples = tuple((leaf.shape[1:], leaf.dtype, leaf.device) for leaf in tensors(inputs))
    return engine, parts, weights, samples


def in_float64(module: nn.Module, predict: Predict, batch: Any) -> tuple[nn.Module, Any, float]:
    """A float64 copy of the module and batch and the tolerance to compare with, if it runs at all."""
    precise = float64_copy(module)
    if precise is not None:
        doubled = float64_tensors(batch)
        try:
            if predict(precise, doubled).dtype == torch.float64:
                return precise, doubled, 1e-6
        except (RuntimeError, ValueError, TypeError) as error:
            if is_out_of_memory(error):
                raise
    return module, batch, 0.05


def float64_copy(module: nn.Module) -> nn.Module | None:
    """None where it would be too large."""
    if has_large_frozen(module) or sum(p.numel() for p in module.parameters()) > CHECK_PARAMETERS:
        return None
    precise = deep_copy(module).double()
    precise._apply(in_double)  # type: ignore[no-untyped-call]  # what the line before leaves as it is: complex weights
    return precise


def float64_tensors(batch: Any) -> Any:
    """The batch with its floating-point tensors in float64."""
    return map_tensors(batch, in_double)


def _compare(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    total = torch.stack(list(truth.values())).sum(0)
    for name, expected in truth.items():
        if len(found[name]) != len(expected):
            raise NotCovered(f"{name} has values for {len(found[name])} samples instead of {len(expected)}")
        error = (found[name] - expected).abs() / torch.maximum(expected, 1e-6 * total).clamp_min(1e-300)
        if not (error <= tolerance).all():  # also where it is NaN
            worst = int(error.nan_to_num(torch.inf).argmax())
            raise NotCovered(
                f"{name} gives {found[name][worst].item():.4g} for a sample where plain autograd gives "
                f"{expected[worst].item():.4g}"
            )


def coverage(module: nn.Module, norms: dict[str, Tensor]) -> float:
    """Share of the trainable elements of the module whose per-sample norms are in ``norms``."""
    parameters = trainable(module)
    return sum(sizes(parameters[name] for name in norms)) / max(1, sum(sizes(parameters.values())))
