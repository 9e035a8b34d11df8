"""What the engines know of a layer type, and the registry that they look it up in.

A layer type is one :class:`Layer` in one file: how its calls are recognised, its squared-norm rules and its per-output
gradients. :func:`register` enters it. The engines ask for a call by the torch function that is called, and for a rule
by the type of the call's stand-in, each a look-up in a dictionary; nothing outside this folder names a layer type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_info.gradients.layer_gradients import Rows

Function = Callable[..., Any]
"""A function of torch, or of the user's that hands its calls to ``torch.overrides.handle_torch_function``."""

NormRule = Callable[[Any, Tensor, Tensor], Tensor]
"""``(stand-in, x (N, ...), g (N, ...)) -> (N,)``: squared norms of the samples' gradients at one parameter."""

BothNorms = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The same of weight and bias at once."""

GradientRule = Callable[[Any, Tensor, Tensor], Rows]
"""``(stand-in, x (N, ...), g (N, C, ...))``: the gradients at one parameter for each of C cotangents."""

InputAndGradient = tuple[Tensor, Tensor]
"""``x (N, ...)`` and ``g (N, ...)`` of one call."""

CrossTerm = Callable[[Any, InputAndGradient, Any, InputAndGradient], Tensor]
"""``(stand-in, its (x, g), another stand-in, its (x, g)) -> (N,)``: inner products of their gradients at one weight."""

SampleAxes = tuple[int | None, ...]
"""Where each of several tensors has the sample axis; None if it has none."""

OnAllSamples = Callable[[int, SampleAxes, tuple[Tensor, ...]], Tensor]
"""``(N, sample axes, tensors that hold all samples) -> output`` with the samples on axis 0."""


@dataclass
class Operator:
    """One call of a torch function, read as a layer.

    Attributes:
        module: The stand-in for the layer: a module without weights of its own, with the settings of the call
            (:func:`stand_in`).
        inputs: What the layer acts on.
        weight: As given to the call; None if it has none.
        bias: The same.
        axes: Number of last axes of ``inputs`` that the layer acts on (those before them are positions); None if
            ``inputs`` are ``(rows, C, *positions)``.
        key: Equal for calls whose gradients one rule can sum over all their positions; None if there is no such rule.
        refused: Why samples have no gradients of their own here; empty if they have.
        is_unbatched: The inputs are ``(C, *positions)``, without the axis of rows.
        unfolded: How many numbers the per-output gradients make of one of the input.
    """

    module: nn.Module
    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None
    axes: int | None
    key: tuple[Any, ...] | None
    refused: str = ""
    is_unbatched: bool = False
    unfolded: int = 1

    @property
    def layer(self) -> Layer:
        """The layer type, with its rules."""
        return LAYERS[type(self.module)]


@dataclass(frozen=True, eq=False)
class Layer:
    """All that the engines know of one layer type.

    Rules are by the stand-in's name of a parameter, ``"weight"`` or ``"bias"``. They take ``x`` and ``g`` in the form
    of :func:`by_sample`, and must sum over all positions that these hold.

    Attributes:
        name: What users read, for example ``"linear"``.
        modules: Types of the stand-ins; of layers in ``torch.nn`` the very types, so that :class:`~..SquaredGradNorm`
            runs on these as well.
        calls: Torch functions -> a reader of their arguments, which gives None where the call is no such layer.
        squared_norms: Squared norms of the per-sample gradients.
        both_norms: The same of weight and bias together, where that is cheaper than one after the other.
        gradients: Per-output gradients, from which Gram matrices are made.
        cross_terms: Layer types that may use the same weight, and the inner product of the two gradients.
        extra_axes: By how many axes a position of the output is larger than one of the input.
        takes_complex: The rules are right for complex weights too.
        takes_matrix: The inputs of all samples go through the call as one matrix.
        opened: Functions that hide calls of layers -> what is run in their place, with the same arguments.
        fused: The same with fewer operations, for engines that take all samples at once and go backward once: not under
            ``torch.vmap``.
        under_vmap: Functions that ``torch.vmap`` does not take, or takes wrongly -> what is run in their place. It gets
            ``apply(rule, *tensors)``, which calls a rule (:data:`OnAllSamples`), and the arguments.
    """

    name: str
    modules: tuple[type[nn.Module], ...] = ()
    calls: Mapping[Function, Callable[..., Operator | None]] = field(default_factory=dict)
    squared_norms: Mapping[str, NormRule] = field(default_factory=dict)
    both_norms: BothNorms | None = None
    gradients: Mapping[str, GradientRule] = field(default_factory=dict)
    cross_terms: Mapping[Layer, CrossTerm] = field(default_factory=dict)
    extra_axes: int = 0
    takes_complex: bool = False
    takes_matrix: bool = False
    opened: Mapping[Function, Function] = field(default_factory=dict)
    fused: Mapping[Function, Function] = field(default_factory=dict)
    under_vmap: Mapping[Function, Function] = field(default_factory=dict)

    def norms(self, slots: Collection[str], module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Squared norms ``(N,)`` of the gradients at some of ``"weight"`` and ``"bias"``.

        Args:
            slots: At which.
            module: The stand-in.
            x: As rules take it.
            g: The same.
        """
        if self.both_norms is not None and len(slots) == 2:
            return dict(zip(("weight", "bias"), self.both_norms(module, x, g), strict=True))
        return {slot: self.squared_norms[slot](module, x, g) for slot in slots}


LAYERS: dict[type[nn.Module], Layer] = {}
"""By type of the stand-in."""
READERS: dict[Function, Callable[..., Operator | None]] = {}
OPENED: dict[Function, Function] = {}
FUSED: dict[Function, Function] = {}
UNDER_VMAP: dict[Function, Function] = {}


def register(layer: Layer) -> Layer:
    """Let all engines know a layer type; it takes the place of what was known of the same functions and modules."""
    LAYERS.update(dict.fromkeys(layer.modules, layer))
    READERS.update(layer.calls)
    OPENED.update(layer.opened)
    FUSED.update(layer.fused)
    UNDER_VMAP.update(layer.under_vmap)
    return layer


def read(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operator | None:
    """The call of a known layer, or None; calls with complex weights are known only of some."""
    reader = READERS.get(func)
    if reader is None:
        return None
    try:
        operator = reader(*args, **kwargs)
    except (TypeError, KeyError, AttributeError, IndexError):  # a call of a form that is not known here
        return None
    if operator is None or operator.weight is None or not operator.weight.is_complex():
        return operator
    return operator if operator.layer.takes_complex else None


def stand_in(kind: type[nn.Module], **settings: Any) -> nn.Module:
    """A module of the type with the settings as attributes, without its constructor, which would draw weights."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    vars(module).update(settings, training=False)
    return module


def by_sample(
    operator: Operator, tensor: Tensor, samples: int, *, is_output: bool = False, rows: bool = False
) -> Tensor:
    """Bring an operator's input or output gradient into the form that rules take, and that can be joined on an axis.

    Args:
        operator: The operator.
        tensor: All positions of the first sample, then those of the second, and so on.
        samples: N.
        is_output: It is the gradient at the output.
        rows: Keep the axis of a sample's own rows where there is only one.

    Returns:
        ``(N, positions, *)``; with the channels first ``(N, C, rows, *positions)``.
    """
    if operator.axes is not None:
        axes = operator.axes + (operator.layer.extra_axes if is_output else 0)
        return tensor.reshape(samples, -1, *tensor.shape[tensor.dim() - axes :])
    if not rows and len(tensor) == samples:
        return tensor
    return tensor.reshape(samples, -1, *tensor.shape[1:]).transpose(1, 2)
