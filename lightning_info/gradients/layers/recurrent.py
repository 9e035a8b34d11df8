"""Recurrent layers: ``torch.lstm`` and the like, which are fused, are run as loops over ``F.linear``.

So their rules are those of the linear layer, with the time steps as positions. Values agree with the fused ones to
rounding. Time is axis 1 inside, so that samples are on axis 0 of every call. Where all samples go through at once the
loop of an LSTM is :mod:`~.lstm_loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.layers import lstm_loop
from lightning_info.gradients.layers.base import Layer, Operator, register, stand_in

State = tuple[Tensor, ...]
"""``(h,)``, and for the LSTM ``(h, c)``."""
Step = Callable[[Tensor, Tensor, State], State]
"""The input's and the state's share of the gates, and the state before -> the state behind."""


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.relu(x + h),)


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = x.chunk(3, -1), h.chunk(3, -1)
    update = torch.sigmoid(x_update + h_update)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return ((1 - update) * new + update * state[0],)


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    enter, forget, cell, out = (x + h).chunk(4, -1)
    c = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(cell)
    return torch.sigmoid(out) * torch.tanh(c), c


Direction = Callable[[Tensor, State, Sequence[Any], bool], tuple[Tensor, State]]
"""``(x (B, T, I), state, weights, backwards)`` -> outputs ``(B, T, H)`` and the last state, of one layer."""


def _direction(step: Step, x: Tensor, state: State, weights: Sequence[Any], backwards: bool) -> tuple[Tensor, State]:
    """One direction of one layer: ``x (B, T, I)`` -> outputs ``(B, T, H)`` and the last state."""
    w_input, w_hidden, b_input, b_hidden, w_projection = weights
    gates = F.linear(x, w_input, b_input).unbind(1)
    outputs = []
    for gate in reversed(gates) if backwards else gates:
        state = step(gate, F.linear(state[0], w_hidden, b_hidden), state)
        if w_projection is not None:
            state = (F.linear(state[0], w_projection), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs, 1), state


def _lstm_direction(x: Tensor, state: State, weights: Sequence[Any], backwards: bool) -> tuple[Tensor, State]:
    w_input, w_hidden, b_input, b_hidden, w_projection = weights
    mixed = len({tensor.dtype for tensor in (x, w_hidden, *state)}) > 1 or torch.is_autocast_enabled(x.device.type)
    if w_projection is not None or mixed or not x.shape[1]:
        return _direction(_lstm, x, state, weights, backwards)
    gates = F.linear(x, w_input, b_input)
    outputs, c = lstm_loop.run(gates.flip(1) if backwards else gates, w_hidden, b_hidden, *state)
    return outputs.flip(1) if backwards else outputs, (outputs[:, -1], c)


def _layers(direction_of: Direction) -> Callable[..., tuple[Tensor, ...]]:
    def layer(
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        if not isinstance(has_biases, bool):  # (data, batch_sizes, hx, params, ...)
            raise NotCovered("a recurrent layer gets packed sequences; give it padded ones")
        x = input if batch_first else input.transpose(0, 1)
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        directions = 2 if bidirectional else 1
        last: list[State] = []
        for index in range(num_layers):
            outputs = []
            for direction in range(directions):
                place = index * directions + direction
                weights = _weights(params, place, num_layers * directions, has_biases)
                start = tuple(state[place] for state in states)
                output, end = direction_of(x, start, weights, direction == 1)
                outputs.append(output)
                last.append(end)
            x = torch.cat(outputs, -1)
            if index + 1 < num_layers:
                x = F.dropout(x, dropout, train)
        return (x if batch_first else x.transpose(0, 1), *(torch.stack(state) for state in zip(*last, strict=True)))

    return layer


def _unrolled(step: Step) -> Callable[..., tuple[Tensor, ...]]:
    return _layers(partial(_direction, step))


def _weights(params: Sequence[Tensor], place: int, places: int, has_biases: bool) -> list[Tensor | None]:
    """Input weight, hidden weight, their biases, projection."""
    each = len(params) // places
    own = params[each * place : each * (place + 1)]
    count = 4 if has_biases else 2
    biases = own[2:4] if has_biases else (None, None)
    return [*own[:2], *biases, own[count] if each > count else None]


def _cell(step: Step) -> Callable[..., Any]:
    def cell(
        input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        end = step(F.linear(input, w_ih, b_ih), F.linear(state[0], w_hh, b_hh), state)
        return end[0] if isinstance(hx, Tensor) else end

    return cell


def _read_state_share(before: Tensor, weight: Tensor, bias: Tensor | None) -> Operator:
    return Operator(stand_in(nn.Linear), before, weight, bias, 1, (nn.Linear,))


register(
    Layer(
        name="recurrent",
        calls={lstm_loop.state_share: _read_state_share},
        fused={torch.lstm: _layers(_lstm_direction)},
        opened={
            torch.lstm: _unrolled(_lstm),
            torch.gru: _unrolled(_gru),
            torch.rnn_tanh: _unrolled(_tanh),
            torch.rnn_relu: _unrolled(_relu),
            torch.lstm_cell: _cell(_lstm),
            torch.gru_cell: _cell(_gru),
            torch.rnn_tanh_cell: _cell(_tanh),
            torch.rnn_relu_cell: _cell(_relu),
        },
    )
)
