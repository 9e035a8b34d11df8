"""Complex weights, and ones without axes or elements, in every engine: as of the same net with real parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import N, assert_same, call, one_at_a_time
from torch import nn

from lightning_info.gradients import NotCovered, choose_engine, ggn_diagonal, gram_matrix
from lightning_info.gradients.gram import ENGINES as GRAM_ENGINES
from lightning_info.gradients.plan import ENGINES, coverage
from lightning_info.gradients.real import as_real, flat, shaped, sizes

COMPLEX, REAL = torch.complex128, torch.float64


class Net(nn.Module):
    """Bare parameters; in the real form the body gets complex numbers that are made of two real ones."""

    def __init__(self, body, parameters, is_real=False):
        super().__init__()
        self.body, self.is_real = body, is_real
        self.complex = {name for name, value in parameters.items() if value.is_complex()}
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(as_real(value).clone() if is_real else value.clone()))

    def forward(self, x):
        joined = self.complex if self.is_real else ()
        return self.body(x, **{k: torch.view_as_complex(p) if k in joined else p for k, p in self.named_parameters()})


def z(*shape):
    return torch.randn(shape, dtype=COMPLEX)


def r(*shape):
    return torch.randn(shape, dtype=REAL)


def spectral(x, w, head):
    return torch.fft.irfft(torch.einsum("bim,iom->bom", torch.fft.rfft(x), w), n=8).flatten(1) @ head


CASES = {  # body, parameters, input, engine
    "spectral convolution": (spectral, lambda: {"w": z(3, 2, 5), "head": r(16, 3)}, lambda: r(N, 3, 8)),
    "linear": (lambda x, w, b: as_real(F.linear(x, w, b)), lambda: {"w": z(3, 5), "b": z(3)}, lambda: z(N, 5)),
    "few positions": (
        lambda x, w, b: F.linear(x, w, b).abs().sum(1),
        lambda: {"w": z(7, 6), "b": z(7)},
        lambda: z(N, 2, 6),
    ),
    "many positions": (lambda x, w: (x @ w).real.square().sum(1), lambda: {"w": z(2, 3)}, lambda: z(N, 9, 2)),
    "used twice": (
        lambda x, w: F.linear(torch.tanh(F.linear(x, w)), w).imag,
        lambda: {"w": z(4, 4)},
        lambda: z(N, 4),
    ),
    "convolution": (
        lambda x, w, b: F.conv1d(x, w, b, padding=1).abs().mean(-1),
        lambda: {"w": z(4, 2, 3), "b": z(4)},
        lambda: z(N, 2, 9),
    ),
    "look-up": (
        lambda x, w, v: w[x].sum(1).real @ v,
        lambda: {"w": z(9, 4), "v": r(4, 3)},
        lambda: torch.arange(5 * N).view(N, 5) % 9,
    ),
    "conjugate": (lambda x, w: (x * w.conj()).real, lambda: {"w": z(4)}, lambda: z(N, 4)),
    "complex activations": (
        lambda x, w, v: torch.fft.fft(x @ w).abs() @ v,
        lambda: {"w": r(4, 4), "v": r(4, 2)},
        lambda: r(N, 4),
    ),
    "no axes": (
        lambda x, w, t, u: (x * w).real * t.exp() + u,
        lambda: {"w": z(), "t": r(), "u": r(1)},
        lambda: z(N, 4),
    ),
    "only one, no axes": (lambda x, t: (x * t).tanh(), lambda: {"t": r()}, lambda: r(N, 4)),
    "no elements": (
        lambda x, w, none, zero: torch.cat([x @ w, none.expand(len(x), 0), x @ zero.T], 1),
        lambda: {"w": r(4, 3), "none": r(0), "zero": r(0, 4)},
        lambda: r(N, 4),
    ),
}


def case(name):
    body, parameters, x = CASES[name]
    values, x = parameters(), x()
    net, real = Net(body, values), Net(body, values, is_real=True)
    torch.testing.assert_close(net(x), real(x))
    return net, real, x


@pytest.mark.parametrize("name", CASES)
def test_every_engine_gives_the_squared_norms_of_the_real_form(name):
    net, real, x = case(name)
    u = torch.randn_like(real(x))
    truth = one_at_a_time(real, x, u)
    taken = {}
    for engine in ENGINES:
        try:
            taken[engine] = choose_engine(net, call, x, engine).squared_norms(net, call, x, [u])
        except NotCovered:
            assert engine == "backpack"  # the others have no operators that they do not know
    for found in taken.values():
        assert_same(found, truth)
        assert coverage(net, found) == 1
    linear = name in ("linear", "few positions", "many positions", "used twice", "complex activations")
    assert ("backpack" in taken) == linear


@pytest.mark.parametrize("engine", GRAM_ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_every_gram_engine_gives_the_products_and_the_diagonal_of_the_real_form(name, engine):
    net, real, x = case(name)
    outputs = real(x)
    columns = torch.randn(2, *outputs.shape, dtype=REAL)
    rows = []
    for n in range(N):
        for u in columns:
            gradients = torch.autograd.grad(
                (outputs[n] * u[n]).sum(), list(real.parameters()), retain_graph=True, allow_unused=True
            )
            rows.append([g.flatten() for g in gradients])
    a = torch.stack([torch.cat(row) for row in rows])
    found = gram_matrix(net, x, columns, diagonal=True, engine=engine)
    torch.testing.assert_close(found.matrix, a @ a.T)
    for place, (name, p) in enumerate(real.named_parameters()):
        squares = torch.stack([row[place] for row in rows]).square().sum(0)
        torch.testing.assert_close(found.diagonal[name], squares.view(p.shape))


def test_the_check_runs_in_double_precision_with_the_imaginary_part():
    """A real float64 copy of a complex net would be another net."""
    body = lambda x, w: as_real(x * w).flatten(1)  # noqa: E731
    net = Net(body, {"w": torch.tensor([0.6 + 0.8j, 1j])})
    plan = choose_engine(net, call, torch.randn(N, 2, dtype=torch.complex64))
    assert plan.engine == "backpack_vmap"
    assert plan.checked == N


def test_real_numbers_of_weights_and_back():
    weights = [z(2, 3), r(4), z(), r(0), z(2).conj()]
    assert sizes(weights) == [12, 4, 2, 0, 4]
    for weight, size in zip(weights, sizes(weights), strict=True):
        assert flat(weight).shape == (size,)
        assert torch.equal(shaped(flat(weight), weight), weight)
    whole = torch.cat([torch.zeros(1, dtype=REAL), flat(weights[0])])  # at an odd place in memory
    assert torch.equal(shaped(whole[1:].float(), weights[0].cfloat()), weights[0].cfloat())


@pytest.mark.parametrize("what", ["norms", "products", "diagonal"])
def test_what_there_is_no_value_of_is_refused_as_complex(what):
    layer, x = nn.Linear(4, 3, dtype=COMPLEX), z(N, 4)
    refused = {
        "norms": lambda: choose_engine(layer, call, x),
        "products": lambda: gram_matrix(layer, x, torch.ones(1, N, 3)),
        "diagonal": lambda: ggn_diagonal(nn.Sequential(layer, nn.Flatten()), x, "gaussian"),
    }
    with pytest.raises(NotCovered, match="complex"):
        refused[what]()
