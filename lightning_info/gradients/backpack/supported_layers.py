"""What keeps BackPACK's second-order rules from a module: everything at once, each with the fix.

BackPACK goes back through calls of layers, by one rule for each exact type. Its converter makes layers of a few calls
of functions (sums, flatten, permute); any other call is one that it does not see. Which rules fail or are wrong in
which cases was measured, on version 1.7.1: see ``docs/fisher.md``.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from backpack.custom_module.branching import SumModule
from backpack.custom_module.graph_utils import BackpackTracer
from backpack.custom_module.permute import Permute
from backpack.custom_module.scale_module import ScaleModule
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lightning_info.gradients.contract import first_line, trainable
from lightning_info.gradients.taps import listed

_ROOT = "0."
"""The module is traced as the only part of an ``nn.Sequential``, so that it may itself be a layer."""


def obstacles(module: nn.Module, inputs: Tensor, *, kronecker: bool) -> list[str]:
    """All reasons why BackPACK's rules would fail, be wrong or leave out parameters.

    Args:
        module: A private copy, in eval mode.
        inputs: A few samples.
        kronecker: For Kronecker factors, whose rules are fewer.

    Returns:
        A text each; empty if there is none.
    """
    if not trainable(module):
        return ["none of its parameters requires a gradient"]
    found: dict[str, list[str]] = defaultdict(list)
    complex_weights = [name for name, p in module.named_parameters() if p.is_complex()]
    if complex_weights:
        found["a complex weight; its rules are for real ones"] = complex_weights
    for names in _tied(module):
        found["one parameter; give each layer its own"].append(" = ".join(names))
    for name, part in module.named_modules():
        if part.training and isinstance(part, _IN_TRAINING):
            found["in train mode, random or with statistics over samples; call .eval()"].append(name)
    found.update(_in_graph(module, inputs, kronecker))
    return [f"{listed(names)}: {reason}" for reason, names in found.items()]


def _in_graph(module: nn.Module, inputs: Tensor, kronecker: bool) -> dict[str, list[str]]:
    root = nn.Sequential(module)
    try:
        traced = fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:  # of the module's own code, which does not get tensors here
        reason = f"torch.fx cannot follow its forward pass ({first_line(error)}); leave out what depends on values"
        return {reason: [type(module).__name__]}
    graph = traced.graph
    graph.eliminate_dead_code()
    _Annotated(traced).run(inputs.clone())
    layers = dict(root.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    found: dict[str, list[str]] = defaultdict(list)
    for node in graph.nodes:
        if not node.meta[_TRAINED]:
            continue
        if node.op == "call_module":
            layer = layers[node.target]
            reason = _call(layer, node, calls[node.target], kronecker)
            where = node.target[len(_ROOT) :] or type(layer).__name__
        elif node.op == "get_attr":
            reason = _attribute(node)
            where = node.target[len(_ROOT) :]
        elif node.op in ("call_function", "call_method"):
            reason = _function(node, kronecker)
            where = f"{_name(node)}() in {_owner(node, layers)}"
        else:
            continue
        if reason:
            found[reason].append(where)
    return found


class _Tracer(BackpackTracer):  # type: ignore[misc]
    """Goes into no layer, be it of a subclass, so that it can be named."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(LAYERS)) or bool(super().is_leaf_module(m, module_qualified_name))


