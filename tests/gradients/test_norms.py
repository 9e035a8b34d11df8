"""Every rule against one backward pass per sample, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_info.gradients import SquaredGradNorm, choose_engine, norms, squared_norms

LAYERS = {
    "linear": (nn.Linear(4, 3), (5, 4)),
    "linear on a sequence": (nn.Linear(4, 3), (5, 6, 4)),
    "linear on a short sequence of wide features": (nn.Linear(40, 30), (5, 2, 40)),
    "linear on a grid": (nn.Linear(4, 3), (5, 2, 3, 4)),
    "conv1d strided dilated": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (5, 4, 11)),
    "conv1d grouped": (nn.Conv1d(4, 6, 3, groups=2), (5, 4, 9)),
    "conv2d": (nn.Conv2d(2, 3, 3), (5, 2, 6, 7)),
    "conv2d large map": (nn.Conv2d(1, 2, 3, padding=1), (5, 1, 9, 9)),
    "conv2d few positions": (nn.Conv2d(8, 16, 3), (5, 8, 3, 4)),
    "conv2d grouped": (nn.Conv2d(4, 8, 3, padding=1, groups=2), (5, 4, 5, 5)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), (5, 4, 5, 5)),
    "conv2d one by one": (nn.Conv2d(4, 3, 1), (5, 4, 5, 5)),
    "conv2d stride leaves a rest": (nn.Conv2d(2, 3, 2, stride=3), (5, 2, 9, 10)),
    "conv2d same, even kernel": (nn.Conv2d(2, 3, 4, padding="same", dilation=2), (5, 2, 9, 9)),
    "conv2d valid": (nn.Conv2d(2, 3, 2, padding="valid"), (5, 2, 4, 4)),
    "conv2d circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 2, 4, 4)),
    "conv2d reflect": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (5, 2, 5, 4)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 1), groups=2), (5, 2, 4, 5, 3)),
    "convtranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (5, 4, 6)),
    "convtranspose2d": (nn.ConvTranspose2d(3, 2, 3), (5, 3, 4, 5)),
    "convtranspose2d grouped": (nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=(1, 0), groups=2), (5, 4, 4, 3)),
    "convtranspose2d with a rest": (
        nn.ConvTranspose2d(4, 2, 2, stride=3, padding=1, output_padding=2, dilation=2),
        (5, 4, 4, 3),
    ),
    "convtranspose2d depthwise": (nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, groups=4), (5, 4, 3, 3)),
    "convtranspose3d": (nn.ConvTranspose3d(2, 3, (1, 2, 3), stride=(1, 2, 1)), (5, 2, 2, 3, 3)),
    "batchnorm1d": (nn.BatchNorm1d(4), (5, 4)),
    "batchnorm1d on a sequence": (nn.BatchNorm1d(4), (5, 4, 6)),
    "batchnorm2d": (nn.BatchNorm2d(4, eps=0.1), (5, 4, 3, 2)),
    "batchnorm3d": (nn.BatchNorm3d(4), (5, 4, 3, 2, 2)),
    "layernorm": (nn.LayerNorm(4), (5, 4)),
    "layernorm on a sequence": (nn.LayerNorm(4, eps=0.1), (5, 6, 4)),
    "layernorm over two axes": (nn.LayerNorm((3, 4)), (5, 2, 3, 4)),
    "rmsnorm": (nn.RMSNorm(4), (5, 6, 4)),
    "rmsnorm over two axes": (nn.RMSNorm((3, 4), eps=0.1), (5, 2, 3, 4)),
    "groupnorm": (nn.GroupNorm(2, 4), (5, 4, 3, 3)),
    "groupnorm on features": (nn.GroupNorm(2, 6, eps=0.1), (5, 6)),
    "without bias": (nn.Conv2d(2, 3, 3, bias=False), (5, 2, 4, 4)),
}


def by_definition(net, x, u):
    rows = []
    for n in range(len(x)):
        gradients = torch.autograd.grad((net(x) * u)[n].sum(), list(net.parameters()))
        rows.append(torch.stack([g.square().sum() for g in gradients]))
    return dict(zip([name for name, _ in net.named_parameters()], torch.stack(rows, 1), strict=True))


def prepared(layer, x):
    """Random affine parameters and running statistics: at their defaults wrong rules can look right."""
    for tensor in [*layer.parameters(), *layer.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return nn.Sequential(layer, nn.Tanh()).double().eval(), x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("budget", [norms.CHUNK, 64])
@pytest.mark.parametrize("name", LAYERS)
def test_rule_equals_one_backward_per_sample(name, budget, monkeypatch):
    monkeypatch.setattr(norms, "CHUNK", budget)  # a small one makes every rule work in chunks
    layer, shape = LAYERS[name]
    net, x = prepared(layer, torch.randn(shape))
    u = torch.randn_like(net(x))
    found, truth = squared_norms(net, x, u, engine="backpack"), by_definition(net, x, u)
    assert found.keys() == truth.keys()
    for parameter in truth:
        torch.testing.assert_close(found[parameter], truth[parameter], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_sums_repeated_tokens_before_squaring(padding_idx):
    net, x = prepared(nn.Embedding(5, 3, padding_idx=padding_idx), torch.randint(0, 5, (6, 7)))
    u = torch.randn_like(net(x))
    found = squared_norms(net, x, u, engine="backpack")["0.weight"]
    torch.testing.assert_close(found, by_definition(net, x, u)["0.weight"], rtol=1e-12, atol=0)


def test_a_long_gradient_is_summed_to_its_end():
    gradient = torch.randn(2, 3, 70_000)
    torch.testing.assert_close(
        norms.squared_norm(gradient).double(), gradient.double().square().sum((1, 2)), rtol=1e-5, atol=0
    )


def test_several_cotangents_add_up():
    net, x = prepared(nn.Linear(4, 3), torch.randn(5, 4))
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
