"""Escape times of Achille et al. (2020): the landscape by autograd, the times by an integral, and a short run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate

sys.path.append(str(Path(__file__).parents[2] / "examples" / "achille2020"))

import escape


def loss(w):
    """L(x, y), from the parts of its definition."""
    x, y = w
    u = x - escape.BEND * ((x * x + escape.ROUND**2).sqrt() - escape.ROUND)
    a, b = escape.LEFT, escape.RIGHT
    k = escape.FLAT + (escape.SHARP - escape.FLAT) * torch.sigmoid(-x / escape.WIDTH)
    return escape.DEPTH * (u**4 / 4 - (a + b) * u**3 / 3 + a * b * u**2 / 2) + k * y**2 / 2


@pytest.mark.parametrize("point", [*escape.MINIMA, escape.SADDLE], ids=["sharp", "flat", "saddle"])
def test_stationary_points_and_their_hessians(point):
    w = torch.tensor([point.x, 0.0], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, w)
    h = torch.autograd.functional.hessian(loss, w)
    assert slope.abs().max() < 1e-10
    torch.testing.assert_close(h, torch.diag(torch.tensor([point.along, point.across], dtype=torch.float64)))
    assert point.loss == pytest.approx(loss(w).item(), abs=1e-12)


@pytest.mark.parametrize("well", [0, 1], ids=["sharp", "flat"])
def test_kramers_time_in_its_usual_form(well):
    minimum, saddle = escape.MINIMA[well], escape.SADDLE
    ratio = saddle.along * saddle.across / (minimum.along * minimum.across)
    expected = 2 * math.pi / abs(saddle.along) * math.sqrt(abs(ratio)) * math.exp(-minimum.loss / 0.11)
    assert escape.predicted(well, 0.11) == pytest.approx(expected, rel=1e-9)


def test_steps_are_those_of_the_gradient():
    """Without noise, in float32: ten steps from a minimum that is moved."""
    moved = [point._replace(x=point.x + 0.2) for point in escape.MINIMA]
    silent = iter(np.zeros((10, 2, 2), np.float32))
    seen = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(escape, "MINIMA", moved)
        patch.setattr(escape, "noise", lambda *_: silent)
        patch.setattr(escape, "stiffness", lambda x, of=escape.stiffness: seen.append(x.copy()) or of(x))
        escape.escape("Langevin", 0.01, 2, 1, 10, np.random.default_rng(0))
    w = torch.tensor([moved[0].x, 0.0], dtype=torch.float64)
    for x in seen:
        assert x[0] == pytest.approx(w[0].item(), abs=1e-5)
        w = w - 0.01 * torch.autograd.functional.jacobian(loss, w)


@pytest.mark.parametrize("dynamics", escape.DYNAMICS[:2])
def test_noise_has_the_temperature(dynamics):
    draws = escape.noise(dynamics, 0.01, 3, 400, np.random.default_rng(0))
    e = np.stack([next(draws) for _ in range(200)])
    at = escape.T_OF_ONE / 3 * 0.01 / escape.ETA
    covariance = np.cov(e.swapaxes(0, 1).reshape(2, -1))
    assert covariance == pytest.approx(2 * 0.01 * at * np.eye(2), abs=0.02 * 2 * 0.01 * at)  # 80 000 draws
    drawn = escape.samples(4.0, np.random.default_rng(1))
    assert drawn.mean(1) == pytest.approx(np.zeros(2), abs=1e-12)
    assert drawn @ drawn.T / 256 == pytest.approx(4 * np.eye(2), abs=1e-10)


def test_times_are_those_of_an_integral():
    """Mean first passage of one dimension, of L + T/2 log k: within 10 %, four errors of 2 % and the finite step."""
    at = escape.T_OF_ONE / 2
    x = np.linspace(-2.5, 3.5, 6001)
    potential = np.array([escape.loss(one) for one in x]) + at / 2 * np.log(escape.stiffness(x)[0])
    weight, rise = np.exp(-potential / at), np.exp(potential / at) / at
    below = integrate.cumulative_trapezoid(weight, x, initial=0)
    between = (x >= escape.MINIMA[0].x) & (x <= escape.MINIMA[1].x)
    expected = [integrate.trapezoid((rise * mass)[between], x[between]) for mass in (below, below[-1] - below)]
    found = escape.escape(escape.DYNAMICS[1], escape.ETA, 2, 400, 7000, np.random.default_rng(0))
    assert found.at == at
    assert (found.stderr / found.time < 0.04).all()
    assert found.time == pytest.approx(np.array(expected), rel=0.1)


def test_odds_are_those_of_the_free_energies():
    for at in (0.1, 0.3):
        sharp, flat = (escape.predicted(well, at) for well in range(2))
        assert escape.predicted_share(at) == pytest.approx(flat / (sharp + flat), rel=1e-9)
    assert escape.predicted_share(0.1) < 0.5 < escape.predicted_share(0.3)


def test_a_short_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(escape, "steps_for", lambda *_: 300)

    def briefly(seeds, full, out):
        return escape.run(seeds, full, out, particles=100)

    escape.main(escape.__doc__, briefly, "escape", 1, ["--seeds", "1", "--out", str(tmp_path)])
    assert (tmp_path / "escape.png").read_bytes().startswith(b"\x89PNG")
    claims = [escape.Claim(**claim) for claim in json.loads((tmp_path / "escape.json").read_text())["claims"]]
    assert len(claims) == 11
    assert capsys.readouterr().out.count("->") == 11
