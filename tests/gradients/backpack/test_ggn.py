"""Diagonal and Kronecker factors of the Fisher information: explicit Jacobians, and modules that stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from backpack.context import CTX
from backpack.extensions.secondorder.diag_ggn.convnd import DiagGGNConvND
from backpack.extensions.secondorder.diag_ggn.linear import DiagGGNLinear
from backpack.extensions.secondorder.hbp.convnd import HBPConvNd
from backpack.extensions.secondorder.hbp.linear import HBPLinear
from gradients.cases import N, Net, head, prepared, real
from models import FEATURES, Classifier
from torch import nn

from lightning_info.functional import fisher_trace
from lightning_info.gradients import NotCovered, ggn_diagonal, kfac, squared_norms
from lightning_info.gradients.backpack import ggn as curvature

LIKELIHOODS = ["categorical", "bernoulli", "gaussian"]


def output_fisher(z, likelihood):
    """``H`` of one sample's outputs ``(*positions, C)``, written down as a matrix."""
    flat = z.flatten()
    if likelihood == "gaussian":
        return torch.eye(len(flat), dtype=z.dtype)
    if likelihood == "bernoulli":
        return torch.diag(flat.sigmoid() * (1 - flat.sigmoid()))
    blocks = [torch.diag(p) - torch.outer(p, p) for p in z.softmax(-1).view(-1, z.shape[-1])]
    return torch.block_diag(*blocks)


def fisher_blocks(net, x, likelihood):
    """The block of F of each parameter, ``(numel, numel)``, from one sample's Jacobian after the other."""
    parameters = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    blocks = dict.fromkeys(parameters, 0)
    for n in range(len(x)):

        def forward(values, single=x[n : n + 1]):
            return torch.func.functional_call(net, values, (single.clone(),))[0]

        h = output_fisher(forward(parameters), likelihood)
        for name, jacobian in torch.func.jacrev(forward)(parameters).items():
            j = jacobian.reshape(len(h), -1)
            blocks[name] = blocks[name] + j.T @ h @ j / len(x)
    return blocks


