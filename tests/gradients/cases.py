"""What the tests of the engines share: a module from a function, and the truth by one backward pass per sample."""

from __future__ import annotations

import torch
from torch import nn

from lightning_info.gradients import NotCovered, choose_engine
from lightning_info.gradients.plan import ENGINES

N = 4


class Net(nn.Module):
    """Parts, and a forward pass given as a function of the module and the input."""

    def __init__(self, body, **parts):
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.body(self, x)


def call(module, x):
    return module(x)


def head(features):
    return nn.Linear(features, 3)


def bare(**shapes):
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def real(*shape):
    return torch.randn(N, *shape)


def tokens(*shape):
    return torch.randint(0, 9, (N, *shape))


def prepared(net, x):
    """In float64 and eval mode; BatchNorm away from the identity, where wrong rules look right."""
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.running_mean, part.running_var, part.weight.data):
                tensor.uniform_(0.5, 1.5)
    return net.double().eval(), x.double() if x.is_floating_point() else x


def one_at_a_time(net, x, u):
    """Each sample alone, plain autograd."""
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    rows = []
    for n in range(len(x)):
        loss = (net(x[n : n + 1]) * u[n : n + 1]).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        rows.append(torch.stack([torch.zeros_like(u[0, 0]) if g is None else g.square().sum() for g in gradients]))
    return dict(zip(parameters, torch.stack(rows, 1), strict=True))


def assert_same(found, truth):
    assert found.keys() == truth.keys()
    scale = max(values.max().item() for values in truth.values())
    for name, values in truth.items():
        torch.testing.assert_close(
            found[name], values, rtol=1e-10, atol=1e-14 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def check(net, x, engine):
    """``"auto"`` takes the engine and is right; vmap taps are right or refuse."""
    net, x = prepared(net, x)
    u = torch.randn_like(net(x))
    truth = one_at_a_time(net, x, u)
    plan = choose_engine(net, call, x)
    assert plan.engine == engine, plan.reasons
    assert_same(plan.squared_norms(net, call, x, [u]), truth)
    try:
        found = ENGINES["backpack_vmap"](net, call, x, [u])
    except NotCovered:
        assert engine != "backpack_vmap"
    else:
        assert_same(found, truth)
