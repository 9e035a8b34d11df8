"""What the rules of several layers share, and the extension that runs them."""

from __future__ import annotations

import backpack
import torch
from torch import nn

from lightning_info.gradients import SquaredGradNorm, choose_engine, norms, squared_norms


def test_a_long_gradient_is_summed_to_its_end():
    gradient = torch.randn(2, 3, 70_000)
    torch.testing.assert_close(
        norms.squared_norm(gradient).double(), gradient.double().square().sum((1, 2)), rtol=1e-5, atol=0
    )


def test_several_cotangents_add_up():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), torch.randn(5, 4).double()
    u = torch.randn(2, 5, 3, dtype=torch.float64)
    both = squared_norms(net, x, u.unbind())
    for name, value in both.items():
        alone = squared_norms(net, x, u[0])[name] + squared_norms(net, x, u[1])[name]
        torch.testing.assert_close(value, alone, rtol=1e-12, atol=0)


def test_nothing_is_left_on_the_module():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    before = {name: set(vars(part)) for name, part in net.named_modules()}
    x = torch.randn(4, 1, 4, 4)
    plan = choose_engine(net, lambda m, b: m(b), x)
    plan.squared_norms(net, lambda m, b: m(b), x, [torch.randn(4, 3)])
    assert plan.engine == "backpack"
    assert {name: set(vars(part)) for name, part in net.named_modules()} == before
    for part in net.modules():
        assert not part._forward_hooks
        assert not part._backward_hooks
    for parameter in net.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, SquaredGradNorm().savefield)


def test_the_extension_runs_on_layers_that_backpack_extended():
    layers = [nn.Linear(4, 6), nn.LayerNorm(6), nn.BatchNorm1d(6), nn.Linear(6, 3, bias=False)]
    net, x = backpack.extend(nn.Sequential(*layers).double().eval()), torch.randn(5, 4).double()
    u = torch.randn(5, 3).double()
    truth = squared_norms(net, x, u, engine="loop")
    with backpack.backpack(SquaredGradNorm()):
        (net(x) * u).sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.sq_grad_norm, truth[name], rtol=1e-12, atol=0)
