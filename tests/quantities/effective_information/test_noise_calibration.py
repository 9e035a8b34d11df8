"""The search for a level on a linear regression, of which the rise at every level has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_info.functional.distortion import quadratic_level, quadratic_power
from lightning_info.functional.weight_noise import diagonal_noise
from lightning_info.quantities.effective_information.noise_calibration import PASSES, POWER_PASSES, SHARES, find_level
from lightning_info.quantities.weight_information.loss_rise import LossRise
from lightning_info.quantities.weight_information.noisy_loss import mean_loss
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.stand_in_trainer import StandInTrainer

N, WIDTH = 40, 12


def adapter(module, batch):
    return module(batch[0]), batch[1], "gaussian"


class Case:
    """Noise for the diagonal of H = XᵀX, so that the expected rise is that of :func:`quadratic_level`."""

    def __init__(self):
        torch.manual_seed(0)
        x = torch.randn(N, WIDTH).double()
        self.net = nn.Linear(WIDTH, 1, bias=False).double()
        predictor = Predictor(StandInTrainer(None), adapter)
        self.snapshot = ModelSnapshot(
            self.net, predictor, [(x, x @ torch.ones(WIDTH, 1).double())], 16, torch.device("cpu")
        )
        self.h, self.prior, self.samples = x.square().sum(0), torch.linspace(0.2, 1, WIDTH).double(), 0
        self.draws = 0

    def noise(self, seed: int, beta: float) -> torch.Tensor:
        self.draws += 1
        z = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        return diagonal_noise(z, self.h, beta, self.prior)

    def rise(self, beta: float) -> float:
        most = self.h * self.prior**2
        return (most / (1 + most / beta)).sum().item() / (2 * N)

    def search(self, target: float, start: float, seed: int = 0):
        seeds = iter(range(10_000 * seed, 10_000 * (seed + 1)))
        return find_level(LossRise(self.snapshot, SHARES, mean_loss(self.snapshot)), self.noise, seeds, target, start)


@pytest.mark.parametrize("away", [1.0, 30.0])
def test_the_rise_at_the_level_is_the_target(away):
    """Of one evaluation the rise is off by 32 %, of eight by 11 to 15 %."""
    case, target = Case(), 0.05
    level = quadratic_level(case.h, case.prior, N, target)
    found = [case.search(target, away * level, seed) for seed in range(40)]
    ratios = torch.tensor([case.rise(one.beta) / target for one in found])
    assert all(one.is_reached for one in found)
    assert ratios.sub(1).square().mean().sqrt() < 0.15
    assert abs(ratios.mean() - 1) < 0.06


def test_the_errors_are_those_over_searches():
    """Of 60: the scatter of the true rise and of log β is 0.7 to 1.25 of the stated ones, and the power 0.1 off."""
    case, target = Case(), 0.05
    level = quadratic_level(case.h, case.prior, N, target)
    found = [case.search(target, level, seed) for seed in range(60)]
    rises = torch.tensor([case.rise(one.beta) / target for one in found])
    stated = torch.tensor([one.relative_error for one in found]).square().mean().sqrt()
    assert 0.7 < rises.std() / stated < 1.25
    logs = torch.tensor([one.beta for one in found]).log()
    stated = torch.tensor([one.beta_stderr / one.beta for one in found]).square().mean().sqrt()
    assert 0.7 < logs.std() / stated < 1.25
    power = quadratic_power(case.h, case.prior, level)
    assert 0.3 < power < 0.99
    assert torch.tensor([one.power for one in found]).mean() == pytest.approx(power, abs=0.1)


def test_the_power_is_the_slope_of_the_quadratic_rise():
    case = Case()
    for beta in (1e-3, 0.1, 10.0):
        slope = math.log(case.rise(1.001 * beta) / case.rise(beta / 1.001)) / (2 * math.log(1.001))
        assert quadratic_power(case.h, case.prior, beta) == pytest.approx(slope, rel=1e-5)
    assert quadratic_power(0 * case.h, case.prior, 1.0) == 1


@pytest.mark.parametrize(("target", "reached"), [(0.05, True), (1e3, False)])
def test_it_takes_so_many_passes_at_most(target, reached):
    """A draw makes two on its share; what direct calls are found and checked by comes once, two on all samples."""
    case, seen = Case(), []
    case.net.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    found = case.search(target, 1.0)
    assert found.is_reached == reached
    passes = 2 * case.draws / SHARES - POWER_PASSES * reached
    assert passes == 2 * found.evaluations <= PASSES
    # one of the loss without noise; as one are a draw and its opposite, but for the first on each share
    assert sum(seen) / N == 1 + 2 + 2 + (case.draws / SHARES - 1)