class _Annotated(fx.Interpreter):
    """Notes of each result its shape, and whether trained parameters enter it: for no other there must be a rule."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[_TRAINED] = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(result))
        n.meta[_SHAPE] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


_TRAINED, _SHAPE = "lightning_info_trained", "lightning_info_shape"


def _tied(module: nn.Module) -> list[list[str]]:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, part in module.named_modules():
        for slot, p in part._parameters.items():
            if p is not None and p.requires_grad:
                owners[id(p)].append(f"{name}.{slot}".removeprefix("."))
    return [names for names in owners.values() if len(names) > 1]


def _call(layer: nn.Module, node: fx.Node, times: int, kronecker: bool) -> str:
    kind = type(layer).__name__
    check = LAYERS.get(type(layer))
    if check is None:
        base = next((known.__name__ for known in LAYERS if isinstance(layer, known)), None)
        return f"no rule for {kind}" + (f"; use {base} itself, not a subclass" if base else "")
    if kronecker and type(layer) not in KRONECKER:
        return f"no rule with Kronecker factors for {kind}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "no rule for what a forward hook makes of its input or output; write that into a forward method"
    if times > 1 and list(layer.parameters()):
        return f"called {times} times; use as many layers"
    if (len(node.args) != 1 or node.kwargs) and not isinstance(layer, SumModule):
        return "called with more than one argument"
    if kronecker and getattr(layer, "groups", 1) != 1:
        return "no Kronecker factors of convolutions with groups"
    if kronecker and isinstance(layer, nn.Linear) and len(shape := node.all_input_nodes[0].meta[_SHAPE]) != 2:
        return f"no Kronecker factors with inputs {shape}, only with (N, features)"
    return check(layer)


def _attribute(node: fx.Node) -> str:
    users = ", ".join(dict.fromkeys(_name(user) for user in node.users))
    return f"no rule for a parameter that no layer of torch.nn owns and uses, but {users}()"


def _function(node: fx.Node, kronecker: bool) -> str:
    if any(source.op == "get_attr" and source.meta[_TRAINED] for source in node.all_input_nodes):
        return ""  # said of the parameter
    check = CONVERTED.get(node.target)
    if check is None:
        return "no rule for calls of functions; write a layer of torch.nn that has a rule"
    if kronecker and check in (_permute, _transpose):
        return "no rule with Kronecker factors"
    return "with keywords; give all arguments by position" if node.kwargs else check(node)


def _sum(node: fx.Node) -> str:
    shapes = {value.meta[_SHAPE] if isinstance(value, fx.Node) else None for value in node.args}
    return "" if len(shapes) == 1 else "a rule only for the sum of two tensors of one shape"


def _product(node: fx.Node) -> str:
    constants = sum(type(value) is float for value in node.args)
    return "" if constants == 1 else "a rule only for the product with a constant float"


def _flatten(node: fx.Node) -> str:
    return "" if len(node.args) > 1 and node.args[1] != 0 else "the sample axis must stay; use flatten(1)"


def _permute(node: fx.Node) -> str:
    axes: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
    return "" if axes[0] == 0 and all(axis > 0 for axis in axes[1:]) else _AXES


def _transpose(node: fx.Node) -> str:
    axes: Any = node.args[1:]
    return "" if all(axis > 0 for axis in axes) else _AXES


def _item(node: fx.Node) -> str:
    is_tuple = node.all_input_nodes[0].meta[_SHAPE] is None
    return "" if is_tuple and node.args[1] == 0 else "a rule only for taking all outputs of a recurrent layer"


_AXES = "axis 0 must stay, and axes be counted from the front"
CONVERTED: dict[Any, Callable[[fx.Node], str]] = {
    **dict.fromkeys((operator.add, "add"), _sum),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    operator.mul: _product,
    operator.getitem: _item,
}
"""Functions of which BackPACK's converter makes layers, and what is checked of a call."""


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _owner(node: fx.Node, layers: dict[str, nn.Module]) -> str:
    path = next(reversed(node.meta.get("nn_module_stack") or {"0": None}))
    return type(layers[path]).__name__


def _fine(layer: Any) -> str:
    return ""


def _convolution(layer: Any) -> str:
    if isinstance(layer.padding, str):
        return f"no rule for padding={layer.padding!r}; give a number"
    if layer.padding_mode != "zeros" and any(layer.padding):
        return f"padding_mode={layer.padding_mode!r} is taken for 'zeros'"
    if any(layer.output_padding):
        return "output_padding is left out"
    return ""


def _batch_norm(layer: Any) -> str:
    if not layer.track_running_stats:
        return "track_running_stats=False; statistics over the batch mix samples"
    return "" if layer.affine else "no rule for affine=False"


def _max_pool(layer: Any) -> str:
    return "no rule for return_indices=True" if layer.return_indices else ""


def _zero_pad(layer: Any) -> str:
    return "no rule for negative padding" if min(layer.padding) < 0 else ""


def _embedding(layer: Any) -> str:
    return "its rule fails in float64, so that it cannot be compared"


def _recurrent(layer: Any) -> str:
    plain = layer.bias and layer.batch_first and layer.num_layers == 1 and not layer.bidirectional
    if plain and layer.proj_size == 0 and getattr(layer, "nonlinearity", "tanh") == "tanh":
        return ""
    return "a rule only for one layer, one direction, batch_first, with biases, tanh, without projection"


_IN_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
"""Averages: the stock rules are replaced, see :mod:`~.ggn`."""
LAYERS: dict[type[nn.Module], Callable[[Any], str]] = {
    **dict.fromkeys((nn.Linear, nn.Flatten, nn.Identity, SumModule, ScaleModule, Permute), _fine),
    **dict.fromkeys((nn.Dropout, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.LogSigmoid, nn.ELU, nn.SELU), _fine),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool),
    **dict.fromkeys(POOLS, _fine),
    **dict.fromkeys((nn.RNN, nn.LSTM), _recurrent),
    nn.ZeroPad2d: _zero_pad,
    nn.Embedding: _embedding,
}
"""Types with a rule, and what is checked of a layer."""
KRONECKER = {
    *(nn.Linear, nn.Flatten, nn.Identity, nn.ZeroPad2d, SumModule, ScaleModule),
    *(nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d),
    *CONVOLUTIONS,
}
"""Those of them with a rule for Kronecker factors."""
