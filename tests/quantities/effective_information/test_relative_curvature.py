"""Noise with a prior of its own for each weight against the explicit k x k covariance in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from lightning_info.gradients import NotCovered
from lightning_info.quantities.effective_information import relative_curvature as module
from lightning_info.quantities.effective_information.relative_curvature import (
    TooLarge,
    choose_relative_curvature,
    measure_relative_curvature,
)
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot, Unavailable
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, TRAINING, BETA = 24, 300.0, 0.2


def case(dtype=torch.float64) -> ModelSnapshot:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    with torch.no_grad():
        net[2].bias.zero_()  # weights without noise
    x, y = torch.randn(N, 4, dtype=dtype), torch.arange(N) % 3
    predictor = Predictor(StandInTrainer(None), lambda module, batch: (module(batch[0]), batch[1], "categorical"))
    return ModelSnapshot(net, predictor, [(x, y)], 10, torch.device("cpu"))


def weights(snapshot: ModelSnapshot) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in snapshot.module.parameters()])


def summed_fisher(snapshot: ModelSnapshot, samples: int) -> torch.Tensor:
    """N times F of the first samples, by its definition."""
    net, x = snapshot.module.double(), snapshot.groups[0][0][:samples].double()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(net, p, (x,)))(parameters)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    p = net(x).detach().softmax(1)
    h = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return TRAINING * torch.einsum("nck,ncd,ndl->kl", j, h, j) / samples


def measured(snapshot: ModelSnapshot, noise: str):
    plan = choose_relative_curvature(snapshot, N, noise)
    prior = weights(snapshot).abs().double()
    return prior, measure_relative_curvature(plan, snapshot, torch.Generator(), prior)


@pytest.mark.parametrize(("noise", "samples"), [("diagonal", N), ("low_rank", N), ("low_rank", 17), ("full", N)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_the_root_applied_to_the_identity_gives_the_covariance(noise, samples, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 2 * samples)
    snapshot = case(dtype)
    prior, curvature = measured(snapshot, noise)
    k = len(prior)
    root = torch.stack([prior * curvature.noise(z, TRAINING)(BETA, 1.0) for z in torch.eye(k, dtype=torch.float64)], 1)
    h = summed_fisher(snapshot, samples)
    h = torch.diag(h.diagonal()) if noise == "diagonal" else h
    some = prior > 0
    truth = torch.zeros(k, k, dtype=torch.float64)
    precision = h[some][:, some] / BETA + torch.diag(prior[some] ** -2)
    truth[some.outer(some)] = torch.linalg.inv(precision).flatten()
    unit = prior.clamp_min(1e-300)  # a small weight has a small variance
    found, truth = (matrix / unit / unit[:, None] for matrix in (root @ root.T, truth))
    torch.testing.assert_close(found, truth, rtol=0, atol=tolerance)
    assert (root[~some] == 0).all()


@pytest.mark.parametrize("noise", ["diagonal", "low_rank", "full"])
def test_the_spectrum_is_that_of_the_relative_weights(noise):
    snapshot = case()
    prior, found = measured(snapshot, noise)
    scaled = prior * summed_fisher(snapshot, N) * prior[:, None]
    values = scaled.diagonal().sort().values if noise == "diagonal" else torch.linalg.eigvalsh(scaled)
    torch.testing.assert_close(TRAINING * found.spectrum.eigenvalues, values.flip(0), rtol=0, atol=1e-9 * values[-1])


def test_the_size_decides_what_is_refused(monkeypatch):
    snapshot = case()
    k = len(weights(snapshot))
    monkeypatch.setattr(module, "KEPT", 2 * 16 * k)
    plan = choose_relative_curvature(snapshot, N, "low_rank")
    assert (plan.samples, plan.size) == (16, 32)
    monkeypatch.setattr(module, "KEPT", 2 * 16 * k - 1)
    with pytest.raises(TooLarge, match=f"with {k} numbers each: there is memory for 15 samples"):
        choose_relative_curvature(snapshot, N, "low_rank")
    assert choose_relative_curvature(snapshot, 12, "low_rank").samples == 12  # there are no more
    monkeypatch.setattr(module, "FULL_WEIGHTS", k - 1)
    with pytest.raises(TooLarge, match=f"up to {k - 1}, not for {k}; choose noise='low_rank'"):
        choose_relative_curvature(snapshot, N, "full")
    assert choose_relative_curvature(snapshot, N, "diagonal").name == "diagonal"
    assert issubclass(TooLarge, NotCovered)


@pytest.mark.parametrize("noise", ["diagonal", "low_rank", "full"])
def test_what_is_not_finite_has_no_value(noise):
    snapshot = case()
    plan = choose_relative_curvature(snapshot, N, noise)
    snapshot.groups[0][0][3] = math.nan
    with pytest.raises(Unavailable, match="not finite"):
        measure_relative_curvature(plan, snapshot, torch.Generator(), weights(snapshot).abs())
