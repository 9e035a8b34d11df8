"""What BackPACK's second-order rules give, compared with plain autograd in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_info.gradients.backpack.supported_layers import CONVOLUTIONS
from lightning_info.gradients.contract import NotCovered, trainable

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def check_diagonal(net: nn.Module, inputs: Tensor, columns: Tensor, found: dict[str, Tensor]) -> None:
    """Each element against ``sum_v sum_n (J_nᵀ u_nv)²``, one backward pass per sample and column.

    Args:
        net: A float64 copy that BackPACK has not seen.
        inputs: ``(N, ...)``; all go forward together, so that a mixing of samples shows.
        columns: ``(V, *outputs.shape)``; zero for all but the first two samples.
        found: The diagonals by name.

    Raises:
        NotCovered: An element differs.
    """
    parameters = {name: p for name, p in trainable(net).items() if name in found}
    truth = {name: torch.zeros_like(p) for name, p in parameters.items()}
    outputs = net(inputs.clone())
    for u in columns:
        for n in range(min(2, len(inputs))):
            alone = torch.zeros_like(u)
            alone[n] = u[n]
            gradients = torch.autograd.grad(outputs, list(parameters.values()), alone, retain_graph=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                truth[name] += gradient.square()
    for name, expected in truth.items():
        _compare(f"the diagonal of {name}", found[name], expected)


def check_factors(net: nn.Module, inputs: Tensor, columns: Tensor, found: dict[str, list[Tensor]]) -> None:
    """Both factors of each layer, whose product only is an approximation.

    - G, the block of a bias: outer products of gradients at the layer's output, summed over its positions first.
    - A: the layer is linear in its weight W, so without bias ``½‖y(W)‖²`` has the gradient ``N W A``; at a random W.

    For one sample, and a linear layer, ``G ⊗ A`` is then its block of F.

    Args:
        net: A float64 copy that BackPACK has not seen.
        inputs: ``(N, ...)``.
        columns: ``(V, *outputs.shape)``.
        found: The factors by name.

    Raises:
        NotCovered: A factor differs.
    """
    calls: dict[nn.Module, tuple[Tensor, GradientEdge]] = {}

    def note(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            calls[layer] = (args[0].detach().clone(), get_gradient_edge(output))

    for part in net.modules():
        if isinstance(part, (nn.Linear, *CONVOLUTIONS)):
            part.register_forward_hook(note)
    outputs = net(inputs.clone())
    edges = [edge for _, edge in calls.values()]
    factors: dict[nn.Module, Any] = dict.fromkeys(calls, 0)
    for u in columns:
        for layer, g in zip(calls, torch.autograd.grad(outputs, edges, u, retain_graph=True), strict=True):
            summed = g.flatten(2).sum(2) if g.dim() > 2 else g
            factors[layer] = factors[layer] + summed.mT @ summed
    names = {id(p): name for name, p in trainable(net).items()}
    for layer, (x, _) in calls.items():
        _check_layer(layer, names, x, factors[layer], found)


def _check_layer(layer: Any, names: dict[int, str], x: Tensor, factor: Tensor, found: dict[str, list[Tensor]]) -> None:
    weight, bias = names.get(id(layer.weight)), names.get(id(layer.bias))
    if bias is not None:
        _compare(f"the factor of {bias}", found[bias][0], factor)
    if weight is not None:
        output_factor, input_factor = found[weight]
        _compare(f"the output's factor of {weight}", output_factor, factor)
        w = torch.randn_like(layer.weight).requires_grad_()
        without_bias = {} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)}
        y = torch.func.functional_call(layer, {"weight": w, **without_bias}, (x,))
        (gradient,) = torch.autograd.grad(y.square().sum() / 2, w)
        rows = [(p.transpose(0, 1) if isinstance(layer, _TRANSPOSED) else p).flatten(1) for p in (w.detach(), gradient)]
        _compare(f"the input's factor of {weight}", rows[0] @ input_factor, rows[1] / len(x))


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise NotCovered(f"{what} has shape {tuple(found.shape)}, by plain autograd {tuple(expected.shape)}")
    error = (found - expected).abs()
    if not (error <= 1e-6 * expected.abs() + 1e-9 * expected.abs().max()).all():  # also where it is NaN
        worst = int(error.nan_to_num(torch.inf).argmax())
        values = f"{found.flatten()[worst].item():.4g}, by plain autograd {expected.flatten()[worst].item():.4g}"
        raise NotCovered(f"{what} by BackPACK has an element {values}")
