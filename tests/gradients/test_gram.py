"""The Gram matrix against explicit rows: float64, one sample and one cotangent at a time, plain autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import zoo
from gradients.cases import Net, bare, call, head, prepared, real, tokens
from torch import nn

from lightning_info.functional import exact_cotangents
from lightning_info.functional.spectrum import Spectrum
from lightning_info.functional.weight_information import weight_information
from lightning_info.gradients import NotCovered, gram, gram_products
from lightning_info.gradients.fisher_products import RowProducts
from lightning_info.gradients.gram import ENGINES, GramPlan, choose_gram_engine, gram_matrix
from lightning_info.gradients.memory import LIMITS


def explicit_rows(net, x, columns):
    """``(N C, k)``, the rows of each sample in turn."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    rows = []
    for n in range(len(x)):
        outputs = net(x[n : n + 1])
        for u in columns:
            gradients = torch.autograd.grad(
                outputs, parameters, u[n : n + 1].to(outputs), retain_graph=True, allow_unused=True
            )
            pairs = zip(parameters, gradients, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g.to_dense()).flatten() for p, g in pairs]))
    return torch.stack(rows)


def assert_right(found, rows, rtol=1e-12):
    matrix = rows @ rows.T
    scale = matrix.diagonal().max().item()
    torch.testing.assert_close(found.matrix, matrix, rtol=rtol, atol=rtol * scale)
    if found.diagonal is not None:
        squares = torch.cat([values.flatten() for values in found.diagonal.values()])
        torch.testing.assert_close(squares, rows.square().sum(0), rtol=rtol, atol=rtol * scale)


def zoo_case(name):
    net, x, likelihood, _ = zoo.make(name)
    net, x = net.double(), x.double() if x.is_floating_point() else x
    return net, x, list(exact_cotangents(net(x), likelihood))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_nets_of_the_zoo(name):
    net, x, columns = zoo_case(name)
    plan = choose_gram_engine(net, call, x)
    assert plan.engine == ("loop" if name == "branching" else "taps"), plan.reasons
    assert plan.checked == len(x)
    assert_right(plan.gram(net, call, x, columns, diagonal=True), explicit_rows(net, x, columns))


@pytest.mark.parametrize("name", ["cnn", "tied", "encoder"])
@pytest.mark.parametrize("engine", ["func", "loop"])
def test_engines_that_make_whole_rows_also_in_chunks(name, engine, monkeypatch):
    net, x, columns = zoo_case(name)
    rows = explicit_rows(net, x, columns)
    plan = choose_gram_engine(net, call, x, engine)
    assert_right(plan.gram(net, call, x, columns, diagonal=True), rows)
    monkeypatch.setattr(LIMITS, "copies", 2 * 8 * rows.shape[1] * 5)
    assert_right(plan.gram(net, call, x, columns, diagonal=True), rows)


def precisions(monkeypatch):
    """Those in which products are made."""
    made, add = [], gram_products.add_products

    def noted(total, rows, samples, dtype=torch.float64):
        made.append(dtype)
        return add(total, rows, samples, dtype)

    monkeypatch.setattr(gram_products, "add_products", noted)
    return made


