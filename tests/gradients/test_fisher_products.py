"""Products with the Fisher information, against the matrix from ``torch.func`` Jacobians."""

from __future__ import annotations

import copy

import pytest
import torch
from gradients.cases import Net, head, prepared
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_info.functional.fisher import exact_cotangents
from lightning_info.gradients import NotCovered
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.fisher_products import FisherProducts, with_all_outputs

N = 7


def conv():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    return net, torch.randn(N, 2, 4, 4), "categorical"


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(N, 5), "bernoulli"


def regression():
    net = Net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2), unused=nn.Linear(2, 2))
    net.b.bias.requires_grad_(False)
    return net, torch.randn(N, 5), "gaussian"


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return Net(lambda m, x: m.head(m.layer(x)), layer=layer, head=head(4)), torch.randn(N, 5, 4), "categorical"


CASES = {made.__name__: made for made in (conv, mlp, regression, transformer)}


def case(name):
    net, x, likelihood = CASES[name]()
    net, x = prepared(net, x)
    # sequences end, and one has no position at all
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [2], [0], [5]]) if name == "transformer" else None

    def predict(module, part):
        index, inputs = part
        return module(inputs), likelihood, None if mask is None else mask[index]

    return net, x, likelihood, mask, predict


def parts(x, *sizes):
    return lambda: zip(torch.arange(len(x)).split(sizes), x.split(sizes), strict=True)


def explicit(net, x, likelihood, mask):
    """``1/N sum J_nᵀ H_n J_n`` from every sample's Jacobian alone."""
    parameters = {name: p.detach() for name, p in trainable(net).items()}
    k = sum(p.numel() for p in parameters.values())
    fisher = torch.zeros(k, k, dtype=torch.float64)
    for n in range(len(x)):
        outputs = lambda p: torch.func.functional_call(net, p, (x[n : n + 1],)).squeeze(0)  # noqa: B023, E731
        z = outputs(parameters).detach()
        with sdpa_kernel(SDPBackend.MATH):
            jacobian = torch.cat([j.flatten(z.dim()) for j in torch.func.jacrev(outputs)(parameters).values()], -1)
        positions = zip(z.reshape(-1, z.shape[-1]), jacobian.reshape(-1, z.shape[-1], k), strict=True)
        for position, (logits, rows) in enumerate(positions):
            p, q = logits.softmax(-1), logits.sigmoid()
            h = {
                "categorical": torch.diag(p) - torch.outer(p, p),
                "bernoulli": torch.diag(q * (1 - q)),
                "gaussian": torch.eye(len(p), dtype=p.dtype),
            }[likelihood]
            if mask is None or mask[n, position]:
                fisher += rows.T @ h @ rows / len(x)
    return fisher


@pytest.mark.parametrize("name", CASES)
def test_the_product_is_that_of_the_explicit_matrix_for_parts_of_any_size(name):
    net, x, likelihood, mask, predict = case(name)
    fisher = explicit(net, x, likelihood, mask)
    assert fisher.trace() > 0
    for sizes in ((7,), (3, 4), (1, 5, 1)):
        products = FisherProducts(net, predict, parts(x, *sizes))
        assert products.weights == len(fisher)
        v = torch.randn(products.weights, dtype=torch.float64)
        torch.testing.assert_close(products(v), fisher @ v, rtol=1e-10, atol=1e-12)
    products.check()


@pytest.mark.parametrize("name", CASES)
def test_the_gram_matrix_is_that_of_the_explicit_matrix(name):
    net, x, likelihood, mask, predict = case(name)
    fisher = explicit(net, x, likelihood, mask)
    products = FisherProducts(net, predict, parts(x, 3, 4))
    v = torch.randn(3, products.weights, dtype=torch.float64)
    torch.testing.assert_close(products.gram(v), v @ fisher @ v.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_it_is_linear_symmetric_and_leaves_the_module_alone(name):
    net, x, _, _, predict = case(name)
    before = copy.deepcopy(net.state_dict())
    products = FisherProducts(net, predict, parts(x, 4, 3))
    v, w = torch.randn(2, products.weights, dtype=torch.float64)
    torch.testing.assert_close(products(2 * v - w), 2 * products(v) - products(w), rtol=1e-10, atol=1e-12)
    assert (v @ products(w)).item() == pytest.approx((w @ products(v)).item(), rel=1e-10)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_in_single_precision_it_loses_no_more_than_that():
    net, x, likelihood, mask, predict = case("transformer")
    fisher = explicit(net, x, likelihood, mask)
    products = FisherProducts(net.float(), lambda m, part: predict(m, (part[0], part[1].float())), parts(x, 4, 3))
    v = torch.randn(products.weights, dtype=torch.float64)
    found, truth = products(v), fisher @ v
    assert found.dtype == torch.float64
    assert (found - truth).norm() <= 1e-5 * truth.norm()
    products.check()


class Square(torch.autograd.Function):
    """Its gradient is a constant for autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return torch.from_numpy((2 * gradient * ctx.saved_tensors[0]).detach().numpy())


def test_an_operator_without_second_derivative_is_found():
    inside = Net(lambda m, x: m.b(Square.apply(m.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 3))
    behind = Net(lambda m, x: Square.apply(m.a(x)), a=nn.Linear(5, 6))
    for net in (inside, behind):
        products = FisherProducts(net, lambda m, x: (m(x), "categorical", None), lambda: [torch.randn(N, 5)])
        with pytest.raises(NotCovered, match="no second derivative"):
            products.check()


def attention(m, x):
    queries, keys = m.queries(x), m.keys(x)
    return m.out((queries @ keys.transpose(1, 2)).softmax(-1) @ x).mean(1)


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_that_is_0_but_for_rounding_is_no_operator_without_second_derivative(seed):
    torch.manual_seed(seed)
    net = Net(attention, queries=nn.Linear(8, 8), keys=nn.Linear(8, 8), out=nn.Linear(8, 3)).float()
    x = torch.randn(N, 6, 8)
    (gradient,) = torch.autograd.grad(net(x).square().sum(), net.keys.bias)
    assert 0 < gradient.norm() < 1e-5
    FisherProducts(net, lambda m, x: (m(x), "categorical", None), lambda: [x]).check()


def test_a_module_that_trains_nothing_is_refused():
    with pytest.raises(NotCovered, match="none of its parameters"):
        FisherProducts(nn.Linear(4, 3).requires_grad_(False), lambda m, x: (m(x), "gaussian", None), lambda: [])


FIRST, LAST = (slice(2), slice(None)), (slice(None), slice(2))


@pytest.mark.parametrize(
    ("likelihood", "cut"), [("categorical", FIRST), ("gaussian", FIRST), ("gaussian", LAST), ("bernoulli", LAST)]
)
def test_columns_of_a_shorter_batch_stand_where_those_of_a_longer_one_do(likelihood, cut):
    z = torch.randn(N, 5, 3, dtype=torch.float64)
    few = z[(slice(None), *cut)]
    columns = torch.stack(list(exact_cotangents(few, likelihood)))
    expected = torch.stack(list(exact_cotangents(z, likelihood)))
    found = with_all_outputs(columns, len(expected), (5, 3))
    is_there = expected[(slice(None), slice(None), *cut)].flatten(1).any(1)
    assert int(is_there.sum()) == len(columns)
    torch.testing.assert_close(found[is_there], expected[(is_there, slice(None), *cut)])
    assert not found[~is_there].any()
