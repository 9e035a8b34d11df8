"""What the tests of the engines share: a module from a function, and the truth by one backward pass per sample."""

from __future__ import annotations

import torch
from torch import nn

from lightning_info.gradients import NotCovered, choose_engine, gram_matrix
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


def check_rules(layer, x):
    """The rules of one layer are right, its squared norms and its per-output gradients; parameters are drawn.

    Affine parameters and running statistics at their defaults would make wrong rules look right.
    """
    for tensor in [*layer.parameters(), *layer.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    net, x = nn.Sequential(layer, nn.Tanh()).double().eval(), x.double() if x.is_floating_point() else x
    columns = torch.randn(3, *net(x).shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((net(x) * u)[n].sum(), list(net.parameters())) for n in range(len(x)) for u in columns
    ]
    found = ENGINES["backpack"](net, call, x, columns)
    for name, rows in zip(found, zip(*gradients, strict=True), strict=True):
        squares = torch.stack(rows).flatten(1).square().sum(1)
        torch.testing.assert_close(found[name], squares.view(len(x), 3).sum(1), rtol=1e-11, atol=1e-13)
    whole = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients])
    gram = gram_matrix(net, x, columns, diagonal=True, engine="taps")
    torch.testing.assert_close(gram.matrix, whole @ whole.T, rtol=1e-11, atol=1e-11)
    squares = torch.cat([values.flatten() for values in gram.diagonal.values()])
    torch.testing.assert_close(squares, whole.square().sum(0), rtol=1e-11, atol=1e-12)
