"""The reproduction of figure 3 of Achille et al. (2020): its parts against closed forms, and a short run."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize
from torch.distributions import Normal, kl_divergence

FOLDER = Path(__file__).parents[2] / "examples" / "achille2020"
sys.path.append(str(FOLDER))

SPEC = importlib.util.spec_from_file_location("achille2020_figure3", FOLDER / "figure3.py")
figure3 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figure3)


def test_fisher_information_is_that_of_the_closed_form():
    theta = torch.linspace(-3, 3, 41, dtype=torch.float64)
    slope = 3.6 * torch.cos(3 * torch.asinh(theta / 0.15)) / torch.sqrt(theta**2 + 0.15**2)
    torch.testing.assert_close(figure3.fisher(theta), 100 * slope**2)


def test_an_epoch_takes_every_sample_once():
    data = figure3.draw_data(seeds=2, datasets=6, repeats=3)
    everything = torch.cat([data.many, data.few.repeat_interleave(3, 1)], 1).flatten(0, 1)
    for size in (20, 100):
        batches = [x for x, _ in figure3.Batches(data, size, steps=100 // size)]
        assert all(x.shape == (2 * 12, 1) for x in batches)
        torch.testing.assert_close(torch.stack(batches).mean(0)[:, 0], everything.mean(1))
    first = next(iter(figure3.Batches(data, 20, steps=5)))[0].view(2, 12)
    assert len(first[:, 6:9].unique()) == 6  # trainings on one data set have batches of their own


def test_all_samples_are_gradient_descent_on_the_loss_of_the_paper():
    data = figure3.draw_data(seeds=1, datasets=2, repeats=2)
    theta = figure3.trained(data.start, figure3.Batches(data, 100, 5), 0.01, "")
    expected = data.start[0, 1].clone().requires_grad_()
    for _ in range(5):
        (slope,) = torch.autograd.grad((data.many[0, 1] - figure3.phi(expected)).square().mean(), expected)
        expected = (expected - 0.01 * slope).detach().requires_grad_()
    assert theta[0, 1].item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_gaussian_information_is_the_least_of_all_gaussian_priors():
    means, variances = torch.randn(20, dtype=torch.float64), 0.1 + torch.rand(20, dtype=torch.float64)

    def expected(parameters):
        prior = Normal(parameters[0], math.exp(parameters[1]))
        return kl_divergence(Normal(means, variances.sqrt()), prior).mean().item()

    least = optimize.minimize(expected, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert figure3.gaussian_information(means, variances) == pytest.approx(least.fun, abs=1e-7)


class TestVerdicts:
    def curves(self, log_fisher, shannon, gaussian):
        rising = np.arange(7.0)[None]
        rest = {"stderr": 0 * rising, "distance": -rising, "of_data": rising}
        return figure3.Curves(log_fisher, log_fisher, shannon, gaussian=gaussian, **rest)

    def outcome(self, curves):
        return [claim.verdict for claim in figure3.judge(curves)]

    def test_of_the_papers_curves(self):
        rising = np.linspace(3, 4, 7)[None]
        assert set(self.outcome(self.curves(2 * rising, rising, 4500 + 0 * rising))) == {"reproduced"}

    def test_of_curves_that_fall(self):
        falling = np.linspace(4, 2, 7)[None]
        found = self.outcome(self.curves(falling, falling, 3.0 + 0 * falling))
        assert found == ["reproduced", *["not reproduced"] * 6, "reproduced", *["not reproduced"] * 4]


def test_a_short_run(tmp_path, capsys):
    def briefly(seeds, full, out):
        return figure3.run(seeds, full, out, datasets=30, repeats=5, steps=10)

    figure3.main(figure3.__doc__, briefly, "figure3", 3, ["--seeds", "2", "--out", str(tmp_path)])
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "figure3.json").read_text())
    assert told["length"] == "quick"
    claims = [figure3.Claim(**claim) for claim in told["claims"]]
    assert all(len(claim.values) == 2 and np.isfinite(claim.values).all() for claim in claims)
    printed = capsys.readouterr().out
    assert printed.count("->") == len(claims)
    assert "4000-5000" in printed
