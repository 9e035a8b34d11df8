"""A net with complex weights against the same net with real ones, and parameters without axes."""

from __future__ import annotations

import math

import pytest
import torch
from gradients.test_real import Net, r, spectral, z
from torch import nn

from lightning_info.gradients import choose_engine
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.fisher_products import FisherProducts
from lightning_info.quantities.effective_information.relative_curvature import (
    choose_relative_curvature,
    measure_relative_curvature,
)
from lightning_info.quantities.fisher_trace.hessian import hessian_trace
from lightning_info.quantities.fisher_trace.sampling import COTANGENT, pool_trace
from lightning_info.quantities.stability.weight_change import flat_weights, length, prediction_change, weight_change
from lightning_info.quantities.stability.weight_trajectory import WeightTrajectory
from lightning_info.quantities.weight_information.curvature import choose_curvature, fisher_products
from lightning_info.quantities.weight_information.initial_weights import InitialWeights, squared_norm
from lightning_info.quantities.weight_information.noisy_loss import moved, noisy_losses
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer
from lightning_info.twin.certificate import fingerprint, same_weights

N = 6
WAYS = ("matrix", "gram", "lanczos", "diagonal")


def adapter(module, batch):
    return module(batch[0]), batch[1], "gaussian"


def snapshot_of(module, x) -> ModelSnapshot:
    y = torch.randn(module(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ModelSnapshot(module, Predictor(StandInTrainer(None), adapter), [(x, y)], 4, torch.device("cpu"))


def pair():
    values, x = {"w": 0.5 * z(3, 2, 5), "head": r(16, 2)}, r(N, 3, 8)
    return [snapshot_of(Net(spectral, values, is_real), x) for is_real in (False, True)]


def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("way", WAYS)
def test_spectrum_noise_and_noisy_loss_are_those_of_the_real_form(way):
    found = []
    for snapshot in pair():
        plan = choose_curvature(snapshot, N, way)
        curvature = plan.measure(snapshot, generator())
        spectrum, normal = curvature.spectrum, torch.randn(plan.weights, generator=generator())
        numbers = [spectrum.weights, spectrum.trace, spectrum.effective_rank, spectrum.scaled(20).log_det(0.3)]
        (noisy,) = noisy_losses(curvature, [(1.0, 0.3)], 20.0, 2, generator())
        found.append(torch.cat([torch.tensor([*numbers, noisy.mean]), curvature.noise(normal, 20.0)(1.0, 0.3)]))
    assert found[0][0] == 2 * 30 + 32
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("noise", ["diagonal", "low_rank", "full"])
def test_relative_noise_is_that_of_the_real_form(noise):
    found = []
    for snapshot in pair():
        plan = choose_relative_curvature(snapshot, N, noise)
        prior = flat_weights(snapshot.module).abs()
        curvature = measure_relative_curvature(plan, snapshot, generator(), prior)
        found.append(curvature.noise(torch.randn(len(prior), generator=generator()), 20.0)(1.0, 1.0))
    torch.testing.assert_close(*found)


def test_the_trace_without_per_sample_gradients_and_that_of_the_hessian_are_those_of_the_real_form():
    found = []
    for snapshot in pair():
        plan = choose_engine(snapshot.module, snapshot.outputs, snapshot.first_chunk())
        plan.engine = COTANGENT
        traces = (
            pool_trace(snapshot, plan, "rademacher", None, generator()).estimate,
            hessian_trace(snapshot, 4, generator()),
        )
        found.append(torch.tensor([value for estimate in traces for value in estimate]))
    torch.testing.assert_close(*found)


def test_products_with_F_are_those_of_the_real_form():
    found = []
    for snapshot in pair():
        products: FisherProducts = fisher_products(snapshot)
        products.check()
        v = torch.randn(products.weights, dtype=torch.float64, generator=generator())
        found.append(torch.cat([products(v), products.gram(v[None])[0]]))
    torch.testing.assert_close(*found)


def test_distances_and_paths_are_those_of_the_real_form():
    found = []
    for snapshot in pair():
        start, snapshots = InitialWeights(), WeightTrajectory()
        start.keep(snapshot.module, whole=True)
        other = snapshot_of(
            Net(snapshot.module.body, {"w": z(3, 2, 5), "head": r(16, 2)}, snapshot.module.is_real), r(N, 3, 8)
        )
        change = 0.1 * torch.randn(92, generator=generator(), dtype=torch.float64)
        with torch.no_grad():
            for p, q in zip(trainable(other.module).values(), trainable(snapshot.module).values(), strict=True):
                p.copy_(q)
        snapshots.add(0, snapshot.module, other.module)
        with moved(other, change):
            snapshots.add(1, snapshot.module, other.module)
            torch.testing.assert_close(weight_change(snapshot.module, other.module), change)
            values = prediction_change(snapshot, other, change, 20.0, 1.0, has_products=True)
            numbers = [start.squared_distance(other.module), start.std, squared_norm(other.module), length(change)]
        assert same_weights(snapshot.module, other.module)
        found.append(torch.tensor([*numbers, *values.values(), *snapshots.state_dict()["pairs"][-1].flatten()]))
    torch.testing.assert_close(*found)
    assert found[0][0] == pytest.approx(change.square().sum().item())


def test_weights_are_told_apart_by_their_imaginary_part_and_nan_equals_nan():
    one, other = (nn.ParameterList([nn.Parameter(torch.tensor([1 + 1j, math.nan + 2j]))]) for _ in range(2))
    assert same_weights(one, other)
    before = fingerprint(one, [])
    one[0].data[1] += 1j
    assert not same_weights(one, other)
    assert fingerprint(one, []) != before


# ---- parameters without axes


class Scaled(nn.Module):
    """A temperature, alone or behind a net."""

    def __init__(self, only: bool):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).requires_grad_(not only)
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.frozen, self.one = nn.Parameter(torch.tensor(2.0), requires_grad=False), nn.Parameter(torch.tensor([0.1]))
        self.one.requires_grad_(not only)

    def forward(self, x):
        return self.net(x) * self.temperature.exp() * self.frozen + self.one


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_without_axes_is_one_weight(way, only):
    module, x = Scaled(only).double(), r(N, 4)
    snapshot = snapshot_of(module, x)
    outputs, parameters = module(x), list(trainable(module).values())
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in outputs.flatten()]
    a = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    plan = choose_curvature(snapshot, N, way)
    source = generator()
    curvature = plan.measure(snapshot, source)
    tolerance = 0.3 if way == "lanczos" and not only else 1e-8  # random probes
    assert curvature.spectrum.trace == pytest.approx(a.square().sum().item() / N, rel=tolerance)
    assert curvature.spectrum.weights == a.shape[1] == (1 if only else 25)
    (noisy,) = noisy_losses(curvature, [(1.0, 0.3)], 20.0, 2, source)
    assert math.isfinite(noisy.mean)
