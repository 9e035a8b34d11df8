"""Layouts and control flow: the sample axis, wherever a module takes it, and code that asks for values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import N, Net, assert_same, bare, call, check, head, one_at_a_time, prepared, real, tokens
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_info.gradients import NotCovered, choose_engine
from lightning_info.gradients.plan import ENGINES


def _folded(m, x):
    return m.head(m.a(x.flatten(0, 1)).relu().view(len(x), -1, 6).mean(1))


def _windows(m, x):
    n, c, h, w = x.shape
    rows = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    return m.head(m.norm(m.a(rows)).relu().reshape(n, -1, 4, 6).mean((1, 2)))


def _frames(m, x):
    rows = m.group(m.up(m.norm(m.conv(x.flatten(0, 1))).relu())).relu()
    return m.head(rows.mean((2, 3)).unflatten(0, (len(x), -1)).sum(1))


def _time_first(m, x):
    return m.head(m.a(x.transpose(0, 1)).relu().cumsum(0).mean(0))


def _one_by_one(m, x):
    return m.head(torch.stack([m.conv(one) for one in x]).mean((2, 3)))


def _in_place(m, x):
    h = m.a(x)
    h += m.b(x)
    h[:, 1:] *= 2
    h[:, 0].add_(1)
    return m.head(h.relu_().mean(1))


def _in_place_images(m, x):
    h = m.conv(x)
    h[:, :2].mul_(3).add_(1)
    h += x.mean((1, 2, 3), keepdim=True)
    return m.head(m.norm(F.relu(h, inplace=True)).sigmoid_().mean((2, 3)))


def _unfolded():
    convolutions = {"conv": nn.Conv2d(2, 4, 3, groups=2), "up": nn.ConvTranspose2d(4, 6, 2, 2)}
    return Net(_frames, norm=nn.BatchNorm2d(4), group=nn.GroupNorm(2, 6), head=head(6), **convolutions)


LAYOUTS = {
    "rows folded into the batch": lambda: (Net(_folded, a=nn.Linear(8, 6), head=head(6)), real(5, 8), "backpack_vmap"),
    "windows folded into the batch": lambda: (
        Net(_windows, a=nn.Linear(3, 6), norm=nn.LayerNorm(6), head=head(6)),
        real(3, 4, 4),
        "backpack_vmap",
    ),
    "frames folded into the batch": lambda: (_unfolded(), real(3, 2, 5, 4), "backpack_vmap"),
    "time first": lambda: (Net(_time_first, a=nn.Linear(8, 6), head=head(6)), real(5, 8), "backpack_vmap"),
    "time first, as long as the batch": lambda: (
        Net(_time_first, a=nn.Linear(8, 6), head=head(6)),
        real(N, 8),
        "backpack_vmap",
    ),
    "one image at a time": lambda: (
        Net(_one_by_one, conv=nn.Conv2d(2, 6, 3), head=head(6)),
        real(2, 4, 4),
        "backpack_vmap",
    ),
    "in place on sequences": lambda: (
        Net(_in_place, a=nn.Linear(8, 6), b=nn.Linear(8, 6), head=head(6)),
        real(5, 8),
        "backpack",
    ),
    "in place on images": lambda: (
        Net(_in_place_images, conv=nn.Conv2d(2, 6, 3), norm=nn.BatchNorm2d(6), head=head(6)),
        real(2, 5, 5),
        "backpack",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_sample_axis_is_found_in_every_layout(name):
    check(*LAYOUTS[name]())


class Exp(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.exp())
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class Scale(torch.autograd.Function):
    """Of a parameter."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(0)


def _branch(m, x):
    return m.head(m.a(x * m.g).relu() if bool(x.mean() > -1e9) else m.a(x))


def _guarded(m, x):
    if not x.isfinite().all().item():
        raise ValueError
    return m.head(m.a(x) * m.g)


def _own_vmap(m, x):
    return m.head(torch.vmap(m.a, in_dims=1, out_dims=1)(x).mean(1) * m.g)


def _slope(m, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(m.a(x)).sum(), x, create_graph=True)
    return m.head(slope)


def _net(body, **more):
    return Net(body, a=nn.Linear(5, 6), head=head(6), **more)


