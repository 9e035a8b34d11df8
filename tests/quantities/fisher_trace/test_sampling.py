"""How good the estimate over a pool is, on a classifier at initialisation and trained to a loss below 0.01."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lightning_info.gradients import Plan, choose_engine
from lightning_info.quantities.fisher_trace.sampling import pool_trace
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


@pytest.fixture(scope="module")
def nets(digits):
    """The same classifier at initialisation and trained to a loss below 0.01."""
    torch.manual_seed(0)
    x, y = digits
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    start = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), 3e-2)
    for _ in range(1000):
        loss = F.cross_entropy(net(x), y)
        if loss < 0.008:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    return {"initial": start, "trained": net}


def adapter(module, batch):
    x, y = batch
    return module(x), y


def estimates(net, samples, estimator, draws, repeats, chunk=64, engine=None):
    snapshot = ModelSnapshot(net, Predictor(StandInTrainer(None), adapter), [samples], chunk, torch.device("cpu"))
    plan = Plan(engine, 8) if engine else choose_engine(net, snapshot.outputs, samples)
    generator = torch.Generator().manual_seed(7)
    found = [pool_trace(snapshot, plan, estimator, draws, generator).estimate for _ in range(repeats)]
    return torch.tensor(found, dtype=torch.float64).unbind(1)


def first(digits, size):
    return digits[0][:size], digits[1][:size]


def test_importance_labels_stay_sharp_on_a_confident_net_where_sampled_labels_do_not(nets, digits):
    samples = first(digits, 64)
    exact = estimates(nets["trained"], samples, "exact", None, 1)[0].item()
    spread = {}
    for estimator in ("importance", "rademacher", "sampled"):
        trace, _ = estimates(nets["trained"], samples, estimator, None, 200)
        spread[estimator] = (trace.std() / exact).item()
    assert spread["importance"] <= 0.10
    assert spread["sampled"] >= 5 * spread["importance"]


@pytest.mark.parametrize("state", ["initial", "trained"])
def test_standard_error_of_64_draws_covers_the_trace_of_a_pool_of_512(nets, digits, state):
    samples = first(digits, 512)
    exact = estimates(nets[state], samples, "exact", None, 1)[0]
    trace, stderr = estimates(nets[state], samples, "importance", 64, 300)
    covered = ((trace - exact).abs() <= 1.96 * stderr).double().mean().item()
    assert 0.85 <= covered <= 0.99
    # unbiased: within 4 standard errors of the mean over repetitions
    assert abs(trace.mean() - exact) <= 4 * trace.std() / len(trace) ** 0.5


def test_empirical_trace_over_draws_is_unbiased_for_the_mean_squared_gradient(nets, digits):
    samples = first(digits, 200)
    x, y = samples
    truth = 0.0
    for n in range(len(x)):
        loss = F.cross_entropy(nets["trained"](x[n : n + 1]), y[n : n + 1])
        truth += sum(g.square().sum().item() for g in torch.autograd.grad(loss, nets["trained"].parameters())) / len(x)
    every, _ = estimates(nets["trained"], samples, "empirical", None, 1)
    assert every.item() == pytest.approx(truth, rel=1e-5)
    drawn, _ = estimates(nets["trained"], samples, "empirical", 64, 100)
    assert abs(drawn.mean() - truth) <= 4 * drawn.std() / len(drawn) ** 0.5


def test_error_of_a_pool_taken_once_is_an_upper_bound(nets, digits):
    trace, stderr = estimates(nets["initial"], first(digits, 64), "importance", 64, 50)
    assert stderr.min() >= trace.std()


def test_chunks_do_not_change_the_exact_trace(nets, digits):
    whole, parts = (estimates(nets["initial"], first(digits, 50), "exact", None, 1, chunk)[0] for chunk in (50, 7))
    assert parts.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("state", ["initial", "trained"])
@pytest.mark.parametrize("draws", [64, None])
def test_one_backward_pass_for_many_samples_is_unbiased_and_its_error_covers(nets, digits, state, draws):
    samples = first(digits, 200 if draws else 60)  # 60: groups of 7 and of 8
    exact = estimates(nets[state], samples, "exact", None, 1)[0]
    trace, stderr = estimates(nets[state], samples, "importance", draws, 200, chunk=5, engine="cotangent")
    assert abs(trace.mean() - exact) <= 4 * trace.std() / len(trace) ** 0.5
    covered = ((trace - exact).abs() <= 1.96 * stderr).double().mean().item()
    assert covered >= 0.85  # of eight groups: a little less than 95 %
    assert trace.std() <= 0.4 * exact


def test_one_backward_pass_gives_every_parameter_its_share(nets, digits):
    samples = first(digits, 64)
    snapshot = ModelSnapshot(
        nets["initial"], Predictor(StandInTrainer(None), adapter), [samples], 64, torch.device("cpu")
    )
    generator = torch.Generator().manual_seed(3)
    exact = pool_trace(snapshot, choose_engine(snapshot.module, snapshot.outputs, samples), "exact", None, generator)
    runs = [pool_trace(snapshot, Plan("cotangent", 8), "rademacher", 64, generator) for _ in range(200)]
    assert runs[0].coverage == 0.0
    for name, share in exact.per_parameter.items():
        values = torch.tensor([run.per_parameter[name] for run in runs], dtype=torch.float64)
        assert abs(values.mean() - share) <= 4 * values.std() / len(values) ** 0.5, name
    assert sum(runs[0].per_parameter.values()) == pytest.approx(runs[0].estimate.trace, rel=1e-9)


def test_samples_of_several_shapes_form_one_pool():
    torch.manual_seed(0)
    net = nn.Linear(3, 4)

    def mean_over_time(module, batch):
        x, y = batch
        return module(x.mean(1)), y

    groups = [(torch.randn(5, 2, 3), torch.zeros(5).long()), (torch.randn(4, 7, 3), torch.ones(4).long())]
    device = torch.device("cpu")

    def exact(groups):
        snapshot = ModelSnapshot(net, Predictor(StandInTrainer(None), mean_over_time), groups, 4, device)
        plan = choose_engine(net, snapshot.outputs, groups[0])
        return pool_trace(snapshot, plan, "exact", None, torch.Generator()).estimate.trace

    assert exact(groups) == pytest.approx((5 * exact(groups[:1]) + 4 * exact(groups[1:])) / 9, rel=1e-5)


def test_draws_from_several_groups_are_unbiased():
    torch.manual_seed(0)
    net = nn.Linear(3, 1)

    def regression(module, batch):
        x, y = batch
        return module(x.mean(1)), y, "gaussian"

    # residuals of very different size, so that the probabilities of the draws are
    groups = [(torch.randn(20, 2, 3), 5 * torch.randn(20, 1)), (torch.randn(30, 4, 3), 0.2 * torch.randn(30, 1))]
    snapshot = ModelSnapshot(net, Predictor(StandInTrainer(None), regression), groups, 8, torch.device("cpu"))
    plan = choose_engine(net, snapshot.outputs, groups[0])
    generator = torch.Generator().manual_seed(1)
    exact = pool_trace(snapshot, plan, "empirical", None, generator).estimate.trace
    drawn = [pool_trace(snapshot, plan, "empirical", 16, generator).estimate.trace for _ in range(150)]
    drawn = torch.tensor(drawn, dtype=torch.float64)
    assert abs(drawn.mean() - exact) <= 4 * drawn.std() / len(drawn) ** 0.5
    assert drawn.std() < 0.2 * exact


@pytest.mark.parametrize("engine", [None, "cotangent"])
@pytest.mark.parametrize("estimator", ["importance", "rademacher", "sampled"])
def test_draws_do_not_depend_on_chunks(nets, digits, estimator, engine):
    whole, cut = (estimates(nets["initial"], first(digits, 40), estimator, 16, 2, chunk, engine) for chunk in (40, 7))
    assert all(torch.allclose(one, other, rtol=1e-5) for one, other in zip(whole, cut, strict=True))
