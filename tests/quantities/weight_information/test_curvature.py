"""Every way to F against the explicit k x k matrix, by its definition in torch.func and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from lightning_info.gradients import NotCovered
from lightning_info.gradients.fisher_products import FisherProducts
from lightning_info.quantities.weight_information import curvature as curvature_module
from lightning_info.quantities.weight_information.curvature import choose_curvature
from lightning_info.quantities.weight_information.lanczos_cost import seconds_of_step
from lightning_info.quantities.weight_information.run_plan import run_plan
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, TRAINING = 12, 300.0
EXACT = ("matrix", "gram")


class Net(nn.Module):
    def __init__(self, likelihood: str):
        super().__init__()
        self.likelihood = likelihood
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.body(x)


def adapter(module, batch):
    x, y = batch
    return module(x), y, module.likelihood


def case(likelihood: str = "categorical", dtype=torch.float64, samples: int = N, chunk: int = 5) -> ModelSnapshot:
    torch.manual_seed(0)
    net, x = Net(likelihood).to(dtype), torch.randn(samples, 1, 5, 5, dtype=dtype)
    y = torch.arange(samples) % 3 if likelihood == "categorical" else torch.rand(samples, 3, dtype=dtype).round()
    return ModelSnapshot(net, Predictor(StandInTrainer(None), adapter), [(x, y)], chunk, torch.device("cpu"))


def explicit_fisher(snapshot: ModelSnapshot) -> torch.Tensor:
    net, (x, _) = snapshot.module.double(), snapshot.groups[0]
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = x.double()
    jacobians = jacrev(lambda p: functional_call(net, p, (x,)))(parameters)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    z = net(x).detach()
    if net.likelihood == "categorical":
        p = z.softmax(1)
        h = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    else:
        h = torch.diag_embed(z.sigmoid() * (1 - z.sigmoid()) if net.likelihood == "bernoulli" else torch.ones_like(z))
    return torch.einsum("nck,ncd,ndl->kl", j, h, j) / len(x)


def measured(snapshot: ModelSnapshot, name: str, **options):
    plan = choose_curvature(snapshot, snapshot.size, name, **options)
    return plan, plan.measure(snapshot, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_trace_eigenvalues_and_log_det_equal_those_of_the_explicit_matrix(likelihood, name, dtype, tolerance):
    snapshot = case(likelihood, dtype)
    plan, found = measured(snapshot, name)
    truth = explicit_fisher(snapshot)
    values = torch.linalg.eigvalsh(truth).flip(0)
    assert plan.samples == N
    assert found.spectrum.weights == len(truth)
    top = found.spectrum.eigenvalues[: min(len(found.spectrum.eigenvalues), len(values))]
    torch.testing.assert_close(top, values[: len(top)], rtol=tolerance, atol=tolerance * values[0].item())
    assert found.spectrum.trace == pytest.approx(truth.trace().item(), rel=tolerance)
    for beta, lambda_ in [(1.0, 0.1), (0.01, 1.0)]:
        c = beta / lambda_**2
        log_det = torch.logdet(TRAINING * truth + c * torch.eye(len(truth), dtype=torch.float64)).item()
        assert found.spectrum.scaled(TRAINING).log_det(c) == pytest.approx(log_det, rel=tolerance)


@pytest.mark.parametrize("name", [*EXACT, "lanczos", "diagonal"])
def test_noise_is_a_root_of_the_covariance_of_the_posterior(name, monkeypatch):
    monkeypatch.setattr(curvature_module, "STEPS", 60)  # more than there are eigenvalues
    snapshot = case()
    truth = TRAINING * explicit_fisher(snapshot)
    truth = torch.diag(truth.diagonal()) if name == "diagonal" else truth
    _, found = measured(snapshot, name)
    noise = [found.noise(z, TRAINING) for z in torch.eye(len(truth), dtype=torch.float64)]
    for beta, lambda_ in [(1.0, 0.1), (0.01, 0.5)]:  # the same draws serve both
        root = torch.stack([one(beta, lambda_) for one in noise])
        covariance = beta * torch.linalg.inv(truth + beta / lambda_**2 * torch.eye(len(truth), dtype=torch.float64))
        torch.testing.assert_close(root @ root.T, covariance, rtol=0, atol=1e-7 * lambda_**2)


def test_lanczos_agrees_within_its_error_and_finds_the_largest():
    snapshot = case(samples=40)
    _, found = measured(snapshot, "lanczos")
    truth = explicit_fisher(snapshot)
    assert len(found.spectra) == curvature_module.PROBES
    assert found.spectrum.top_eigenvalue == pytest.approx(torch.linalg.eigvalsh(truth)[-1].item(), rel=1e-6)
    log_dets = torch.tensor([one.scaled(TRAINING).log_det(10.0) for one in found.spectra], dtype=torch.float64)
    expected = torch.logdet(TRAINING * truth + 10 * torch.eye(len(truth), dtype=torch.float64))
    error = log_dets.std() / len(log_dets) ** 0.5
    assert (log_dets.mean() - expected).abs() <= 4 * error + 1e-8
    assert error <= 0.05 * expected.abs()


def test_a_step_of_lanczos_is_timed_by_two_products(monkeypatch):
    products, product = [], FisherProducts.__call__
    monkeypatch.setattr(FisherProducts, "__call__", lambda self, v: products.append(v) or product(self, v))
    snapshot = case()
    step, beside = seconds_of_step(snapshot)
    assert len(products) <= 2
    assert step > 0
    assert beside > 0


def test_the_diagonal_is_exact_for_few_outputs_and_unbiased_for_many(monkeypatch):
    snapshot = case(samples=40)
    truth = explicit_fisher(snapshot).diagonal()
    plan, found = measured(snapshot, "diagonal")
    torch.testing.assert_close(found.diagonal, truth, rtol=1e-8, atol=0)
    monkeypatch.setattr(curvature_module, "EXACT_OUTPUTS", 1)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([plan.measure(snapshot, generator).diagonal for _ in range(25)])
    error = draws.std(0) / 5
    assert ((draws.mean(0) - truth).abs() <= 5 * error + 1e-12).all()
    assert error.sum() > 0


def test_the_way_is_chosen_by_size_and_named(monkeypatch):
    snapshot = case(samples=40)
    k = sum(p.numel() for p in snapshot.module.parameters())
    choose = lambda *args, **options: choose_curvature(snapshot, *args, **options)  # noqa: E731
    assert choose(40).name == "matrix"
    assert choose(k // 3).name == "gram"  # fewer rows than weights
    monkeypatch.setattr(curvature_module, "MATRIX_WEIGHTS", k - 1)
    plan = choose(40)
    assert (plan.name, plan.samples, plan.size) == ("gram", 40, 80)  # of three classes two rows each
    assert "40 samples by their 80 per-output gradients, exact" in plan.describe()
    fewer = choose(40, max_rows=40)  # fewer samples rather than fewer columns
    assert (fewer.name, fewer.samples) == ("gram", 20)
    assert choose(40, max_rows=30).name == "lanczos"  # 15 samples only
    assert "random probes" in choose(40, max_rows=30).describe()
    assert choose(40, name="gram", max_rows=4).samples == 2
    with pytest.raises(NotCovered, match=r"a sample has 2 gradients.*curvature='lanczos'"):
        choose(40, name="gram", max_rows=1)
    monkeypatch.setattr(curvature_module, "PRODUCTS", 32**2 * k)
    assert choose(40).samples == 16  # k R² within the budget


def test_a_gram_matrix_takes_the_largest_group_and_lanczos_all():
    snapshot = case(samples=40)
    x, y = snapshot.groups[0]
    snapshot.groups = [(x[:10], y[:10]), (x[10:], y[10:])]
    _, gram = measured(snapshot, "gram")
    assert gram.snapshot.size == 30
    _, all_of_them = measured(snapshot, "lanczos")
    assert all_of_them.snapshot.size == 40


@pytest.mark.parametrize("name", [*EXACT, "lanczos", "diagonal"])
def test_what_is_not_finite_has_no_value(name):
    snapshot = case()
    plan = choose_curvature(snapshot, N, name)
    snapshot.groups[0][0][3] = math.nan
    with pytest.raises(Unavailable, match="not finite"):
        plan.measure(snapshot, torch.Generator())
    snapshot.groups = []
    with pytest.raises(Unavailable, match="no reference samples"):
        plan.measure(snapshot, torch.Generator())


def test_a_plan_that_does_not_fit_any_more_is_chosen_anew_once_and_without_one_there_is_no_value():
    plan = choose_curvature(case(), N)

    def run(chosen):
        if chosen is not plan:
            raise NotCovered("the module changed")
        return 1

    assert run_plan(None, lambda: plan, run) == (plan, 1)
    other = choose_curvature(case(), N)
    assert run_plan(other, lambda: plan, run) == (plan, 1)
    with pytest.raises(Unavailable, match="the module changed"):
        run_plan(plan, lambda: other, lambda chosen: run(other))


class Once(torch.autograd.Function):
    """A backward pass that autograd takes for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy((2 * x * g).detach().numpy())