class Residual(nn.Module):
    """As in ResNets: in-place layers, one of them used twice, a sum and a flatten as functions."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv, self.pool, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1), head(4)

    def forward(self, x):
        h = self.relu(self.norm(self.enter(x)))
        out = self.conv(h)
        out += h
        return self.head(torch.flatten(self.pool(self.relu(out)), 1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), head(4)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.head(states)


def frozen_features():
    """What comes before the first trained parameter needs no rule."""
    features = nn.Sequential(nn.Embedding(9, 4), nn.GELU(), nn.Flatten())
    return nn.Sequential(features.requires_grad_(False), nn.Linear(12, 5), nn.Tanh(), head(5))


def dead_end():
    return Net(lambda m, x: m.head(m.a(x) * 0.5), a=nn.Linear(4, 5), head=head(5), spare=nn.Linear(4, 2))


def transposed():
    up, down = nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), nn.Conv2d(4, 2, (3, 2), dilation=2)
    return nn.Sequential(up, nn.LeakyReLU(0.2), down, nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), head(16))


DIAGONALS = {
    "layer": lambda: (nn.Linear(4, 3), real(4)),
    "MLP": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3, bias=False)), real(4)),
    "positions": lambda: (nn.Sequential(nn.Linear(4, 5), nn.SELU(), head(5)), real(2, 4)),
    "channels first": lambda: (Net(lambda m, x: m.a(x).permute(0, 2, 1), a=nn.Conv1d(2, 3, 2)), real(2, 4)),
    "residual": lambda: (Residual(), real(2, 6, 6)),
    "transposed": lambda: (transposed(), real(2, 3, 4)),
    "LSTM": lambda: (Recurrent(), real(3, 3)),
    "frozen features": lambda: (frozen_features(), torch.randint(0, 9, (N, 3))),
    "a part that is not used": lambda: (dead_end(), real(4)),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", DIAGONALS)
def test_the_diagonal_is_that_of_the_explicit_matrix(name, likelihood):
    net, x = prepared(*DIAGONALS[name]())
    truth = fisher_blocks(net, x, likelihood)
    found = ggn_diagonal(net, x, likelihood)
    assert list(found) == list(truth)
    scale = max(block.diag().max() for block in truth.values())
    for parameter, block in truth.items():
        p = net.get_parameter(parameter)
        assert found[parameter].dtype == torch.float64
        assert not found[parameter].requires_grad
        torch.testing.assert_close(found[parameter], block.diag().view_as(p), rtol=1e-10, atol=1e-14 * scale)


@pytest.mark.parametrize("name", ["MLP", "residual", "channels first"])
def test_the_diagonal_sums_to_the_trace(name):
    net, x = prepared(*DIAGONALS[name]())
    truth = fisher_trace(net(x), lambda u: sum(squared_norms(net, x, u).values()), "categorical", "exact").trace
    total = sum(values.sum().item() for values in ggn_diagonal(net, x).values())
    assert total == pytest.approx(truth, rel=1e-12)


POOLS = {
    "ceil_mode": (nn.AvgPool2d(2, ceil_mode=True), real(2, 5, 5)),
    "count_include_pad": (nn.AvgPool2d(3, padding=1, count_include_pad=False), real(2, 5, 5)),
    "divisor_override": (nn.AvgPool3d(2, divisor_override=5), real(2, 4, 4, 4)),
    "1d": (nn.AvgPool1d(2), real(2, 5)),
    "adaptive, no multiple": (nn.AdaptiveAvgPool2d(3), real(2, 5, 5)),
}


@pytest.mark.parametrize("name", POOLS)
def test_averages_of_any_settings(name):
    """The stock rule fails, or is wrong without a word."""
    pool, x = POOLS[name]
    convolution = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[x.dim()]
    net, x = prepared(nn.Sequential(convolution(2, 2, 1), pool, nn.Flatten(), nn.LazyLinear(3)), x)
    net(x)
    truth = fisher_blocks(net, x, "gaussian")
    for parameter, found in ggn_diagonal(net, x, "gaussian").items():
        torch.testing.assert_close(found.flatten(), truth[parameter].diag(), rtol=1e-10, atol=1e-12)


def kronecker_net():
    parts = [nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), nn.ReLU(inplace=True), nn.ConvTranspose2d(3, 2, 2)]
    return nn.Sequential(*parts, nn.Tanh(), nn.Flatten(), nn.Linear(32, 5), nn.Sigmoid(), head(5))


def unfolded(layer, x):
    """Inputs of a layer as ``(N, positions, features)``, by its own forward pass: it is linear in its weight."""
    w = layer.weight
    shape = (w.shape[1], w.shape[0]) if isinstance(layer, nn.ConvTranspose2d) else w.shape[:2]
    probes = torch.eye(w.numel() // shape[0], dtype=w.dtype).view(-1, 1, shape[1], *w.shape[2:])
    columns = []
    for probe in probes:
        one = torch.zeros(shape[0], shape[1], *w.shape[2:], dtype=w.dtype)
        one[:1] = probe
        one = one.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else one
        values = {"weight": one} | ({} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)})
        columns.append(torch.func.functional_call(layer, values, (x,))[:, 0].reshape(len(x), -1))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_factors_are_what_they_say(likelihood):
    net, x = prepared(kronecker_net(), real(2, 5, 5))
    found = kfac(net, x, likelihood)
    truth = fisher_blocks(net, x, likelihood)
    h = x
    for i, layer in enumerate(net):
        if list(layer.parameters()):
            a = unfolded(layer, h)
            output_factor, input_factor = found[f"{i}.weight"]
            torch.testing.assert_close(input_factor, torch.einsum("nti,ntj->ij", a, a) / N, rtol=1e-10, atol=1e-13)
            if layer.bias is not None:
                (bias_factor,) = found[f"{i}.bias"]
                torch.testing.assert_close(bias_factor, truth[f"{i}.bias"], rtol=1e-10, atol=1e-13)
                torch.testing.assert_close(output_factor, bias_factor, rtol=1e-12, atol=0)
        h = layer(h.clone()).detach()
    assert found.keys() == truth.keys()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_for_one_sample_and_position_their_product_is_the_block(likelihood):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), head(4))
    net, x = prepared(net, real(2, 3, 3)[:1])
    truth = fisher_blocks(net, x, likelihood)
    for parameter, factors in kfac(net, x, likelihood).items():
        product = torch.kron(*factors) if len(factors) == 2 else factors[0]
        torch.testing.assert_close(product, truth[parameter], rtol=1e-10, atol=1e-14)


def test_factors_of_a_transposed_convolution_are_those_of_its_transposed_weight():
    net, x = prepared(nn.Sequential(nn.ConvTranspose2d(2, 3, (3, 2), padding=1), nn.Flatten()), real(2, 1, 2)[:1])
    block = fisher_blocks(net, x, "gaussian")["0.weight"].view(*net[0].weight.shape, *net[0].weight.shape)
    product = torch.kron(*kfac(net, x, "gaussian")["0.weight"])
    shape = net[0].weight.transpose(0, 1).shape
    torch.testing.assert_close(product.view(*shape, *shape), block.transpose(0, 1).transpose(4, 5))


def test_for_several_samples_it_is_an_approximation():
    net, x = prepared(DIAGONALS["MLP"]()[0], real(4))
    factors, block = kfac(net, x)["0.weight"], fisher_blocks(net, x, "categorical")["0.weight"]
    assert 0.01 < (torch.kron(*factors) - block).norm() / block.norm() < 1
    assert torch.kron(*factors).trace() == pytest.approx(block.trace(), rel=0.5)


@pytest.mark.parametrize(
    ("likelihood", "estimator"),
    [("categorical", "importance"), ("categorical", "sampled"), ("bernoulli", "sampled"), ("gaussian", "rademacher")],
)
def test_random_cotangents_are_unbiased(likelihood, estimator):
    net, x = prepared(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), head(3)), real(4))
    truth = ggn_diagonal(net, x, likelihood)
    found = ggn_diagonal(net, x, likelihood, estimator, draws=500)
    for parameter, values in truth.items():
        torch.testing.assert_close(found[parameter], values, rtol=0.2, atol=0.05 * values.max().item())
    for (output_factor, *_), (expected, *_) in zip(
        kfac(net, x, likelihood, estimator, draws=500).values(), kfac(net, x, likelihood).values(), strict=True
    ):
        torch.testing.assert_close(output_factor, expected, rtol=0.2, atol=0.1 * expected.max().item())


def test_draws_depend_on_the_seed_alone():
    net, x = prepared(*DIAGONALS["MLP"]())
    first, again, other = (ggn_diagonal(net, x, estimator="sampled", seed=seed)["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    net, x = DIAGONALS["residual"]()
    net.eval().to(dtype)
    precise = copy.deepcopy(net).double()
    found, truth = ggn_diagonal(net, x.to(dtype)), ggn_diagonal(precise, x.to(dtype).double())
    for parameter, values in truth.items():
        assert found[parameter].dtype == torch.float32
        torch.testing.assert_close(found[parameter].double(), values, rtol=1e-3, atol=1e-6)


def test_a_lightning_module_in_inference_mode_under_autocast():
    module = Classifier().eval()
    truth = ggn_diagonal(module, torch.ones(N, FEATURES))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = ggn_diagonal(module, torch.ones(N, FEATURES))
    assert all(torch.equal(found[name], values) for name, values in truth.items())


@pytest.mark.parametrize("function", [ggn_diagonal, kfac])
def test_nothing_changes_and_nothing_is_left_behind(function):
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3))
    x = real(2, 5, 5).neg_()
    net(x.clone()).sum().backward()

    def attributes():
        tables = [vars(owner) for owner in (*net.modules(), *net.parameters())]
        return [{k: len(v) if "hooks" in k and v is not None else None for k, v in table.items()} for table in tables]

    def tensors():
        return [x, torch.get_rng_state(), *net.state_dict().values(), *(p.grad for p in net.parameters())]

    handles, before, kept = list(CTX.hook_handles), attributes(), [tensor.clone() for tensor in tensors()]
    function(net, x, estimator="sampled")
    assert attributes() == before
    assert all(torch.equal(a, b) for a, b in zip(tensors(), kept, strict=True))
    assert net[0].inplace
    assert CTX.hook_handles == handles
    assert not CTX.get_active_exts()


def scaled(right):
    return lambda self, *args: (
        [f * (1 + 1e-4) for f in v] if isinstance(v := right(self, *args), list) else v * (1 + 1e-4)
    )


@pytest.mark.parametrize(
    ("function", "rule", "method"),
    [
        (ggn_diagonal, DiagGGNLinear, "weight"),
        (ggn_diagonal, DiagGGNConvND, "bias"),
        (kfac, HBPLinear, "_factors_from_input"),
        (kfac, HBPLinear, "bias"),
        (kfac, HBPConvNd, "_factors_from_input"),
        (kfac, HBPConvNd, "_factor_from_sqrt"),
    ],
)
def test_a_wrong_rule_is_caught(function, rule, method, monkeypatch):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3))
    x = real(2, 5, 5)
    function(net, x)
    monkeypatch.setattr(rule, method, scaled(getattr(rule, method)))
    with pytest.raises(NotCovered, match=r"by BackPACK has an element .*, by plain autograd"):
        function(net, x)


def test_one_wrong_element_is_caught(monkeypatch):
    right = DiagGGNLinear.weight

    def wrong(self, *args):
        values = right(self, *args)
        values.view(-1)[values.argmin()] *= 1.01
        return values

    monkeypatch.setattr(DiagGGNLinear, "weight", wrong)
    with pytest.raises(NotCovered, match="the diagonal of weight by BackPACK has an element"):
        ggn_diagonal(nn.Linear(4, 3), real(4))


def test_a_rule_that_gives_nothing_is_noticed(monkeypatch):
    monkeypatch.setattr("backpack.extensions.module_extension.setattr", lambda *args: None, raising=False)
    with pytest.raises(NotCovered, match="BackPACK gives nothing for bias, weight of Linear"):
        ggn_diagonal(nn.Linear(4, 3), real(4))


SILENT = {
    "circular padding": lambda: (nn.Sequential(nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular")), real(2, 5)),
    "a tied weight": lambda: (tied(), real(4)),
    "a slice": lambda: (Net(lambda m, x: m.head(m.a(x)[:, :4]), a=nn.Linear(4, 6), head=head(4)), real(4)),
}


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize("function", [ggn_diagonal, kfac])
@pytest.mark.parametrize("name", SILENT)
def test_what_is_refused_by_name_would_be_caught_by_the_comparison(name, function, monkeypatch):
    net, x = SILENT[name]()
    monkeypatch.setattr(curvature, "obstacles", lambda *args, **kwargs: [])
    with pytest.raises(NotCovered, match=r"by plain autograd|BackPACK fails"):
        function(net, x)


@pytest.mark.parametrize("function", [ggn_diagonal, kfac])
def test_in_place_layers_whose_input_is_used_again_are_caught(function):
    net = Net(lambda m, x: (lambda h: m.head(m.relu(h) + h))(m.a(x)), a=nn.Linear(4, 5), head=head(5))
    net.relu = nn.ReLU(inplace=True)
    with pytest.raises(NotCovered, match="is a value used again that one changed"):
        function(net, real(4))
    net.relu = nn.ReLU()
    function(net, real(4))


def test_rows_of_other_samples_are_caught():
    """More rows than samples, where each sample's rows lie together."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0, 1))
    with pytest.raises(NotCovered, match=r"outputs: \(8, 3\) for 4 samples"):
        ggn_diagonal(net, real(2, 4))


def test_more_samples_than_are_compared():
    net, x = prepared(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), head(5)), torch.randn(40, 4))
    truth = fisher_blocks(net, x, "categorical")
    for parameter, values in ggn_diagonal(net, x).items():
        torch.testing.assert_close(values.flatten(), truth[parameter].diag(), rtol=1e-10, atol=1e-14)


def test_functions_have_layers_that_are_right():
    """The fix that a refusal asks for."""
    net = Net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.Linear(4, 5), head=head(5))
    with pytest.raises(NotCovered, match=r"relu\(\) in Net: no rule for calls of functions; write a layer"):
        ggn_diagonal(net, real(4))
    net.relu, net.body = nn.ReLU(), lambda m, x: m.head(m.relu(m.a(x)))
    ggn_diagonal(net, real(4))
