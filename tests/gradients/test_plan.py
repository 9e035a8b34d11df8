"""The guards: wrong per-sample gradients are never returned, some other engine or a refusal is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.gradients import NotCovered, choose_engine, plan, squared_norms
from lightning_info.gradients.loop import whole_batch


def call(module, x):
    return module(x)


class Net(nn.Module):
    """A linear layer whose use ``body`` decides."""

    def __init__(self, body, features=4):
        super().__init__()
        self.layer, self.head, self.body = nn.Linear(features, features), nn.Linear(features, 3), body

    def forward(self, x):
        return self.body(self, x)


def _used_by_hand_too(m, x):
    return m.head(m.layer(x) + x @ m.layer.weight)


def _functional(m, x):
    return F.linear(torch.tanh(F.linear(x, m.layer.weight, m.layer.bias)), m.head.weight, m.head.bias)


def _folded(m, x):
    rows = x.reshape(-1, 4)  # (2 N, 4)
    return m.head(m.layer(rows).reshape(len(x), -1, 4).sum(1))


BODIES = {
    "used twice": (lambda m, x: m.head(m.layer(torch.tanh(m.layer(x)))), None, "backpack"),
    "used once more by hand": (_used_by_hand_too, "more than once", "backpack_vmap"),
    "by hand only": (lambda m, x: m.head(x @ m.layer.weight + m.layer.bias), "no rule", "backpack_vmap"),
    "rows folded into the batch": (_folded, "rows for", "backpack_vmap"),
    "in-place ReLU": (lambda m, x: m.head(F.relu_(m.layer(x))), None, "backpack"),
    "a view changed in place": (lambda m, x: m.head(_double_first_half(m.layer(x))), None, "backpack"),
    "functional": (_functional, None, "backpack"),
    "dead branch": (lambda m, x: (m.layer(x), m.head(x))[1], None, "backpack"),
}


def _double_first_half(h):
    h[:, :2] *= 2
    return h


@pytest.mark.parametrize("name", BODIES)
def test_every_use_of_a_layer_gives_the_right_value_by_some_engine(name):
    body, reason, engine = BODIES[name]
    net, x = Net(body).double(), torch.randn(6, 8 if "folded" in name else 4, dtype=torch.float64)
    u = torch.randn(6, 3, dtype=torch.float64)
    found = choose_engine(net, call, x)
    assert found.engine == engine
    assert (reason is None) == ("backpack" not in found.reasons)
    if reason is not None:
        assert reason in found.reasons["backpack"]
    truth = whole_batch(net, call, x, u, range(6))
    values = found.squared_norms(net, call, x, [u])
    assert values.keys() == truth.keys()
    for parameter in truth:
        torch.testing.assert_close(values[parameter], truth[parameter], rtol=1e-10, atol=1e-13)


def test_a_sequence_first_layout_is_caught_even_where_its_lengths_agree():
    """Attention mixes axis 0 as time here, and time is as long as the batch of the check."""

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):  # (N, T, 3)
            h = self.embed(x.transpose(0, 1))  # (T, N, 4)
            return self.head(h.cumsum(0)[-1])

    net, x = TimeFirst().double(), torch.randn(8, 8, 3, dtype=torch.float64)
    found = choose_engine(net, call, x)
    assert found.engine == "backpack_vmap"
    assert "where plain autograd gives" in found.reasons["backpack"]


@pytest.mark.parametrize("mixing", ["batch statistics", "mean over the batch", "softmax over the batch"])
def test_modules_that_mix_samples_are_refused(mixing):
    bodies = {
        "batch statistics": lambda m, x: m.head(F.batch_norm(m.layer(x), None, None, training=True)),
        "mean over the batch": lambda m, x: m.head(m.layer(x) - m.layer(x).mean(0)),
        "softmax over the batch": lambda m, x: m.head(torch.softmax(m.layer(x), 0)),
    }
    with pytest.raises(NotCovered, match=r"depend on the other samples of the batch|loop: one sample alone fails"):
        choose_engine(Net(bodies[mixing]), call, torch.randn(6, 4))


def test_a_wrong_rule_is_caught_by_the_two_sample_check(monkeypatch):
    right = plan.ENGINES["backpack"]
    monkeypatch.setitem(plan.ENGINES, "backpack", lambda *args: {k: v * (1 + 1e-4) for k, v in right(*args).items()})
    found = choose_engine(nn.Linear(4, 3), call, torch.randn(6, 4))
    assert found.engine == "backpack_vmap"
    assert "plain autograd" in found.reasons["backpack"]


def test_an_engine_that_returns_nan_is_not_taken(monkeypatch):
    right = plan.ENGINES["backpack"]
    monkeypatch.setitem(plan.ENGINES, "backpack", lambda *args: {k: v * torch.nan for k, v in right(*args).items()})
    assert choose_engine(nn.Linear(4, 3), call, torch.randn(6, 4)).engine == "backpack_vmap"


def test_hard_coded_float32_is_checked_in_its_own_precision():
    net = Net(lambda m, x: m.head(m.layer(x.float()).float().to(torch.float32)))
    assert choose_engine(net, call, torch.randn(6, 4)).checked == 6


def test_outputs_that_are_not_finite_leave_the_check_for_later():
    x = torch.randn(6, 4)
    x[2] = torch.nan
    assert choose_engine(nn.Linear(4, 3), call, x).checked == 0


def test_frozen_parameters_have_no_norms_and_unused_ones_are_zero():
    net = Net(lambda m, x: m.head(x))
    net.head.bias.requires_grad_(False)
    found = squared_norms(net, torch.randn(6, 4), torch.randn(6, 3))
    assert set(found) == {"layer.weight", "layer.bias", "head.weight"}
    assert not found["layer.weight"].any()
    assert found["head.weight"].all()


def test_a_module_that_trains_nothing_is_refused():
    with pytest.raises(NotCovered, match="none of its parameters requires a gradient"):
        choose_engine(nn.Linear(4, 3).requires_grad_(False), call, torch.randn(6, 4))


def test_sparse_embedding_gradients_are_right():
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    tokens, u = torch.randint(0, 5, (6, 4)), torch.randn(6, 2, dtype=torch.float64)
    dense = nn.Sequential(nn.Embedding.from_pretrained(net[0].weight.detach(), freeze=False), *net[1:])
    found, truth = squared_norms(net, tokens, u), whole_batch(dense, call, tokens, u, range(6))
    for parameter in truth:
        torch.testing.assert_close(found[parameter], truth[parameter], rtol=1e-12, atol=0)


def test_a_module_is_checked_once_and_again_where_it_has_changed(monkeypatch):
    net, x, checks = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(6, 4), []
    check = plan.choose_engine
    monkeypatch.setattr(plan, "choose_engine", lambda *args: checks.append(args) or check(*args))

    def times(inputs):
        squared_norms(net, inputs, torch.randn(len(inputs), 2))
        return len(checks)

    assert [times(x), times(x), times(torch.randn(3, 4))] == [1, 1, 1]
    net[0].bias.requires_grad_(False)
    assert times(x) == 2
    net.double()
    assert times(x.double()) == 3
    net[1] = nn.Softmax(0)
    with pytest.raises(NotCovered, match="depend on the other samples"):
        times(x.double())


def test_a_single_sample_proves_nothing_for_more():
    net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(0), nn.Linear(3, 2))
    squared_norms(net, torch.randn(1, 4), torch.randn(1, 2))
    with pytest.raises(NotCovered, match="depend on the other samples"):
        squared_norms(net, torch.randn(6, 4), torch.randn(6, 2))
