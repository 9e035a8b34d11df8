"""What BackPACK's second-order rules do not do right is refused: all of it at once, each with the fix."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import N, Net, bare, head, real, tokens
from torch import nn
from torch.nn.utils import parametrizations

from lightning_info.gradients import NotCovered, ggn_diagonal, kfac


class Subclass(nn.Linear):
    """Whose forward pass might be any."""


class Recurrent(nn.Module):
    def __init__(self, kind, part=0, **options):
        super().__init__()
        self.part, self.layer = part, kind(5, 4, **options)

    def forward(self, x):
        return self.layer(x)[self.part]


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 3, 1), nn.MaxPool2d(4, return_indices=True)

    def forward(self, x):
        values, _ = self.pool(self.conv(x))
        return values.flatten(1)


def images(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)), real(2, 5, 5)


def body(function, x=None, **parts):
    return Net(function, a=nn.Linear(4, 4), head=head(4), **parts), real(4) if x is None else x


def sequence(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)), real(6, 5)


def _tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net, real(4)


def _train(layer):
    net, x = images(nn.Conv2d(2, 2, 3), layer)
    layer.train()
    return net, x


ONE_FORM = "a rule only for one layer, one direction, batch_first, with biases, tanh, without projection"
FUNCTION = "no rule for calls of functions; write a layer of torch.nn that has a rule"
OWNED = "no rule for a parameter that no layer of torch.nn owns and uses, but "
BOTH = {
    "no rule": (lambda: body(lambda m, x: m.head(m.gelu(m.a(x))), gelu=nn.GELU()), "gelu: no rule for GELU"),
    "layer norm": (lambda: (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), real(4)), "1: no rule for LayerNorm"),
    "attention": (
        lambda: (nn.TransformerEncoderLayer(4, 2, batch_first=True), real(3, 4)),
        "TransformerEncoderLayer: no rule for TransformerEncoderLayer",
    ),
    "subclass": (lambda: (Subclass(4, 3), real(4)), "no rule for Subclass; use Linear itself, not a subclass"),
    "recomputed weight": (
        lambda: (parametrizations.weight_norm(nn.Linear(4, 3)), real(4)),
        "no rule for ParametrizedLinear; use Linear itself",
    ),
    "bare parameter": (lambda: body(lambda m, x: m.head(m.a(x) * m.g), **bare(g=4)), f"g: {OWNED}mul()"),
    "functional layer": (
        lambda: body(lambda m, x: m.head(F.linear(x, m.a.weight, m.a.bias))),
        f"a.weight, a.bias: {OWNED}linear()",
    ),
    "tied": (_tied, "0.weight = 2.weight: one parameter; give each layer its own"),
    "called twice": (lambda: body(lambda m, x: m.head(m.a(m.a(x)))), "a: called 2 times; use as many layers"),
    "nothing to train": (lambda: (nn.Linear(4, 3).requires_grad_(False), real(4)), "none of its parameters requires"),
    "a function": (lambda: body(lambda m, x: m.head(torch.relu(m.a(x)))), f"relu() in Net: {FUNCTION}"),
    "in place": (lambda: body(lambda m, x: m.head(m.a(x).relu_())), f"relu_() in Net: {FUNCTION}"),
    "a slice": (
        lambda: body(lambda m, x: m.head(m.a(x)[:, :4])),
        "getitem() in Net: a rule only for taking all outputs",
    ),
    "a view": (lambda: body(lambda m, x: m.head(m.a(x).view(-1, 4))), f"view() in Net: {FUNCTION}"),
    "a constant added": (lambda: body(lambda m, x: m.head(m.a(x) + 1)), "add() in Net: a rule only for the sum of two"),
    "a broadcast sum": (lambda: body(lambda m, x: m.head(m.a(x) + x[:1])), "add() in Net: a rule only for the sum of"),
    "a product": (
        lambda: body(lambda m, x: m.head(m.a(x) * x)),
        "mul() in Net: a rule only for the product with a con",
    ),
    "keywords": (
        lambda: body(lambda m, x: m.head(torch.flatten(m.a(x), start_dim=1))),
        "flatten() in Net: with keywords; give all arguments by position",
    ),
    "flattened samples": (
        lambda: body(lambda m, x: m.head(m.a(x)).flatten()),
        "flatten() in Net: the sample axis must stay",
    ),
    "two arguments": (
        lambda: (Net(lambda m, x: m.up(x, [8]).flatten(1), up=nn.ConvTranspose1d(2, 1, 2, stride=2)), real(2, 4)),
        "up: called with more than one argument",
    ),
    "a condition": (
        lambda: body(lambda m, x: m.head(m.a(x)) if x.sum() > 0 else m.head(x)),
        "Net: torch.fx cannot follow its forward pass (symbolically traced",
    ),
    "padding by name": (
        lambda: images(nn.Conv2d(2, 2, 3, padding="same")),
        "0: no rule for padding='same'; give a number",
    ),
    "padding in circles": (
        lambda: images(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
        "0: padding_mode='circular' is taken for 'zeros'",
    ),
    "output padding": (
        lambda: images(nn.ConvTranspose2d(2, 2, 3, stride=2, output_padding=1)),
        "0: output_padding is left out",
    ),
    "negative padding": (
        lambda: images(nn.Conv2d(2, 2, 1), nn.ZeroPad2d((-1, 0, 0, 0))),
        "1: no rule for negative padding",
    ),
    "train mode": (
        lambda: _train(nn.BatchNorm2d(2)),
        "1: in train mode, random or with statistics over samples; call .eval()",
    ),
    "train mode, dropout": (lambda: _train(nn.Dropout()), "1: in train mode, random or with"),
    "indices": (
        lambda: (Indexed(), real(2, 4, 4)),
        "pool: no rule for return_indices=True",
    ),
    "rows for samples": (
        lambda: (nn.Sequential(nn.Linear(4, 3), nn.Flatten(0, 1)), real(2, 4)),
        "outputs: (8, 3) for 4",
    ),
    "no classes": (
        lambda: (nn.Linear(4, 1), real(4)),
        "outputs: (4, 1) for 4 samples; categorical ones are (N, ..., cl",
    ),
}
DIAGONAL = {
    "embedding": (lambda: (nn.Sequential(nn.Embedding(9, 3)), tokens(4)), "0: its rule fails in float64"),
    "no affine": (lambda: images(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, affine=False)), "1: no rule for affine=False"),
    "batch statistics": (
        lambda: images(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
        "1: track_running_stats=False; statistics over the batch mix samples",
    ),
    "GRU": (lambda: sequence(Recurrent(nn.GRU, batch_first=True)), "0.layer: no rule for GRU"),
    "two layers": (lambda: sequence(Recurrent(nn.LSTM, num_layers=2, batch_first=True)), ONE_FORM),
    "time first": (lambda: sequence(Recurrent(nn.LSTM)), ONE_FORM),
    "no biases": (lambda: sequence(Recurrent(nn.RNN, bias=False, batch_first=True)), ONE_FORM),
    "two directions": (lambda: sequence(Recurrent(nn.RNN, bidirectional=True, batch_first=True)), ONE_FORM),
    "ReLU": (lambda: sequence(Recurrent(nn.RNN, nonlinearity="relu", batch_first=True)), ONE_FORM),
    "projection": (lambda: sequence(Recurrent(nn.LSTM, proj_size=2, batch_first=True)), ONE_FORM),
    "last state": (
        lambda: (Recurrent(nn.RNN, part=1, batch_first=True), real(6, 5)),
        "getitem() in Recurrent: a rule only for taking all outputs of a recurrent layer",
    ),
    "axes from the end": (
        lambda: body(lambda m, x: m.head(m.a(x).transpose(-1, -2)), real(4, 4)),
        "transpose() in Net: axis 0 must stay, and axes be counted from the front",
    ),
    "the sample axis": (
        lambda: body(lambda m, x: m.head(m.a(x)).permute(1, 0, 2), real(N, 4)),
        "permute() in Net: axis 0 must stay",
    ),
}
FACTORS = {
    "groups": (lambda: images(nn.Conv2d(2, 2, 3, groups=2)), "0: no Kronecker factors of convolutions with groups"),
    "positions": (
        lambda: sequence(nn.Linear(5, 3)),
        "0: no Kronecker factors with inputs (4, 6, 5), only with (N, feat",
    ),
    "BatchNorm": (
        lambda: images(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)),
        "1: no rule with Kronecker factors for BatchNorm2d",
    ),
    "permute": (
        lambda: body(lambda m, x: m.head(m.c(x).permute(0, 2, 1)), real(4, 4), c=nn.Conv1d(4, 4, 1)),
        "permute() in Net: no rule with Kronecker factors",
    ),
    "a part that is not used": (
        lambda: body(lambda m, x: m.head(x)),
        "a.bias, a.weight: no part in the outputs; call .requires_grad_(False)",
    ),
}


def check(function, build, text):
    net, x = build()
    if "train mode" not in text:
        net.eval()
    with torch.no_grad():
        net(x.clone())  # lazy layers
    with pytest.raises(NotCovered, match=rf"do not fit {type(net).__name__} \(docs/fisher\.md\)\. .*{re.escape(text)}"):
        function(net, x)


@pytest.mark.parametrize("function", [ggn_diagonal, kfac])
@pytest.mark.parametrize("name", BOTH)
def test_refused_by_both(name, function):
    check(function, *BOTH[name])


@pytest.mark.parametrize("name", DIAGONAL)
def test_refused_for_the_diagonal(name):
    check(ggn_diagonal, *DIAGONAL[name])


@pytest.mark.parametrize("name", FACTORS)
def test_refused_for_factors_only(name):
    check(kfac, *FACTORS[name])
    net, x = FACTORS[name][0]()
    net(x)
    ggn_diagonal(net.eval(), x)


def test_everything_is_said_at_once():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
            self.norms = nn.ModuleList(nn.LayerNorm(5) for _ in range(6))
            self.drop, self.head = nn.Dropout(), nn.Linear(50, 3)
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            x = F.gelu(self.conv(x)) * self.scale
            for norm in self.norms:
                x = norm(x)
            return self.head(self.drop(x).flatten(1))

    with pytest.raises(NotCovered) as refusal:
        ggn_diagonal(Many(), real(2, 5, 5))
    assert str(refusal.value) == (
        "BackPACK's second-order rules do not fit Many (docs/fisher.md). "
        "drop: in train mode, random or with statistics over samples; call .eval(). "
        "conv: padding_mode='reflect' is taken for 'zeros'. "
        f"gelu() in Many: {FUNCTION}. "
        f"scale: {OWNED}mul(). "
        "norms.0, norms.1, norms.2, norms.3 and 2 more: no rule for LayerNorm"
    )