CODE = {
    "a branch on values": lambda: (_net(_branch, **bare(g=5)), real(5), "backpack_vmap"),
    "a guard on values": lambda: (_net(_guarded, **bare(g=6)), real(5), "backpack_vmap"),
    "asks what requires a gradient": lambda: (
        _net(lambda m, x: m.head(m.a(x) * m.g) if m.a(x).requires_grad else m.head(x), **bare(g=6)),
        real(5),
        "backpack_vmap",
    ),
    "custom function": lambda: (_net(lambda m, x: m.head(Exp.apply(m.a(x)) * 0.1)), real(5), "backpack"),
    "custom function, bare parameter": lambda: (
        _net(lambda m, x: m.head(Exp.apply(m.a(x) * m.g) * 0.1), **bare(g=6)),
        real(5),
        "loop",
    ),
    "custom function of a parameter": lambda: (
        _net(lambda m, x: m.head(Scale.apply(m.a(x), m.g)), **bare(g=6)),
        real(5),
        "backpack_vmap",
    ),
    "a vmap of its own": lambda: (_net(_own_vmap, **bare(g=6)), real(3, 5), "func"),
    "a gradient in the forward pass": lambda: (Net(_slope, a=nn.Linear(5, 6), head=head(5)), real(5), "loop"),
    "checkpoint": lambda: (
        _net(lambda m, x: m.head(checkpoint(m.a, x, use_reentrant=False).relu())),
        real(5),
        "backpack",
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_code_that_vmap_does_not_take_as_it_is(name):
    check(*CODE[name]())


def test_samples_that_take_different_branches_go_forward_apart():
    net, x = prepared(_net(lambda m, x: m.head(m.a(x) * m.g if x[:, 0].mean() > 0 else m.a(x)), **bare(g=6)), real(5))
    x[:, 0] = torch.tensor([1.0, -1.0, 2.0, -3.0])
    u = torch.randn_like(net(x))
    assert_same(ENGINES["backpack_vmap"](net, call, x, [u]), one_at_a_time(net, x, u))


def test_samples_that_all_go_their_own_way_are_a_group_each():
    x = torch.arange(6.0, dtype=torch.float64).unsqueeze(1).expand(6, 5)
    net, _ = prepared(_net(lambda m, x: m.head(m.a(x) * x.mean().item())), real(5))
    columns = [torch.randn(6, 3)]
    found, expected = (ENGINES[engine](net, call, x, columns) for engine in ("backpack_vmap", "loop"))
    torch.testing.assert_close(found, expected)


def test_attributes_that_a_module_sets_are_put_back():
    def body(m, x):
        m.kept = m.a(x)
        m.running = 0.5 * m.running + m.kept.detach().mean(0)
        return m.head(m.kept * m.g)

    net = _net(body, **bare(g=6))
    net.register_buffer("running", torch.zeros(6))
    ENGINES["backpack_vmap"](net, call, torch.randn(4, 5), [torch.randn(4, 3)])
    assert not hasattr(net, "kept")
    assert torch.equal(net.running, torch.zeros(6))


def test_statistics_of_the_batch_are_refused():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(NotCovered, match="backpack_vmap: BatchNorm with batch statistics"):
        choose_engine(net, call, torch.randn(6, 5))


def test_statistics_of_a_weight_are_none_of_the_batch():
    def body(m, x):
        weight = F.batch_norm(m.w.reshape(1, 6, -1), None, None, 2 * m.g, training=True).reshape_as(m.w)
        return m.head(F.conv2d(x, weight).mean((2, 3)))

    check(Net(body, head=head(6), **bare(w=(6, 2, 3, 3), g=6)), real(2, 4, 4), "backpack_vmap")


def test_norms_of_a_batch_are_those_of_its_parts():
    net, x = prepared(_unfolded(), torch.randn(6, 3, 2, 5, 4))
    u = torch.randn_like(net(x))
    whole = ENGINES["backpack_vmap"](net, call, x, [u])
    parts = [ENGINES["backpack_vmap"](net, call, x[s], [u[s]]) for s in (slice(0, 1), slice(1, 6))]
    assert_same({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)


def test_tokens_need_no_gradient():
    net = Net(lambda m, x: m.head(m.e(x).mean(1) * m.g), e=nn.Embedding(9, 6), head=head(6), **bare(g=6))
    check(net, tokens(5), "backpack_vmap")