def test_a_module_without_second_derivatives_has_its_diagonal_and_is_refused_for_what_takes_them(monkeypatch):
    monkeypatch.setattr(curvature_module, "MATRIX_WEIGHTS", 1)
    snapshot = case()
    snapshot.module.body[1] = type("Square", (nn.Module,), {"forward": lambda self, x: Once.apply(x)})()
    assert choose_curvature(snapshot, N).name == "diagonal"
    for name in ("gram", "lanczos"):
        with pytest.raises(NotCovered, match="second derivative"):
            choose_curvature(snapshot, N, name)


def test_attention_draws_its_noise():
    class Attention(nn.Module):
        likelihood = "categorical"

        def __init__(self):
            super().__init__()
            self.inside, self.out = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.inside(x[:, 0]).unsqueeze(1)
            return self.out(nn.functional.scaled_dot_product_attention(h, h, h).mean((1, 2)))

    snapshot = case()
    snapshot.module = Attention().double()
    _, found = measured(snapshot, "gram")
    _, exact = measured(snapshot, "matrix")
    z = torch.randn(found.spectrum.weights, dtype=torch.float64)
    noises = [one.noise(z, TRAINING)(1.0, 0.3) for one in (found, exact)]
    torch.testing.assert_close(*noises, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["auto", "diagonal"])
def test_an_embedding_with_sparse_gradients_has_a_value(name, monkeypatch):
    monkeypatch.setattr(curvature_module, "MATRIX_WEIGHTS", 1)

    class Words(nn.Module):
        likelihood = "categorical"

        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.table(x[:, 0, 0].abs().long()).mean(1))

    snapshot = case()
    snapshot.module = Words().double()
    _, found = measured(snapshot, name)
    assert found.spectrum.trace > 0
    z = torch.randn(found.spectrum.weights, dtype=torch.float64)
    assert found.noise(z, TRAINING)(1.0, 0.3).isfinite().all()
