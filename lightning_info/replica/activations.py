"""The activations of a replica's forward pass: what every module gives, and every activation function that it calls.

Modules are seen through forward hooks that live as long as the pass; functions such as ``torch.relu`` through a
``TorchFunctionMode``. What is seen is reduced to one row of units a sample at once: later operations may write to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lightning_info.functional.likelihoods import Product
from lightning_info.replica.experiments import is_experiment
from lightning_info.replica.padding import Padding, of_positions
from lightning_info.replica.predicted import Prediction
from lightning_info.replica.shown_tensor import description, shown_tensor
from lightning_info.replica.unit_rows import SampleAxis, all_rows, by_channel, by_sample, mean_of, shown_units, units

_FUNCTIONS = {
    "celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid",
    "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh",
    "tanhshrink", "threshold",
}  # fmt: skip
_INVERTIBLE = {"elu", "celu", "leaky_relu", "log_sigmoid", "selu", "sigmoid", "softplus", "softsign", "tanh"}
_INVERTIBLE_MODULES = (
    nn.ELU, nn.CELU, nn.LeakyReLU, nn.LogSigmoid, nn.SELU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip
_NO_ACTIVATION = (
    activation.MultiheadAttention, activation.Softmax, activation.LogSoftmax, activation.Softmax2d, activation.Softmin,
)  # fmt: skip
_CHANNELS_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm")
_CHANNELS_LAST = {
    "linear", "bilinear", "embedding", "layer_norm", "rms_norm", "lstm", "gru", "rnn_tanh", "rnn_relu",
    "multi_head_attention_forward",
}  # fmt: skip
_MOVES_AXES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}

LOSS = "the mask of the loss"
"""Name of what the loss leaves out, as a source of padding."""


@dataclass(frozen=True)
class Call:
    """One call that gives activations.

    Attributes:
        name: Dotted name of the module, with that of the activation function behind the module that calls it.
        index: Calls of that name before this one in the pass.
        kind: Class of the module, or name of the function.
        is_activation: It is an activation function, or a module without parameters or others inside that calls one.
        has_weights: It is a module that owns parameters.
        follows: It is an activation function of what the call that was shown before it gave.
        learns: A gradient goes back through what it gives: not behind ``no_grad``, or weights that are all frozen.
        channels_first: The channels are on axis 1, as those of the layer with weights that ran last (unless they were
            moved since, which the length of the axes tells).
    """

    name: str
    index: int
    kind: str
    is_activation: bool
    has_weights: bool
    channels_first: bool
    follows: bool = False
    learns: bool = True


OUTPUTS_CALL = Call("", 0, "", is_activation=False, has_weights=False, channels_first=False)
"""Stands for what the module predicts, where no call gives it as it is."""


@dataclass(frozen=True)
class Layer:
    """A call whose activations are measured.

    Attributes:
        label: What it is called in tags: its name, with ``:index`` if it is called more than once.
        name: See :class:`Call`; empty for what the module predicts, where no call gives it as it is.
        index: See :class:`Call`.
        kind: See :class:`Call`.
        samples: Where its samples are.
        units: Units of a sample, after the mean over positions.
        positions: A mean over positions (pixels, tokens) was taken.
        padding: What tells which of them are left out of the mean; empty if nothing does.
        is_discrete: Its units are integers or booleans, those at all positions together: no mean is taken of codes.
        channels_first: See :class:`Call`. None if it is not known before a pass, which then looks at all calls.
    """

    label: str
    name: str
    index: int
    kind: str
    samples: SampleAxis
    units: int
    positions: bool
    padding: str = ""
    is_discrete: bool = False
    channels_first: bool | None = field(default=None, compare=False)


@dataclass
class Activation:
    """What a layer gives for a batch.

    Attributes:
        units: ``(N, units)``; of complex values real and imaginary part, integers as they are (booleans as uint8).
        shown: ``(N, at most SHOWN_UNITS)``, the values at single positions.
        before: What an invertible activation function took, like ``units``: the same information, without saturation.
            None for another layer, where a mean over positions was taken, and where the call overwrote it.
        rows: ``(N, channels, positions)``, all activations of a layer that is no code, if a reader asks for them; 0 at
            positions that are padding.
    """

    units: Tensor
    shown: Tensor
    before: Tensor | None = None
    rows: Tensor | None = None


@dataclass
class _Running:
    """A module that runs.

    Attributes:
        name: Of the module.
        is_whole: The functions that it calls are not shown apart: an activation function written as a module.
        activates: It calls one.
    """

    name: str
    is_whole: bool
    activates: bool = False


See = Callable[[Call, Tensor, Tensor | None], None]
C = TypeVar("C", bound="Capture")


class Capture(TorchFunctionMode):
    """Shows every call of a pass to a function; leaves nothing behind. Modules of TorchScript are not seen.

    Args:
        module: A replica; None to see no modules.
        see: Takes the call, its output, and what an invertible activation function took. What it raises is kept in
            :attr:`error`, and the pass goes on.
        known: Calls of modules by name and index, and whether they have channels first, from a pass before: nothing
            else is looked at then.

    Attributes:
        error: What ``see`` raised first.
        unseen: What the calls gave that have no activations to show, by name and by kind.
    """

    def __init__(self, module: nn.Module | None, see: See, known: Mapping[tuple[str, int], bool] | None = None) -> None:
        super().__init__()
        self._known, self._is_mode = known, False
        self.error: Exception | None = None
        self.unseen: dict[str, str] = {}
        self._module, self._see = module, see
        self._handles: list[RemovableHandle] = []
        self._running: list[_Running] = []
        self._calls: Counter[str] = Counter()
        self._channels_first, self._channels, self._axes_moved = False, 0, False
        self._shown: tuple[int, torch.Size] | None = None  # where the last tensor is

    def __enter__(self: C) -> C:
        """Hook the modules."""
        if self._known is not None and self._module is not None:
            for name in dict.fromkeys(name for name, _ in self._known):
                part = self._module.get_submodule(name)
                self._handles.append(part.register_forward_pre_hook(partial(self._begins, name, True)))
                self._handles.append(part.register_forward_hook(partial(self._ends, name), always_call=True))
            return self
        for name, part in () if self._module is None else self._module.named_modules():
            if name and not isinstance(part, torch.jit.ScriptModule):
                is_leaf, owns_none = next(part.children(), None) is None, next(part.parameters(False), None) is None
                is_whole = is_leaf and (owns_none or _is_activation(part))
                self._handles.append(part.register_forward_pre_hook(partial(self._begins, name, is_whole)))
                self._handles.append(part.register_forward_hook(partial(self._ends, name), always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        self._is_mode = True
        return self

    def __exit__(self, *exception: Any) -> None:
        """Unhook them."""
        if self._is_mode:
            super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name in _FUNCTIONS:
            if self._running and self._running[-1].is_whole:
                self._running[-1].activates = True
            else:
                owner = f"{self._running[-1].name}." if self._running else ""
                self._show(owner + name, name, result, True, False, args, name in _INVERTIBLE)
        elif name in _MOVES_AXES:
            self._axes_moved = True
        else:
            self._note_channels(name, args, result)
        return result

    def _note_channels(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        first = name.startswith(_CHANNELS_FIRST)
        over_channels_and_pixels = name.endswith("norm") and len(args) > 1 and _length(args[1]) > 1
        if first or (name in _CHANNELS_LAST and not over_channels_and_pixels):
            tensor = shown_tensor(result)
            if tensor is not None and tensor.dim() > 1:
                self._channels_first, self._axes_moved = first, False
                self._channels = tensor.shape[1 if first else -1]

    def _has_channels_first(self, tensor: Tensor) -> bool:
        first = self._channels_first
        if self._axes_moved and tensor.dim() > 2:
            here, there = tensor.shape[1 if first else -1], tensor.shape[-1 if first else 1]
            return not first if there == self._channels != here else first
        return first

    def _begins(self, name: str, is_whole: bool, module: nn.Module, args: Any) -> None:
        self._running.append(_Running(name, is_whole))

    def _ends(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        running = self._running.pop()
        is_activation = running.activates or _is_activation(module)
        has_weights = next(module.parameters(recurse=False), None) is not None
        is_invertible, owns = isinstance(module, _INVERTIBLE_MODULES), has_weights and not is_activation
        self._show(name, type(module).__name__, output, is_activation, owns, args, is_invertible)

    def _show(
        self, name: str, kind: str, output: Any, is_activation: bool, has_weights: bool, args: Any, is_invertible: bool
    ) -> None:
        if is_experiment():
            return
        index = self._calls[name]
        self._calls[name] += 1
        with torch._C.DisableTorchFunction():  # what is done here is no part of the pass
            tensor = shown_tensor(output)
            if tensor is not None:
                first = (
                    self._has_channels_first(tensor) if self._known is None else self._known.get((name, index), False)
                )
                taken = args[0] if args and isinstance(args[0], Tensor) else None
                follows = is_activation and taken is not None and _place(taken) == self._shown
                call = Call(name, index, kind, is_activation, has_weights, first, follows, tensor.requires_grad)
                is_whole = is_invertible and taken is not None and taken.data_ptr() != tensor.data_ptr()
                self._hand_over(call, tensor.detach(), taken.detach() if is_whole and taken is not None else None)
                self._shown = _place(tensor)
            else:
                self.unseen[name] = self.unseen[kind] = description(output)

    def _hand_over(self, call: Call, tensor: Tensor, before: Tensor | None = None) -> None:
        try:
            self._see(call, tensor, before)
        except Exception as error:
            self.error = self.error or error


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


class LayerCapture(Capture):
    """Keeps what some layers give for a batch.

    Args:
        module: A replica.
        layers: The layers; with none of them the pass is left alone.
        samples: N.
        known: See :class:`Capture`; by default what the layers say of themselves, if all do and are modules.
        everywhere: Whether :attr:`Activation.rows` are kept.

    Attributes:
        activations: By label; of layers that did not run there is none.
        calls: Those that gave them, by name and index, and whether they have channels first.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Collection[Layer],
        samples: int,
        known: Mapping[tuple[str, int], bool] | None = None,
        everywhere: bool = False,
    ) -> None:
        known = _known(module, layers) if known is None else known
        super().__init__(module if layers else None, self._keep, known)
        self.calls: dict[tuple[str, int], bool] = {}
        self.activations: dict[str, Activation] = {}
        self._wanted = {(layer.name, layer.index): layer for layer in layers}
        self._samples, self._everywhere = samples, everywhere
        self._padded: dict[str, Tensor] = {}  # by label, channels on axis 1: until it is known where the padding is

    def take_outputs(self, prediction: Prediction) -> None:
        """What the pass was for: the outputs, where they are among the layers and no call gives them, and its padding.

        A mean over positions then leaves out those that the prediction or the batch tells to be none.
        """
        self._hand_over(OUTPUTS_CALL, outputs_of(prediction))
        if self._padded:
            masks = masks_of(prediction)
            for label, rows in self._padded.items():
                mask = of_positions(masks, self._samples, rows.shape[2])
                if mask is not None:
                    activation = self.activations[label]
                    activation.units = mean_of(rows, mask.kept)
                    if activation.rows is not None:
                        activation.rows = torch.where(mask.kept.to(rows.device)[:, None], activation.rows, 0)
            self._padded.clear()

    def _keep(self, call: Call, tensor: Tensor, before: Tensor | None) -> None:
        layer = self._wanted.get((call.name, call.index))
        if layer is not None:
            self.calls[call.name, call.index] = call.channels_first
            rows = by_sample(tensor, self._samples, layer.samples)
            values = units(rows, call.channels_first, layer.samples)
            if values.shape == (self._samples, layer.units):  # else it has other units, of a longer sequence, say
                alike = before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype)
                same = alike and not layer.positions
                taken = by_sample(before, self._samples, layer.samples) if before is not None and same else None
                flat = None if taken is None else units(taken, call.channels_first, layer.samples).clone()
                whole = all_rows(rows, call.channels_first, layer.samples) if self._everywhere else None
                self.activations[layer.label] = Activation(values.clone(), shown_units(rows), flat, whole)
                if layer.padding:
                    self._padded[layer.label] = by_channel(rows, call.channels_first, layer.samples).clone()