def single_case(shift=0.0):
    """A net of convolutions (both forms of a product) and eight samples, the last of which is the first, shifted."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2), nn.Flatten(), nn.Linear(32, 4))
    x = torch.randn(8, 2, 7, 7)
    x[7] = x[0] + shift * torch.randn(2, 7, 7)
    return net, x, list(exact_cotangents(net(x), "categorical"))


@pytest.mark.parametrize("form", [True, False, None])
def test_products_in_single_precision_leave_every_eigenvalue(form, monkeypatch):
    """To 1e-3 of the smallest, by either form of a product and by the one that is chosen."""
    made = precisions(monkeypatch)
    net, x, columns = single_case(shift=1.0)
    if form is not None:
        monkeypatch.setattr(gram_products, "is_factored", lambda rows, *sizes: form and rows.factors is not None)
    found = GramPlan("taps", 0).gram(net, call, x, columns).matrix
    assert set(made) == {torch.float32}
    monkeypatch.setattr(gram, "_precisions", lambda *args: [torch.float64])
    exact = GramPlan("taps", 0).gram(net, call, x, columns).matrix
    assert 0 < (found - exact).abs().max() < 1e-6 * exact.diagonal().max()
    values, truth = torch.linalg.eigvalsh(found), torch.linalg.eigvalsh(exact)
    assert ((values - truth).abs() <= 1e-3 * truth[0]).all()


@pytest.mark.parametrize("form", [True, False])
def test_the_stated_error_of_single_precision_is_its_size(form, monkeypatch):
    """Within a factor of four, of one parameter and of all: an eighth of the rows tell, and processors round
    differently (a factor of 3.3 was seen).
    """
    net, x, columns = single_case(shift=1.0)
    monkeypatch.setattr(gram_products, "is_factored", lambda rows, *sizes: form and rows.factors is not None)
    u = torch.stack(columns)
    single, double = (
        gram._run("taps", net, call, x, u, diagonal=False, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    error = torch.linalg.matrix_norm(single.matrix("") - double.matrix("")).item()
    assert double.error == 0
    assert error / 4 < single.error**0.5 < 4 * error


def test_a_small_eigenvalue_is_one_of_double_precision(monkeypatch):
    """Two samples that are nearly one: the smallest eigenvalue is that of the rows in float64, to 1 %."""
    made = precisions(monkeypatch)
    net, x, columns = single_case(shift=1e-4)
    found = GramPlan("taps", 0).gram(net, call, x, columns).matrix
    assert set(made) == {torch.float32, torch.float64}
    rows = explicit_rows(net, x, columns).double()
    assert torch.linalg.eigvalsh(found)[0] < 1e-7 * torch.linalg.eigvalsh(found)[-1]
    torch.testing.assert_close(found, rows @ rows.T, rtol=0, atol=1e-6 * found.max().item())
    made.clear()
    GramPlan("taps", 0).gram(net.double(), call, x.double(), [u.double() for u in columns])
    assert set(made) == {torch.float64}


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("budget", [LIMITS.gram, 1])
def test_the_diagonal_by_itself_is_the_sum_of_squares(name, budget, monkeypatch):
    """In chunks of two samples, too."""
    net, x, columns = zoo_case(name)
    plan, rows = choose_gram_engine(net, call, x), explicit_rows(net, x, columns)
    monkeypatch.setattr(LIMITS, "gram", budget)
    monkeypatch.setattr(gram_products, "SQUARES", 7)
    found = plan.diagonal(net, call, x, columns)
    assert {key: values.shape for key, values in found.items()} == {key: p.shape for key, p in net.named_parameters()}
    squares = torch.cat([values.flatten() for values in found.values()])
    torch.testing.assert_close(squares, rows.square().sum(0), rtol=1e-12, atol=1e-12 * squares.max().item())


@pytest.mark.parametrize("engine", ["func", "loop"])
def test_the_diagonal_of_whole_rows(engine):
    net, x, columns = zoo_case("tied")
    found = choose_gram_engine(net, call, x, engine).diagonal(net, call, x, columns)
    expected = explicit_rows(net, x, columns).square().sum(0)
    torch.testing.assert_close(torch.cat([one.flatten() for one in found.values()]), expected, rtol=1e-12, atol=1e-14)


def test_the_diagonal_of_single_precision_is_as_exact_as_its_gradients():
    net, x, columns = zoo_case("cnn")
    expected = explicit_rows(net, x, columns).square().sum(0)
    found = GramPlan("taps", 0).diagonal(net.float(), call, x.float(), [u.float() for u in columns])
    squares = torch.cat([values.flatten() for values in found.values()])
    assert squares.dtype == torch.float64
    torch.testing.assert_close(squares, expected, rtol=1e-4, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize("budget", [0, 1 << 14])
@pytest.mark.parametrize("name", ["cnn", "depthwise", "tied"])
def test_pairs_of_chunks_give_the_same_matrix_and_count_each_sample_once(name, budget, monkeypatch):
    net, x, columns = zoo_case(name)
    monkeypatch.setattr(LIMITS, "gram", budget)
    assert_right(GramPlan("taps", 0).gram(net, call, x, columns, diagonal=True), explicit_rows(net, x, columns))


def test_a_module_that_decides_by_values_goes_sample_by_sample():
    def one(m, x):
        return m.head(m.a(x).tanh() if x.sum().item() > 0 else m.a(x))

    module = Net(lambda m, x: torch.cat([one(m, row) for row in x.split(1)]), a=nn.Linear(4, 4), head=head(4))
    net, x = prepared(module, real(4))
    columns = torch.randn(2, *net(x).shape, dtype=torch.float64)
    plan = choose_gram_engine(net, call, x)
    assert plan.engine == "loop"
    assert "differ from sample to sample" in plan.reasons["taps"]
    assert_right(plan.gram(net, call, x, columns, diagonal=True), explicit_rows(net, x, columns))


@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize("chunk", [1, 1 << 27])
def test_both_forms_of_a_product_in_any_chunks(form, chunk, monkeypatch):
    monkeypatch.setattr(LIMITS, "columns", chunk)
    monkeypatch.setattr(
        "lightning_info.gradients.gram_products.is_factored", lambda rows, *sizes: form and rows.factors is not None
    )
    for name in ("mlp", "residual", "encoder", "tied"):
        net, x, columns = zoo_case(name)
        assert_right(GramPlan("taps", 0).gram(net, call, x, columns, diagonal=True), explicit_rows(net, x, columns))


def conv(body=lambda m, x: m.head(m.a(x).flatten(2).mean(2)), **parts):
    return Net(body, **parts)


def embedded(m, x):
    return m.head(m.a(x).mean(1))


CASES = {
    "grouped": lambda: (conv(a=nn.Conv2d(4, 6, 3, 2, groups=2), head=head(6)), real(4, 7, 7)),
    "dilated, padded alike": lambda: (conv(a=nn.Conv1d(2, 6, 3, padding="same", dilation=2), head=head(6)), real(2, 9)),
    "three axes": lambda: (conv(a=nn.Conv3d(2, 5, 2), head=head(5)), real(2, 4, 4, 4)),
    "transposed": lambda: (conv(a=nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), head=head(6)), real(4, 5, 5)),
    "called twice": lambda: (
        conv(lambda m, x: m.head(m.a(torch.tanh(m.a(x))).mean((2, 3))), a=nn.Conv2d(3, 3, 3, padding=1), head=head(3)),
        real(3, 5, 5),
    ),
    "windows in the batch axis": lambda: (
        Net(lambda m, x: m.head(m.a(x.reshape(-1, 5)).view(len(x), -1, 6).sum(1)), a=nn.Linear(5, 6), head=head(6)),
        real(15),
    ),
    "matrix product": lambda: (Net(lambda m, x: m.head(x @ m.w + m.b), **bare(w=(6, 5), b=5), head=head(5)), real(6)),
    "padding": lambda: (Net(embedded, a=nn.Embedding(9, 5, padding_idx=1), head=head(5)), tokens(6)),
    "sparse table": lambda: (Net(embedded, a=nn.Embedding(40, 5, sparse=True), head=head(5)), tokens(6)),
    "norms": lambda: (
        Net(
            lambda m, x: m.head(m.c(m.b(m.a(x))).mean(1)),
            a=nn.LayerNorm((3, 6), eps=0.1),
            b=nn.RMSNorm(6),
            c=nn.RMSNorm(6, eps=0.1),
            head=head(6),
        ),
        real(3, 6),
    ),
    "norms of channels": lambda: (
        Net(
            lambda m, x: m.head(m.b(m.a(x)).mean(2)),
            a=nn.BatchNorm1d(6, eps=0.1),
            b=nn.GroupNorm(2, 6, eps=0.1),
            head=head(6),
        ),
        real(6, 3),
    ),
    "frozen and unused": lambda: (
        Net(lambda m, x: m.head(m.a(x)), a=nn.Linear(4, 5).requires_grad_(False), spare=nn.Linear(2, 2), head=head(5)),
        real(4),
    ),
    "a part of the whole twice": lambda: (
        Net(lambda m, x: m.head(m.a(x) + x @ m.a.weight), a=nn.Linear(5, 5), head=head(5)),
        real(5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operators(name):
    net, x = prepared(*CASES[name]())
    columns = torch.randn(3, *net(x).shape, dtype=torch.float64)
    plan = choose_gram_engine(net, call, x)
    assert plan.engine == "taps", plan.reasons
    assert_right(plan.gram(net, call, x, columns, diagonal=True), explicit_rows(net, x, columns))


@pytest.mark.parametrize(
    ("name", "float64", "rtol"),
    [
        (n, d, r)
        for n in ("residual", "tied", "encoder", "multi_label", "regression")
        for d, r in ((True, 1e-8), (False, 1e-4))
    ],
)
def test_trace_eigenvalues_log_determinant_and_kl_of_the_explicit_matrix(name, float64, rtol):
    net, x, likelihood, _ = zoo.make(name)
    precise = copy.deepcopy(net).double()
    y = x.double() if x.is_floating_point() else x
    rows = explicit_rows(precise, y, list(exact_cotangents(precise(y), likelihood)))
    if float64:
        net, x = precise, y
    samples, k = len(x), rows.shape[1]
    found = Spectrum.of_matrix(gram_matrix(net, x, exact_cotangents(net(x), likelihood)).matrix / samples, k)
    fisher = rows.T @ rows / samples
    values = torch.linalg.eigvalsh(fisher).flip(0)[: len(found.eigenvalues)]
    assert found.trace == pytest.approx(fisher.trace().item(), rel=rtol)
    torch.testing.assert_close(found.eigenvalues, values, rtol=rtol, atol=1e-2 * rtol * values[0].item())
    identity = torch.eye(k, dtype=torch.float64)
    for c in (1e-3, 1.0):
        assert found.log_det(c) == pytest.approx(torch.logdet(fisher + c * identity).item(), rel=rtol)
    beta, lambda_, distance, scale = 0.1, 0.3, 2.0, 50.0
    c, h = beta / lambda_**2, scale * fisher
    covariance = beta * torch.linalg.inv(h + c * identity)
    kl = (
        torch.logdet(h + c * identity).item()
        - k * math.log(c)
        - k
        + (distance + covariance.trace().item()) / lambda_**2
    ) / 2
    assert weight_information(found.scaled(scale), distance, beta, lambda_) == pytest.approx(kl, rel=rtol)


def test_ignored_positions_have_no_rows():
    net, x = prepared(Net(lambda m, x: m.head(torch.tanh(m.a(x))), a=nn.Linear(3, 4), head=head(4)), real(5, 3))
    mask = torch.arange(5) < torch.tensor([[5], [3], [0], [1]])
    columns = list(exact_cotangents(net(x), "categorical", mask))
    found = gram_matrix(net, x, columns)
    assert_right(found, explicit_rows(net, x, columns))
    alive = found.matrix.diagonal().view(4, 5, 2).sum(2) > 0
    assert torch.equal(alive, mask)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_outputs_of_any_shape(shape):
    width = int(torch.Size(shape).numel())
    net, x = prepared(Net(lambda m, x: m.a(x).view(len(x), *shape), a=nn.Linear(4, width)), real(4))
    columns = torch.randn(2, *net(x).shape, dtype=torch.float64)
    assert_right(gram_matrix(net, x, columns, diagonal=True), explicit_rows(net, x, columns))
    rows, products = explicit_rows(net, x, columns), RowProducts(net, call, x, columns)
    v, w = torch.randn(rows.shape[0]).double(), torch.randn(rows.shape[1]).double()
    torch.testing.assert_close(products.transposed(v), rows.T @ v)
    torch.testing.assert_close(products(w), rows @ w)


@pytest.mark.parametrize("name", ["residual", "tied", "recurrent"])
def test_products_with_the_rows_make_none(name):
    net, x, columns = zoo_case(name)
    rows, products = explicit_rows(net, x, columns), RowProducts(net, call, x, torch.stack(columns))
    v, w = torch.randn(rows.shape[0]).double(), torch.randn(rows.shape[1]).double()
    assert products.weights == rows.shape[1]
    torch.testing.assert_close(products.transposed(v), rows.T @ v, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(products(w), rows @ w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixing", ["batch statistics", "mean over the batch"])
def test_modules_that_mix_samples_are_refused(mixing):
    bodies = {
        "batch statistics": lambda m, x: m.head(F.batch_norm(m.a(x), None, None, training=True)),
        "mean over the batch": lambda m, x: m.head(m.a(x) - m.a(x).mean(0)),
    }
    with pytest.raises(NotCovered, match=r"depend on the other samples of the batch|loop: one sample alone fails"):
        choose_gram_engine(Net(bodies[mixing], a=nn.Linear(4, 4), head=head(4)), call, torch.randn(6, 4))


def test_a_wrong_product_is_caught_by_the_check(monkeypatch):
    right = ENGINES["taps"]

    def wrong(module, predict, batch, columns, total):
        right(module, predict, batch, columns, total)
        total.matrix("bias").mul_(1 + 1e-4)

    monkeypatch.setitem(ENGINES, "taps", wrong)
    plan = choose_gram_engine(nn.Linear(4, 3), call, torch.randn(6, 4))
    assert plan.engine == "func"
    assert "bias gives products" in plan.reasons["taps"]


def test_a_module_that_trains_nothing_is_refused():
    with pytest.raises(NotCovered, match="none of its parameters"):
        gram_matrix(nn.Linear(4, 3).requires_grad_(False), torch.randn(6, 4), [torch.randn(6, 3)])


def test_nothing_stays_behind_on_the_module():
    net, x, columns = zoo_case("residual")
    before = {key: dict(vars(part)) for key, part in net.named_modules()}
    gram_matrix(net, x, columns)
    assert {key: dict(vars(part)) for key, part in net.named_modules()} == before
    assert all(p.grad is None for p in net.parameters())


class LooksAtTheMask(nn.Module):
    """Does without a mask where nothing is padded, and cuts to the longest sequence, as padded transformers do."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x):
        real = x > 0
        h = self.embed(x[:, : int(real.sum(1).max())])
        if not real.all():
            h = h * real[:, : h.shape[1], None]
        return self.out(torch.tanh(h).sum(1))


def test_a_path_that_the_samples_of_the_check_do_not_take():
    net = LooksAtTheMask().double()
    few = torch.ones(8, 14, dtype=torch.long) * 3 * (torch.arange(14) < 9)
    many = torch.stack([torch.arange(14) % 8 + 1] * 14) * (torch.arange(14) < torch.arange(1, 15)[:, None])
    plan = choose_gram_engine(net, call, few)
    assert plan.engine == "taps"
    columns = list(exact_cotangents(net(many), "categorical"))
    assert_right(plan.gram(net, call, many, columns, diagonal=True), explicit_rows(net, many, columns))
    assert plan.engine == "loop"
