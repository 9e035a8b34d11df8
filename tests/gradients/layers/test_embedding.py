"""Look-ups in a table: used several times, with padding, and tied to the output layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import Net, bare, call, check, check_rules, head, prepared, real, tokens
from torch import nn

from lightning_info.gradients import NotCovered
from lightning_info.gradients.memory import LIMITS
from lightning_info.gradients.plan import ENGINES


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_gradients_at_a_repeated_token_are_summed_before_squaring(padding_idx):
    check_rules(nn.Embedding(5, 3, padding_idx=padding_idx), torch.randint(0, 5, (6, 7)))


def _tied(bias, padding_idx=None):
    table = nn.Embedding(9, 6, padding_idx=padding_idx)
    out = nn.Linear(6, 9, bias=bias)
    out.weight = table.weight
    return Net(lambda m, x: m.out(torch.tanh(m.mix(m.table(x)))).mean(1), table=table, out=out, mix=nn.Linear(6, 6))


def _tied_twice():
    net = _tied(True)
    net.body = lambda m, x: m.out(m.mix(m.table(x))).mean(1) + m.out(m.table(x.flip(1)[:, :2])).sum(1)
    return net


def _embedded(m, x):
    return m.head(m.e(x).mean(1) * m.e(x[:, :2] // 2).sum(1))


USES = {
    "padding counted from the end": lambda: (
        Net(lambda m, x: m.head(F.embedding(x, m.table, -3).tanh().sum(1)), **bare(table=(9, 6)), head=head(6)),
        tokens(20),
        "backpack",
    ),
    "one table, with and without padding": lambda: (
        Net(
            lambda m, x: m.head((F.embedding(x, m.table, 2).tanh() + F.embedding(x, m.table)).sum(1)),
            **bare(table=(9, 6)),
            head=head(6),
        ),
        tokens(20),
        "backpack_vmap",
    ),
    "a table that is also a product's matrix, with padding": lambda: (
        Net(
            lambda m, x: m.head(m.e(x).sum(1)) @ m.v @ m.e.weight,
            e=nn.Embedding(9, 6, 2),
            **bare(v=(3, 9)),
            head=head(6),
        ),
        tokens(20),
        "backpack_vmap",
    ),
    "embedding, twice": lambda: (
        Net(_embedded, e=nn.Embedding(9, 6, padding_idx=-8), head=head(6)),
        tokens(5),
        "backpack",
    ),
    "tied embedding": lambda: (_tied(bias=False), tokens(5), "backpack"),
    "tied embedding, bias, padding": lambda: (_tied(bias=True, padding_idx=2), tokens(5), "backpack"),
    "tied embedding, twice": lambda: (_tied_twice(), tokens(5), "backpack"),
}


@pytest.mark.parametrize("name", USES)
def test_every_use_of_a_table_counts(name):
    check(*USES[name]())


def test_a_tied_table_is_done_in_chunks(monkeypatch):
    monkeypatch.setattr(LIMITS, "temporary", 32)
    check(_tied(bias=True), tokens(5), "backpack")


@pytest.mark.parametrize("engine", ["backpack", "backpack_vmap"])
def test_cotangents_add_up_where_uses_are_joined(engine):
    net, x = prepared(_tied_twice(), tokens(5))
    u = torch.randn(3, *net(x).shape, dtype=torch.float64)
    both = ENGINES[engine](net, call, x, iter(u))
    alone = [ENGINES[engine](net, call, x, [one]) for one in u]
    for name, values in both.items():
        torch.testing.assert_close(values, sum(one[name] for one in alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("engine", ["backpack", "backpack_vmap"])
@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_look_ups_whose_gradient_depends_on_other_samples_are_refused_by_name(setting, engine):
    net = Net(_embedded, e=nn.Embedding(9, 6, **setting), head=head(6))
    with pytest.raises(NotCovered, match="an embedding with max_norm or scale_grad_by_freq has no per-sample gradient"):
        ENGINES[engine](net, call, tokens(5), [real(3)])
