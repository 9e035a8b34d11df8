"""Parameters used several times, by several operators, by none that is known, or not at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import Net, assert_same, bare, call, check, head, one_at_a_time, prepared, real, tokens
from torch import nn
from torch.nn.utils import parametrizations

from lightning_info.gradients import NotCovered, choose_engine
from lightning_info.gradients.plan import ENGINES


class Subclass(nn.Linear):
    """Not a type that BackPACK knows."""


def _two_sizes(m, x):
    return m.head(m.c(x).mean((2, 3)) + m.c(x[..., :3, :3]).mean((2, 3)))


def _norms(m, x):
    return m.head(m.r(m.b(m.n(m.a(m.r(m.n(m.b(x))))))))


def _class_token(m, x):
    x = torch.cat([m.token.expand(len(x), -1, -1), m.a(x)], 1) + m.position(torch.arange(x.shape[1] + 1))
    return m.head(F.layer_norm(x * m.scale, (6,)).mean(1))


def _products(m, x):
    return m.head(torch.addmm(m.b, torch.mm(x, m.w), m.v) + x @ m.w)


def _einsum(m, x):
    return m.head(torch.einsum("nd,de->ne", x * m.g + m.c, m.w))


def _frozen():
    net = Net(lambda m, x: m.head(F.relu(m.norm(m.a(x)))), a=nn.Linear(5, 6), norm=nn.LayerNorm(6), head=head(6))
    for name in ("a.weight", "norm.bias", "head.bias"):
        net.get_parameter(name).requires_grad_(False)
    return net


def _adapter():
    def body(m, x):
        return m.head(F.linear(x, m.base.weight + m.up @ m.down, m.base.bias))

    net = Net(body, base=nn.Linear(5, 6), head=head(6), **bare(up=(6, 2), down=(2, 5)))
    net.base.weight.requires_grad_(False)
    return net


def _unused(m, x):
    return (m.unused(x), m.head(m.a(x)), m.cut(x).detach())[1]


def _without_gradient(m, x):
    with torch.no_grad():
        h = m.a(x)
    return m.head(h + m.b(x))


def _layers(**widths):
    return {name: nn.Linear(5, width) for name, width in widths.items()}


def _batch_norm(m, x, statistics, eps):
    return F.batch_norm(x, statistics.running_mean, statistics.running_var, m.w, m.b, eps=eps)


SETTINGS = {
    "eps of LayerNorm": lambda m, x, first: F.layer_norm(x, (6,), m.v, m.v, 0.1 if first else 1.0),
    "eps of LayerNorm without bias": lambda m, x, first: F.layer_norm(x, (6,), m.v, None, 0.1 if first else 1.0),
    "eps of RMSNorm": lambda m, x, first: F.rms_norm(x, (6,), m.v, 0.1 if first else 1.0),
    "eps of BatchNorm": lambda m, x, first: _batch_norm(m, x, m.one, 0.1 if first else 1.0),
    "statistics of BatchNorm": lambda m, x, first: _batch_norm(m, x, m.one if first else m.two, 0.1),
    "dilation": lambda m, x, first: F.conv1d(x, m.kernel, m.b, 1, 2 - first, 2 - first),
}


def _with_other_settings(part):
    return Net(
        lambda m, x: m.head((part(m, x, True) + part(m, x, False).tanh()).mean(1)),
        **bare(w=2, b=2, v=6, kernel=(2, 2, 3)),
        one=nn.BatchNorm1d(2),
        two=nn.BatchNorm1d(2),
        head=head(6),
    )


USES = {
    "linear, twice": lambda: (
        Net(lambda m, x: m.head(m.a(m.a(x).tanh())), **_layers(a=5), head=head(5)),
        real(5),
        "backpack",
    ),
    "convolution, twice": lambda: (
        Net(
            lambda m, x: m.head(m.c(m.c(x).tanh()).mean((2, 3))),
            c=nn.Conv2d(4, 4, 3, padding=1, groups=2),
            head=head(4),
        ),
        real(4, 4, 4),
        "backpack",
    ),
    "depthwise convolution, twice": lambda: (
        Net(
            lambda m, x: m.head(m.c(m.c(x).tanh()).mean((2, 3))),
            c=nn.Conv2d(3, 3, 3, padding=1, groups=3),
            head=head(3),
        ),
        real(3, 4, 4),
        "backpack",
    ),
    "transposed convolution, twice": lambda: (
        Net(lambda m, x: m.head(m.c(m.c(x).tanh()).mean(2)), c=nn.ConvTranspose1d(4, 4, 3, padding=1), head=head(4)),
        real(4, 5),
        "backpack",
    ),
    "convolution at two sizes": lambda: (
        Net(_two_sizes, c=nn.Conv2d(3, 6, 3), head=head(6)),
        real(3, 4, 4),
        "backpack_vmap",
    ),
    "norms, twice": lambda: (
        Net(_norms, a=nn.Linear(5, 5), n=nn.LayerNorm(5), b=nn.BatchNorm1d(5), r=nn.RMSNorm(5), head=head(5)),
        real(5),
        "backpack",
    ),
    "group norm, twice": lambda: (
        Net(lambda m, x: m.head(m.n(m.a(m.n(x)))), a=nn.Linear(6, 6), n=nn.GroupNorm(2, 6), head=head(6)),
        real(6),
        "backpack_vmap",
    ),
    **{
        f"one weight, other {what}": lambda part=part: (_with_other_settings(part), real(2, 6), "backpack_vmap")
        for what, part in SETTINGS.items()
    },
    "a bias that is broadcast": lambda: (
        Net(lambda m, x: m.head(torch.addmm(m.b, x, m.w)), **bare(b=1, w=(5, 6)), head=head(6)),
        real(5),
        "backpack_vmap",
    ),
    "a product with several matrices": lambda: (
        Net(lambda m, x: m.head((x[:, None, None] @ m.w).tanh().sum((1, 2))), **bare(w=(2, 5, 6)), head=head(6)),
        real(5),
        "backpack_vmap",
    ),
    "transposed by hand": lambda: (
        Net(lambda m, x: m.head(m.a(x) + F.linear(x, m.a.weight.T)), **_layers(a=5), head=head(5)),
        real(5),
        "backpack_vmap",
    ),
    "one weight, two biases": lambda: (
        Net(
            lambda m, x: m.head(F.linear(x, m.w, m.b) + F.linear(x * x, m.w, m.c)),
            **bare(w=(6, 5), b=6, c=6),
            head=head(6),
        ),
        real(5),
        "backpack_vmap",
    ),
    "weight and bias in one": lambda: (
        Net(
            lambda m, x: m.head(F.linear(x, m.w, m.w[0]) + F.layer_norm(x, (5,), m.w[1], m.w[1])),
            **bare(w=(5, 5)),
            head=head(5),
        ),
        real(5),
        "backpack_vmap",
    ),
    "a weight applied to itself": lambda: (
        Net(lambda m, x: m.head(x @ F.linear(m.w, m.w)), **bare(w=(5, 5)), head=head(5)),
        real(5),
        "backpack_vmap",
    ),
    "matrix products": lambda: (Net(_products, **bare(w=(5, 6), b=6, v=(6, 6)), head=head(6)), real(5), "backpack"),
    "einsum": lambda: (Net(_einsum, **bare(g=5, c=(1, 5), w=(5, 6)), head=head(6)), real(5), "backpack_vmap"),
    "class token, positions, scale": lambda: (
        Net(
            _class_token, a=nn.Linear(5, 6), position=nn.Embedding(9, 6), **bare(token=(1, 1, 6), scale=6), head=head(6)
        ),
        real(4, 5),
        "backpack_vmap",
    ),
    "a parameter through layers": lambda: (
        Net(
            lambda m, x: m.head(m.a(x) * m.b(m.a(m.query))),
            **_layers(a=6),
            b=nn.Linear(6, 6),
            **bare(query=5),
            head=head(6),
        ),
        real(5),
        "backpack_vmap",
    ),
    "low-rank adapter": lambda: (_adapter(), real(5), "backpack_vmap"),
    "subclass": lambda: (nn.Sequential(Subclass(5, 6), nn.ReLU(), head(6)), real(5), "backpack"),
    "frozen parts": lambda: (_frozen(), real(5), "backpack"),
    "unused": lambda: (Net(_unused, **_layers(a=6, unused=6, cut=6), head=head(6)), real(5), "backpack"),
    "without gradient": lambda: (Net(_without_gradient, **_layers(a=6, b=6), head=head(6)), real(5), "backpack"),
    "unused, a bare parameter": lambda: (
        Net(lambda m, x: _unused(m, x * m.g), **_layers(a=6, unused=6, cut=6), **bare(g=5), head=head(6)),
        real(5),
        "backpack_vmap",
    ),
    "weight_norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), head(6)),
        real(5),
        "backpack_vmap",
    ),
    "weight_norm, by hooks": lambda: (
        nn.Sequential(_weight_norm(nn.Linear(5, 6)), nn.ReLU(), head(6)),
        real(5),
        "backpack_vmap",
    ),
    "spectral_norm": lambda: (
        nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 6, 3)), nn.Flatten(), head(24)),
        real(2, 4, 4),
        "backpack_vmap",
    ),
    "prelu, instance norm": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.InstanceNorm2d(4, affine=True), nn.Flatten(), head(16)),
        real(3, 4, 4),
        "backpack_vmap",
    ),
    "embedding bag": lambda: (
        Net(lambda m, x: m.head(m.b(x)), b=nn.EmbeddingBag(9, 6), head=head(6)),
        tokens(5),
        "backpack_vmap",
    ),
    "bilinear": lambda: (
        Net(lambda m, x: m.head(m.b(x, x)), b=nn.Bilinear(5, 5, 6), head=head(6)),
        real(5),
        "backpack_vmap",
    ),
}


def _weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("name", USES)
def test_every_use_of_a_parameter_counts(name):
    torch.manual_seed(0)
    check(*USES[name]())


def test_an_input_that_requires_a_gradient_is_no_parameter():
    net, x = prepared(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), head(6)), real(5))
    u = torch.randn_like(net(x))
    found = ENGINES["backpack"](net, lambda m, x: m(x.detach().requires_grad_()), x, [u])
    assert_same(found, one_at_a_time(net, x, u))


def test_a_use_that_no_torch_function_shows_is_refused():
    def body(m, x):
        with torch._C.DisableTorchFunction():
            h = x * m.g
        return m.head(m.a(h))

    net = Net(body, **_layers(a=6), **bare(g=5), head=head(6))
    assert choose_engine(net, call, real(5)).engine == "func"
    reasons = choose_engine(net, call, real(5)).reasons
    assert "no rule for the operator that uses g" in reasons["backpack"]
    assert "g used where no torch function shows it" in reasons["backpack_vmap"]


@pytest.mark.parametrize("engine", ["backpack", "backpack_vmap"])
@pytest.mark.parametrize("first", [True, False])
def test_an_input_changed_after_its_use_is_refused(first, engine):
    def body(m, x):
        h = 1 * x if first else torch.tanh(m.b(x))
        y = m.a(h)
        h.mul_(2)
        return m.head(y)

    net = Net(body, **_layers(a=6, b=5), head=head(6))
    with pytest.raises(NotCovered, match=r"the input of a.weight, a.bias is changed in place after its use"):
        ENGINES[engine](net, call, real(5), [real(3)])