def _known(module: nn.Module, layers: Collection[Layer]) -> dict[tuple[str, int], bool] | None:
    """Calls of modules that give all of the layers; None where one is no module, or its channels are not known."""
    modules, known = {name for name, _ in module.named_modules()}, {}
    for layer in layers:
        if layer.name:
            if layer.channels_first is None or layer.name not in modules:
                return None
            known[layer.name, layer.index] = layer.channels_first
    return known


def outputs_of(prediction: Prediction) -> Tensor:
    """Without a graph, and a predicted variance beside its mean on the last axis."""
    outputs, y = prediction.outputs.detach(), prediction.targets
    if prediction.unknown:
        return outputs
    has_variance = prediction.likelihood == "gaussian" and y is not None and outputs.dim() == y.dim() + 1
    return outputs.flatten(-2) if has_variance and outputs.dim() > 2 else outputs


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == activation.__name__ and not isinstance(module, _NO_ACTIVATION)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (tuple, list)) else 1


def masks_of(prediction: Prediction) -> list[Padding]:
    """What tells which positions of a sample are none; the first of them that fits a layer is taken."""
    masks, mask = [], prediction.mask
    if mask is not None and mask.dim() > 1 and not isinstance(prediction.likelihood, Product):
        masks.append(Padding(LOSS, mask))
        if prediction.likelihood != "categorical" and mask.dim() > 2:  # of every output of a position
            masks.append(Padding(LOSS, mask.any(-1)))
    return masks + prediction.padding()
