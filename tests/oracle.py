"""The Fisher trace by its definition, from the raw network and x alone: float64, one sample, one label at a time.

``tr F = E_x sum_y p(y|x) ‖∇ log p(y|x)‖²``, per parameter. Shares no code with the package.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def fisher_trace_by_definition(net: nn.Module, x: torch.Tensor, likelihood: str) -> dict[str, float]:
    """Contribution of each parameter, by name."""
    net = copy.deepcopy(net).double().eval()
    x = x.double() if x.is_floating_point() else x
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    total = dict.fromkeys(parameters, 0.0)
    for n in range(len(x)):
        z = net(x[n : n + 1])[0]
        for log_p, weight in _labels(z, likelihood):
            gradients = torch.autograd.grad(log_p, list(parameters.values()), retain_graph=True, allow_unused=True)
            for name, g in zip(parameters, gradients, strict=True):
                if g is not None:
                    total[name] += weight * g.square().sum().item() / len(x)
    return total


def _labels(z, likelihood):
    """Pairs of log p(y) and p(y); independent outputs add up, as their cross terms vanish in expectation."""
    if likelihood == "categorical":
        p = z.softmax(-1)
        return [(p[c].log(), p[c].item()) for c in range(len(z))]
    if likelihood == "bernoulli":
        p = z.sigmoid()
        pairs = [[(q.log(), q.item()), ((1 - q).log(), 1 - q.item())] for q in p.flatten()]
        return [pair for both in pairs for pair in both]
    # y ~ N(z, 1): ∇ log p(y) = (y - z) ∇z, and E (y - z)² = 1
    return [(mean, 1.0) for mean in z.flatten()]
