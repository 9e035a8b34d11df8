from __future__ import annotations

import math

import pytest
import torch

from lightning_info.functional.free_energy import free_energy, temperature
from lightning_info.functional.spectrum import Spectrum


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.5)])
def test_the_temperature_is_that_of_torch_sgd_on_a_noisy_quadratic(momentum, dampening):
    # stationary variance of a weight with curvature h under exp(-L/T): T/h; to first order in the step
    rate, batch, h, chains = 0.01, 4, 1.0, 10_000
    w = torch.zeros(chains, requires_grad=True)
    optimiser = torch.optim.SGD([w], rate, momentum, dampening)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        w.grad = h * w.detach() + torch.randn(chains, generator=generator) / batch**0.5
        optimiser.step()
    assert h * w.detach().var().item() == pytest.approx(temperature(rate, batch, momentum, dampening), rel=0.06)


def test_the_free_energy_is_the_loss_and_half_the_temperature_times_the_log_determinant():
    spectrum = Spectrum(torch.tensor([3.0, 1.0]), 4)
    truth = 0.7 + 0.05 * (math.log(3.1) + math.log(1.1) + 2 * math.log(0.1))
    assert free_energy(0.7, spectrum, 0.1, damping=0.1) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("arguments", [(-0.1, 4), (math.nan, 4), (0.1, 0), (0.1, 4, 1.0), (0.1, 4, -0.1)])
def test_bad_input_is_refused(arguments):
    with pytest.raises(ValueError, match="temperature: "):
        temperature(*arguments)
