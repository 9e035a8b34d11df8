"""Recurrent layers: the unrolled ones compute what the fused ones do, and all their gradients are found."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from gradients.cases import N, Net, check, head, real
from torch import nn

from lightning_info.gradients import choose_engine
from lightning_info.gradients.recorder import Recorder


class Opened(Recorder):
    """Opens recurrent layers and does nothing else."""

    def tapped(self, call):
        return call.func(*call.args, **call.kwargs)


LAYERS = {
    "LSTM": lambda: nn.LSTM(5, 4, batch_first=True),
    "LSTM, two layers, both directions": lambda: nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True, dropout=0.5),
    "LSTM, projected": lambda: nn.LSTM(5, 4, 2, batch_first=True, proj_size=2, bidirectional=True),
    "LSTM, projected, no bias": lambda: nn.LSTM(5, 4, batch_first=True, proj_size=2, bias=False),
    "GRU": lambda: nn.GRU(5, 4, 2, batch_first=True),
    "GRU, both directions, no bias": lambda: nn.GRU(5, 4, batch_first=True, bidirectional=True, bias=False),
    "RNN": lambda: nn.RNN(5, 4, 2, batch_first=True),
    "RNN, relu, both directions": lambda: nn.RNN(5, 4, batch_first=True, bidirectional=True, nonlinearity="relu"),
}


def start(layer, samples):
    """Initial states away from zero."""
    places = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(places, samples, layer.proj_size or layer.hidden_size)
    return (h, torch.randn(places, samples, layer.hidden_size)) if isinstance(layer, nn.LSTM) else h


class OpenedAtOnce(Opened):
    """The same in the form for all samples at once."""

    fuses = True


@pytest.mark.parametrize("opened", [Opened, OpenedAtOnce])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_an_unrolled_layer_is_the_fused_one(name, batch_first, opened):
    layer = LAYERS[name]().eval()
    layer.batch_first = batch_first
    x = torch.randn(3, 6, 5) if batch_first else torch.randn(6, 3, 5)
    for state in (None, start(layer, 3)):
        with opened({}):
            output, last = layer(x, state)
        expected, expected_last = layer(x, state)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda *a: nn.RNNCell(*a, nonlinearity="relu")])
def test_an_unrolled_cell_is_the_fused_one(kind):
    cell, x, h = kind(5, 4), torch.randn(3, 5), torch.randn(3, 4)
    state = (h, torch.randn(3, 4)) if isinstance(cell, nn.LSTMCell) else h
    with Opened({}):
        found = cell(x, state), cell(x)
    torch.testing.assert_close(found, (cell(x, state), cell(x)))


def _read(m, x):
    return m.head(m.layer(x)[0].mean(1))


def _read_time_first(m, x):
    return m.head(m.layer(x.transpose(0, 1))[0].mean(0))


def _from_state(m, x):
    h = torch.tanh(m.first(x[:, 0])).unsqueeze(0)
    output, last = m.layer(x, (h, 2 * h) if isinstance(m.layer, nn.LSTM) else h)
    return m.head(output.sum(1) + (last[1] if isinstance(m.layer, nn.LSTM) else last)[0])


def _cells(m, x):
    state = None
    for step in x.unbind(1):
        state = m.layer(step, state)
    return m.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("name", LAYERS)
def test_all_uses_of_the_weights_are_joined(name):
    layer = LAYERS[name]()
    width = (layer.proj_size or 4) * (2 if layer.bidirectional else 1)
    check(Net(_read, layer=layer, head=head(width)), real(5, 5), "backpack")


@pytest.mark.parametrize("steps", [3, N])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_time_may_come_first(kind, steps):
    check(Net(_read_time_first, layer=kind(5, 4), head=head(4)), real(steps, 5), "backpack")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_states_have_gradients(kind):
    net = Net(_from_state, layer=kind(5, 4, batch_first=True), first=nn.Linear(5, 4), head=head(4))
    check(net, real(3, 5), "backpack")


@pytest.mark.parametrize("bias", [True, False])
def test_the_loop_of_an_lstm_has_the_gradients_of_the_fused_layer(bias):
    layer = nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True, bias=bias).double()
    x, (h, c) = torch.randn(3, 6, 5).double().requires_grad_(), start(layer, 3)
    state = h.double().requires_grad_(), c.double().requires_grad_()
    leaves, u = [*layer.parameters(), x, *state], [torch.randn(*s).double() for s in ((3, 6, 8), (4, 3, 4), (4, 3, 4))]
    found = []
    for opened in (OpenedAtOnce({}), None):
        with opened or nullcontext():
            output, last = layer(x, state)
        loss = sum((a * b).sum() for a, b in zip((output, *last), u, strict=True))
        found += [torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2)]
    for one, again, truth, _ in zip(*found, strict=True):
        torch.testing.assert_close(one, truth, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(again, one, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind):
    check(Net(_cells, layer=kind(5, 4), head=head(4)), real(3, 5), "backpack")


def test_under_vmap_next_to_a_bare_parameter():
    net = Net(lambda m, x: _read(m, x * m.scale), layer=LAYERS["GRU"](), head=head(4))
    net.scale = nn.Parameter(torch.randn(5))
    check(net, real(5, 5), "backpack_vmap")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_are_left_to_the_loop(kind):
    def body(m, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        last = m.layer(packed)[1]
        return m.head((last[0] if isinstance(last, tuple) else last)[-1])

    net = Net(body, layer=kind(5, 4, batch_first=True), head=head(4))
    check(net, real(3, 5), "loop")
    assert "packed sequences" in choose_engine(net.float(), lambda m, b: m(b), real(3, 5)).reasons["backpack"]
