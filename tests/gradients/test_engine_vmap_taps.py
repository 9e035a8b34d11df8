"""Memory: copies of parameters are kept within the budget by doing some samples at a time."""

from __future__ import annotations

import pytest
import torch
from gradients.cases import Net, assert_same, bare, call, head, one_at_a_time, prepared, real
from torch import nn

from lightning_info.gradients import engine_vmap_taps as vmap_taps
from lightning_info.gradients.memory import LIMITS
from lightning_info.gradients.plan import ENGINES


@pytest.mark.parametrize("samples_at_a_time", [1, 2, 3])
def test_copies_stay_within_the_budget(samples_at_a_time, monkeypatch):
    def body(m, x):
        assert m.a.weight.shape == (6, 5)  # looking at a parameter costs nothing
        return m.head(m.a(x) @ (m.w * 2) * m.g)

    net, x = prepared(Net(body, a=nn.Linear(5, 6), head=head(6), **bare(w=(6, 6), g=6)), torch.randn(7, 5))
    u = torch.randn(2, *net(x).shape, dtype=torch.float64)
    truth = [one_at_a_time(net, x, column) for column in u]
    budget = samples_at_a_time * 8 * (36 + 6)
    monkeypatch.setattr(LIMITS, "copies", budget)
    attempts = []
    attempt = vmap_taps.Passes._attempt

    def count(self, leaves):
        attempts.append(len(leaves[0]))
        return attempt(self, leaves)

    monkeypatch.setattr(vmap_taps.Passes, "_attempt", count)
    found = ENGINES["backpack_vmap"](net, call, x, iter(u))
    assert_same(found, {name: truth[0][name] + truth[1][name] for name in truth[0]})
    whole, one, *parts = attempts
    assert (whole, one) == (7, 1)
    assert max(parts) == samples_at_a_time
    assert sum(parts) == 7


def test_tapped_parameters_cost_no_copies(monkeypatch):
    monkeypatch.setattr(LIMITS, "copies", 0)
    net, x = prepared(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), head(6)), real(5))
    u = torch.randn_like(net(x))
    assert_same(ENGINES["backpack_vmap"](net, call, x, [u]), one_at_a_time(net, x, u))


class Shortened(nn.Module):
    """Padded sequences, cut to the longest of the batch; full ones take a path without a mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 5), nn.Linear(5, 5), head(5)

    def forward(self, x):
        real = x > 0
        longest = int(real.sum(1).max())
        h = torch.tanh(self.mix(self.embed(x[:, :longest])))
        if not real.all():
            h = h * real[:, :longest, None]
        return self.head(h.sum(1) / real.sum(1, keepdim=True))


@pytest.mark.parametrize("lengths", [range(1, 15), [5] * 14, [14] * 3 + [2] * 3])
def test_samples_that_take_different_paths_go_forward_apart(lengths):
    x = torch.stack([torch.arange(14) % 8 + 1 for _ in lengths]) * (
        torch.arange(14) < torch.tensor([*lengths])[:, None]
    )
    net, x = prepared(Shortened(), x)
    u = torch.randn_like(net(x))
    assert_same(ENGINES["backpack_vmap"](net, call, x, [u]), one_at_a_time(net, x, u))
